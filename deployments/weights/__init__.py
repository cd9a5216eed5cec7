"""Base-model weights on this machine: fetched, checked, converted once, kept in a cache folder."""
