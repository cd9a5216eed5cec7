"""How good a routing policy is, from labels that say which model was right: `sprat eval`."""
