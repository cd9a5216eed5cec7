"""Admission in one round trip: replica choice, leases, spend, replica directory."""
