"""The listening socket of a gateway and its connections: caps, deadlines, drain."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate

from deployments.gateway.http.connection import HttpConnection
from deployments.gateway.http.limits import HttpLimits
from deployments.gateway.http.message import Handler
from deployments.gateway.http.rules import Refused
from deployments.gateway.http.wire_reply import refusal_body
from deployments.gateway.tasks import end_task

logger = logging.getLogger("ray.serve")

SWEEP_S = 1.0
BACKLOG = 2048


class Listener:
    """Several processes may listen on one port (SO_REUSEPORT)."""

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        limits: HttpLimits,
        tls: ssl.SSLContext | None = None,
        refusal_body: Callable[[Refused], bytes] = refusal_body,
    ) -> None:
        """`refusal_body` is what a client is told whose request does not reach the handler."""
        self._sock = sock
        self._tls = tls
        self._connections: set[HttpConnection] = set()
        self._of_address: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.handler = handler
        self.refusal_body = refusal_body
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.draining = False
        self.held_body_bytes = 0
        """Of bodies that are on their way in."""
        self.date = formatdate(usegmt=True)

    async def start(self) -> None:
        self._server = await self.loop.create_server(
            lambda: HttpConnection(self),
            sock=self._sock,
            ssl=self._tls,
            # Until then the connection is not ours to count.
            ssl_handshake_timeout=self.limits.head_s if self._tls is not None else None,
            backlog=BACKLOG,
        )
        self._sweeper = asyncio.create_task(self._sweep())

    @property
    def is_listening(self) -> bool:
        return self._server is not None and self._server.is_serving() and not self.draining

    @property
    def connections(self) -> int:
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Idle connections close; the others after their present answer, which says so."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            if connection.is_idle:
                connection.close()

    async def close(self) -> None:
        """Cuts what is left."""
        self.stop_accepting()
        if self._sweeper is not None:
            await end_task(self._sweeper)
        tasks = [each.task for each in self._connections if each.task is not None and not each.task.done()]
        for connection in list(self._connections):
            connection.abort()
        for task in tasks:
            await end_task(task)

    # For connections

    def admit(self, connection: HttpConnection) -> bool:
        self._connections.add(connection)
        self._of_address[connection.peer] += 1
        return (
            len(self._connections) <= self.limits.connections
            and self._of_address[connection.peer] <= self.limits.connections_per_address
        )

    def forget(self, connection: HttpConnection) -> None:
        self._connections.discard(connection)
        self._of_address[connection.peer] -= 1
        if not self._of_address[connection.peer]:
            del self._of_address[connection.peer]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.date = formatdate(time.time(), usegmt=True)
            now_s = self.loop.time()
            for connection in [each for each in self._connections if each.deadline_s < now_s]:
                try:
                    connection.expire()
                except Exception:  # without the sweeper no connection would have an end
                    logger.exception("a connection could not be closed in its way")
                    connection.abort()
