"""Our placement of adapters beside others', on one simulated fleet: `sprat bench placement`. Figures of it
are simulated, never measured."""
