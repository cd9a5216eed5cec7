"""Adapters inside an engine replica: what is loaded, what is loading, what must go."""
