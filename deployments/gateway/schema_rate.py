"""How many different schemas a key may bring per minute.

Each new schema is compiled to a grammar by the engine, on a core and for a time that its author chooses
(THREATS.md row 5); one that was seen before is cached there. Counted per gateway replica: the engines are
protected to a small factor, without a question to Redis for each call.
"""

from __future__ import annotations

from collections import OrderedDict

from cluster.errors import RateLimited

SCHEMAS_PER_MINUTE = 60
WINDOW_S = 60.0
MAX_KEYS = 10_000


class SchemaRate:
    """Memory: SCHEMAS_PER_MINUTE digests for each of the MAX_KEYS keys that brought one last."""

    def __init__(self, per_minute: int = SCHEMAS_PER_MINUTE) -> None:
        self._per_minute = per_minute
        self._keys: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()

    def check(self, key_id: str, schema_digest: str, now_s: float) -> None:
        """Of a call that brings a schema (`RequestFeatures.schema_digest`). Raises RateLimited."""
        seen = self._keys.setdefault(key_id, OrderedDict())
        self._keys.move_to_end(key_id)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        while seen and now_s - next(iter(seen.values())) > WINDOW_S:
            seen.popitem(last=False)
        if schema_digest not in seen and len(seen) >= self._per_minute:
            retry_after_s = next(iter(seen.values())) + WINDOW_S - now_s
            raise RateLimited(
                f"This key has brought {self._per_minute} different schemas and sets of tools in a minute. "
                "Use the same ones again, or try again later.",
                code="too_many_schemas",
                retry_after_s=retry_after_s,
            )
        seen[schema_digest] = now_s
        seen.move_to_end(schema_digest)
