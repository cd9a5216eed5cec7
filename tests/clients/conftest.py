"""The matrix runs in environments of its own (runs.py), where nothing of ours is installed."""

collect_ignore = ["matrix"]
