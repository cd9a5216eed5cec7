"""Proof of the model catalogue: tiny models of every architecture, served by this cluster."""
