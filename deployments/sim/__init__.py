"""The timed simulator engine: an OpenAI-compatible HTTP surface without a model behind it."""
