"""Keeps Ray Serve's own gRPC server of a replica on the node's address.

Ray Serve 2.60 binds it to all interfaces (`"[::]:0"` in its code, no switch), although nobody uses it here:
requests travel by HTTP to our own ports. The token guards it, but a port that is not there needs no guard
(THREATS.md 4). Called from the constructors of our replicas, which run before Serve opens that port.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

logger = logging.getLogger("ray.serve")

PATCHED = "add_port_to_grpc_server"


def keep_serve_on_node_address() -> None:
    """Without effect, and with a warning, where Ray's code looks different."""
    module = sys.modules.get("ray.serve._private.replica")
    original = getattr(module, PATCHED, None)
    if original is None:
        logger.warning("Ray Serve looks different: its replica port may listen on all interfaces")
        return
    import ray  # here and not above: whoever starts a gateway without Ray must not load it

    host = ray.util.get_node_ip_address()

    def on_node_address(server: Any, address: str) -> int:
        port: int = original(server, address.replace("[::]", host))
        return port

    setattr(module, PATCHED, on_node_address)
