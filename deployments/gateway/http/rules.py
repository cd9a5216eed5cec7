"""Strict HTTP/1.1 on top of what the parser refuses by itself (THREATS.md rows 1, 14, 22)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httptools

from deployments.gateway.http.limits import HttpLimits

HOST = re.compile(rb"[A-Za-z0-9._\-\[\]:]{1,255}")
LENGTH = re.compile(rb"[0-9]{1,18}")
PATH = re.compile(rb"/[\x21\x24-\x3b\x3d\x40-\x5b\x5d\x5f\x61-\x7a\x7e%]*")
"""RFC 3986, and `[` and `]` as many clients send them; no `"`, `#`, `<`, `>`, `\\`, `^`, backtick, braces."""

ONCE = frozenset(
    {
        *(b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding"),
        *(b"authorization", b"x-api-key", b"expect", b"idempotency-key"),
    }
)
"""Two of them mean two readings of one request."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


@dataclass(frozen=True)
class Refused(Exception):
    """The request is answered with this, and its connection ends."""

    status: int
    code: str
    message: str
    path: str = ""
    """What was asked for, if the request came that far."""


def check_method(method: str) -> None:
    """The parser also takes those of CONNECT, WebDAV, RTSP and ICE. Raises Refused."""
    if method not in METHODS:
        raise Refused(400, "method_unknown", f"Use one of {', '.join(sorted(METHODS))}.")


def add_header(headers: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    """Raises Refused."""
    name, value = name.lower(), value.rstrip(b" \t")  # parsers take the white space before it
    if name in headers:
        add_again(headers, name, value)
    else:
        headers[name] = value


def add_again(headers: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    """A header that is there already; `name` in lower case. Raises Refused."""
    if name in ONCE or name.startswith(b"x-sprat-"):
        shown = name.decode("latin-1")
        raise Refused(400, "duplicate_header", f"The header {shown} may be sent once.")
    headers[name] += b", " + value


def check_head(
    version: str, headers: dict[bytes, bytes], header_bytes: int, url_bytes: int, limits: HttpLimits
) -> bool:
    """Whether the client waits for `100 Continue`. Raises Refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "version_not_supported", "Use HTTP/1.1.")
    if url_bytes > limits.url_bytes:
        raise Refused(414, "url_too_long", "The URL is too long.")
    if header_bytes > limits.head_bytes or len(headers) > limits.headers:
        raise Refused(431, "headers_too_large", "The request's headers are too large.")
    _check_host(headers.get(b"host"), version, limits.hosts)
    _check_framing(headers, version, limits)
    expect = headers.get(b"expect")
    if expect is None:
        return False
    if expect.lower() != b"100-continue":
        raise Refused(417, "expectation_failed", "Only Expect: 100-continue is understood.")
    return version == "1.1" and has_body(headers)


def has_body(headers: dict[bytes, bytes]) -> bool:
    """Of a request whose head was checked."""
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0


def _check_host(host: bytes | None, version: str, known: frozenset[bytes]) -> None:
    if host is None:
        if version == "1.1":
            raise Refused(400, "host_missing", "A request in HTTP/1.1 needs a Host header.")
    elif HOST.fullmatch(host) is None:
        raise Refused(400, "host_malformed", "The Host header is not a host name.")
    if known and (host or b"").lower() not in known:
        raise Refused(421, "host_unknown", "This server does not answer to that host name.")


def _check_framing(headers: dict[bytes, bytes], version: str, limits: HttpLimits) -> None:
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Refused(400, "two_lengths", "Content-Length and Transfer-Encoding exclude each other.")
        if version == "1.0" or coding.lower() != b"chunked":
            raise Refused(400, "transfer_encoding", "The only Transfer-Encoding is chunked, in HTTP/1.1.")
    elif length is not None:
        if LENGTH.fullmatch(length) is None:
            raise Refused(400, "content_length", "The Content-Length is not a number.")
        if int(length) > limits.body_bytes:
            raise too_large(limits)


def path_of(url: bytes) -> tuple[str, bytes]:
    """Path and query of a request target in origin form or absolute form; the authority of the latter does
    not matter here. Raises Refused."""
    query = b""
    path = url
    if b"#" in url:
        raise Refused(400, "url_malformed", "The request target holds a fragment (#).")
    if not url.startswith(b"/"):
        if url == b"*":
            return "*", b""
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            parsed = None
        if parsed is None or parsed.schema not in (b"http", b"https"):
            raise Refused(400, "url_malformed", "The request target is neither a path nor an http URL.")
        path, query = parsed.path or b"/", parsed.query or b""
    elif b"?" in url:
        path, _, query = url.partition(b"?")
    if PATH.fullmatch(path) is None:
        raise Refused(400, "url_malformed", "The request target holds characters that must be encoded.")
    return path.decode("ascii"), query


def too_large(limits: HttpLimits) -> Refused:
    return Refused(413, "body_too_large", f"The body is larger than {limits.body_bytes} bytes.")
