"""HTTP/1.1 towards clients: bytes of a connection in, whole requests out; answers in order, under limits."""
