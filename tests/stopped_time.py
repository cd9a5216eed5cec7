"""A real Valkey whose time stands still until a test moves it, and whose scripts touch declared keys only.

The scripts run as they are, behind a prelude that stands in for `redis.call`: it answers TIME from a key,
stretches every TTL, so that no key dies of real time, and checks each command's keys. That makes a run on
the server as exact as one in memory, and the two can be compared to the last number.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from redis.asyncio import Redis

from cluster.clock import ManualClock
from cluster.scheduler import scripts

NOW_MS = "{sch}:test:now_ms"
STRETCH = 1000

PRELUDE = f"""
local server, declared = redis, {{}}
for _, key in ipairs(KEYS) do
  declared[key] = true
end
local function check(key)
  if not declared[key] then
    error('undeclared key: ' .. tostring(key))
  end
end
local redis = {{ status_reply = server.status_reply }}
function redis.call(command, ...)
  local arguments = {{ ... }}
  if command == 'TIME' then
    local now_ms = tonumber(server.call('GET', '{NOW_MS}'))
    return {{ string.format('%.0f', math.floor(now_ms / 1000)), string.format('%.0f', now_ms % 1000 * 1000) }}
  elseif command == 'MGET' or command == 'DEL' then
    for _, key in ipairs(arguments) do
      check(key)
    end
  elseif command ~= 'PUBLISH' and command ~= 'INFO' then
    check(arguments[1])
  end
  for i, argument in ipairs(arguments) do
    if command == 'SET' and argument == 'PX' then
      arguments[i + 1] = string.format('%.0f', arguments[i + 1] * {STRETCH})
    end
  end
  return server.call(command, unpack(arguments))
end
"""

TELL_TIME = "local ms = redis.call('GET', KEYS[1]); return { math.floor(ms / 1000), ms % 1000 * 1000 }"

AGE_ALL_KEYS = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left > 0 then
    left = left - ARGV[1]
    if left <= 0 then
      redis.call('DEL', key)
    else
      redis.call('PEXPIRE', key, string.format('%.0f', left))
    end
  end
end
"""


def stop_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for script in vars(scripts).values():
        if isinstance(script, scripts.LuaScript) and PRELUDE not in script.source:
            shebang, _, body = script.source.partition("\n")
            source = f"{shebang}{PRELUDE}{body}"
            monkeypatch.setattr(script, "source", source)
            monkeypatch.setattr(script, "sha", hashlib.sha1(source.encode()).hexdigest())


class StoppedServer:
    """`clock` is what the scripts see."""

    def __init__(self, client: Redis, clock: ManualClock) -> None:
        self.client = client
        self.clock = clock
        pipeline = client.pipeline

        def pipeline_that_knows_the_time(*args: Any, **options: Any) -> Any:
            made = pipeline(*args, **options)
            made.time = lambda: made.eval(TELL_TIME, 1, NOW_MS)
            return made

        client.pipeline = pipeline_that_knows_the_time

    async def begin(self) -> None:
        """An empty server."""
        await self.client.flushall()
        await self.client.set(NOW_MS, self.clock.now_ms())

    async def advance_ms(self, by_ms: int) -> None:
        self.clock.advance(by_ms)
        await self.client.set(NOW_MS, self.clock.now_ms())
        await self.client.eval(AGE_ALL_KEYS, 0, by_ms * STRETCH)
