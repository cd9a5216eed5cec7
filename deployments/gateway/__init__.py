"""The OpenAI-compatible HTTP front: key, body, decision, admission, relay, settlement."""
