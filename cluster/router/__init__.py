"""Decides what runs: request features + fleet view → decision. Pure: no I/O, no clock, no Ray."""
