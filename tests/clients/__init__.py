"""Clients of others against a cluster of ours: see README.md."""
