"""One call to an engine replica over its own port: status, bytes, and errors as ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cluster.errors import EngineFailed

IDLE_CONNECTION_S = 60.0
"""Below the engines' own keep-alive of 75 s, so that a call meets no connection that was just closed."""

TRANSPORT_ERRORS = (aiohttp.ClientError, ConnectionError, TimeoutError)


class EngineAnswer:
    """Status and body of an engine's answer. Reading raises EngineFailed when the replica is lost."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except TRANSPORT_ERRORS as error:
            raise EngineFailed("The engine stopped answering.") from error

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except TRANSPORT_ERRORS as error:
            raise EngineFailed("The engine stopped answering.") from error


class EngineClient:
    """Keep-alive connections to all replicas. Leaving `post` early closes the connection, which makes
    the engine abort the generation."""

    def __init__(self, gateway_token: str, connect_timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S),
            headers={"authorization": f"Bearer {gateway_token}", "content-type": "application/json"},
            # The whole call is bounded by the gateway; silence between two tokens is not.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,
            read_bufsize=2**18,
        )

    @asynccontextmanager
    async def post(self, address: str, path: str, body: bytes) -> AsyncIterator[EngineAnswer]:
        try:
            response = await self._session.post(f"http://{address}{path}", data=body)
        except TRANSPORT_ERRORS as error:
            raise EngineFailed("The engine could not be reached.") from error
        try:
            yield EngineAnswer(response)
        except BaseException:
            response.close()
            raise
        response.release()

    async def close(self) -> None:
        await self._session.close()
