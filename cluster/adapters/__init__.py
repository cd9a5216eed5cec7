"""Adapters of the registry: their records, their life, and the checks that their files must pass."""
