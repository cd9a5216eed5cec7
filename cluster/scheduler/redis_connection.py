"""The connection to Redis: timeouts, and the seam where its errors become ours."""

from __future__ import annotations

from types import TracebackType
from urllib.parse import quote

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from cluster.errors import ConfigError, SchedulerUnavailable

CONNECT_TIMEOUT_S = 0.25
OPERATION_TIMEOUT_S = 0.5
MAX_CONNECTIONS = 128
"""Each carries one command at a time, so this many calls may be asking at once. With 32 a busy machine made
50 calls wait for a connection for longer than the timeout, and the breaker took that for an outage."""


def connect(
    url_or_unix_socket: str,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    operation_timeout_s: float = OPERATION_TIMEOUT_S,
) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://` URLs, or for the path of a unix socket.

    Connects on first use. Raises ConfigError for any other URL.
    """
    url = normal_url(url_or_unix_socket)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=operation_timeout_s,  # for a free connection
            socket_connect_timeout=connect_timeout_s,
            socket_timeout=operation_timeout_s,
            # One retry on a fresh connection, because a pooled one may have died unnoticed: every call is
            # safe to repeat. Never after a timeout: that would double the wait for a store that hangs.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            decode_responses=True,
            protocol=2,  # we need nothing of RESP3, and it costs a round trip per connection
        )
    except ValueError as error:
        # The URL may hold a password, so it is not repeated here.
        raise ConfigError(
            "the Redis URL must start with redis://, rediss:// or unix://, or be the path of a unix socket"
        ) from error
    return Redis.from_pool(pool)


def normal_url(url_or_unix_socket: str) -> str:
    if url_or_unix_socket.startswith("/"):
        return f"unix://{quote(url_or_unix_socket)}"
    return url_or_unix_socket


class unavailable_on_error:  # noqa: N801 (used as a verb)
    """Timeouts, refused or lost connections, a full connection pool, LOADING, OOM, READONLY, MOVED,
    CLUSTERDOWN and a script that failed: all of them mean that no decision was made. A class, because it
    stands on the path of every call, and a generator costs five times as much."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, (RedisError, OSError)):
            raise SchedulerUnavailable(
                "The scheduler's store does not answer; try again shortly.", retry_after_s=1.0
            ) from error
