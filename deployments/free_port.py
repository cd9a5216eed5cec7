"""Listening sockets."""

from __future__ import annotations

import errno
import socket

from cluster.errors import StartError


def bound_socket(host: str, port: int = 0, *, reuse_port: bool = False) -> socket.socket:
    """A listening, non-blocking TCP socket; port 0 takes a free one. Raises StartError with the fix."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is taken by another program. Stop it, or set gateway.port "
                f"(environment: SPRAT__GATEWAY__PORT) to a free one."
            ) from error
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}. Check gateway.host.") from error
    sock.setblocking(False)
    return sock


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])
