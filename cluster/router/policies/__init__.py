"""Policies: what an `auto` call should run on, and why. One module each; `registry.py` builds them."""
