"""An external OpenAI-compatible endpoint behind an engine's HTTP surface."""
