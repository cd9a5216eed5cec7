"""One module per route that reaches an engine: closed schema, what the engine gets, how answers are read."""
