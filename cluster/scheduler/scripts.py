"""The Lua operations as package data: `lua/<name>.lua` behind the shared `lua/_*.lua` that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from cluster.scheduler.pipelined_redis import PipelinedRedis

_USES = "-- Uses "


class LuaScript:
    """One operation: one round trip, atomic."""

    def __init__(self, name: str) -> None:
        # Redis wants the shebang on the first line of what it is sent. With it, a script that touches a
        # key it did not declare fails in cluster mode; without it, it silently works (SCHEDULER.md 1).
        shebang, _, body = _text_of(name).partition("\n")
        if not shebang.startswith("#!lua"):
            raise ValueError(f"lua/{name}.lua must start with #!lua, not with {shebang!r}")
        first_line = body.partition("\n")[0]
        parts = first_line.removeprefix(_USES).split() if first_line.startswith(_USES) else []
        self.name = name
        # Joined, never formatted: a value in the text would be code, and each one another cached script.
        self.source = "".join((shebang, "\n", *map(_text_of, parts), body))
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(
        self, client: Redis | PipelinedRedis, keys: Sequence[str], arguments: Sequence[str | int | bytes]
    ) -> Any:
        """The reply as the script's header says. Raises what redis-py raises."""
        keys_and_arguments: Any = (*keys, *arguments)
        try:
            return await client.evalsha(self.sha, len(keys), *keys_and_arguments)
        except NoScriptError:
            # Scripts are a volatile cache: lost on restart, failover and SCRIPT FLUSH. EVAL fills it again.
            return await client.eval(self.source, len(keys), *keys_and_arguments)


def _text_of(name: str) -> str:
    return (files("cluster.scheduler") / "lua" / f"{name}.lua").read_text()


ADMIT = LuaScript("admit")
ADMIT_ALL = LuaScript("admit_all")
POLL = LuaScript("poll")
RENEW = LuaScript("renew")
SETTLE = LuaScript("settle")
SETTLE_ALL = LuaScript("settle_all")
SWEEP = LuaScript("sweep")
REAP = LuaScript("reap")
HEARTBEAT = LuaScript("heartbeat")
DEREGISTER = LuaScript("deregister")
DESIRE = LuaScript("desire")
REBUILD = LuaScript("rebuild")
REREGISTER = LuaScript("reregister")
IDEMPOTENCY_BEGIN = LuaScript("idempotency_begin")
IDEMPOTENCY_END = LuaScript("idempotency_end")
