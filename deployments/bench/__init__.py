"""What `sprat bench` measures inside one process: no gateway, no engine, no HTTP."""
