"""Runs what `cluster` decides: Ray Serve actors, the gateway, engines, the command line."""
