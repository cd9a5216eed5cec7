"""Who chooses the replica of a call, and what leaves when an adapter needs a place."""
