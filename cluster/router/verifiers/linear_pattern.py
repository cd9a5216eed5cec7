"""Regular expressions from callers. Python's own engine backtracks: `^(a|aa)+$` on fifty characters would
hold the gateway for minutes. RE2 takes time linear in text and program, and both are bounded here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

MAX_MEMORY_BYTES = 2**20
"""Of one compiled pattern; a larger one is refused, after 11 ms of trying (2026-11-22)."""

MAX_WORK = 2**20
"""Instructions of the program times characters of the text. One of both costs 5 ns at worst (2026-11-22)."""

_OPTIONS = re2.Options()
_OPTIONS.max_mem = MAX_MEMORY_BYTES
_OPTIONS.log_errors = False


class PatternNotSupported(ValueError):
    """RE2 has no look-around and no back-references, and this module no patience for large patterns."""


def found_in(pattern: str, text: str) -> bool:
    """Anywhere in it, as JSON Schema wants it."""
    compiled = _compiled(pattern)
    if compiled.programsize * len(text) > MAX_WORK:
        raise PatternNotSupported("the pattern is too large for a text of this length")
    return compiled.search(text) is not None


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> Any:
    try:
        return re2.compile(pattern, options=_OPTIONS)
    except re2.error as error:
        raise PatternNotSupported(str(error)) from error
