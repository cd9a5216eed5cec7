"""Decides: pure Python, no Ray, no engine. `deployments/` runs what this package decides."""
