"""Server-sent events from bytes that may be cut anywhere."""

from __future__ import annotations


class SseParser:
    """`feed` returns the payloads of the events that these bytes complete. Comments and fields other than
    `data` are dropped; lines end with LF or CRLF (a lone CR ends none: no OpenAI-compatible server uses it).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._payload_lines: list[bytes] = []

    @property
    def is_between_events(self) -> bool:
        return not self._rest and not self._payload_lines

    def feed(self, received: bytes) -> list[bytes]:
        lines = (self._rest + received).split(b"\n")
        self._rest = lines.pop()
        payloads: list[bytes] = []
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._payload_lines.append(line[5:].removeprefix(b" "))
            elif not line and self._payload_lines:
                payloads.append(b"\n".join(self._payload_lines))
                self._payload_lines.clear()
        return payloads
