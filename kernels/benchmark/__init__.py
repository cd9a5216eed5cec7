"""How fast our kernels are beside their rivals, and whether both are right: `python -m kernels.benchmark`."""
