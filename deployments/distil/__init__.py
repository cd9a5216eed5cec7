"""Static embeddings made from a sentence encoder: once per machine, offline, with torch."""
