"""The gateway's HTTP against h11 (uvicorn's strict parser, and independent of ours) on the same bytes. Never
does a request reach our handler that the other does not see.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.gateway.http.connection import HttpConnection
from deployments.gateway.http.limits import HttpLimits
from deployments.gateway.http.listener import Listener
from tests.contract.test_http_listener import REFUSED, WELL_FORMED, get, post
from tests.fault_matrix import fault
from tests.raw_http import Answer, Echo, MemoryTransport, answers_in

EXAMPLES = int(os.environ.get("SPRAT_FUZZ_EXAMPLES", "200"))

Seen = tuple[str, bytes, bytes]
"""Method, target without scheme and authority, body."""

STRICTER = {
    # Rules of ours (deployments/gateway/http/rules.py)
    "duplicate_header": "a second header of those that mean one thing; h11 joins or takes the first",
    "host_malformed": "characters that no host name has",
    "url_malformed": "fragments, characters to be encoded, targets of another form",
    "method_unknown": "methods that no route has",
    "transfer_encoding": "h11 takes any case and spacing, and codings in 1.0",
    "two_lengths": "h11 believes Transfer-Encoding",
    "expectation_failed": "h11 ignores what it does not know",
    "version_not_supported": "h11 takes HTTP/1.2 to 1.9 and answers in 1.1",
    "content_length": "h11 takes lists of equal lengths, and longer numbers",
    "body_too_large": "limits",
    "headers_too_large": "limits",
    "url_too_long": "limits",
    "too_many_pipelined": "limits",
    # The parser's
    "malformed_request": "bare LF, obs-fold, spaces around chunk sizes and the like, see LENIENT_REFERENCE",
}
"""Codes of refusals where the other server sees a request, and why."""

LENIENT_REFERENCE = (
    "Invalid method",
    "Invalid HTTP version",  # HTTP/1.2 to 1.9
    "Missing expected",  # CR or LF: bare LF
    "Expected",  # CRLF, LF
    "Invalid header",
    "Invalid char",
    "Unexpected whitespace after header value",  # obs-fold
    "Unexpected space after start line",
    "Unexpected char in url",
    "Unexpected start char in url",
    "Request has invalid `Transfer-Encoding`",  # white space after it, upper case
    "Duplicate Content-Length",
    "Content-Length",
    "Invalid `Transfer-Encoding`",
    "Transfer-Encoding",
    "Pause on PRI/Upgrade",  # the preface of HTTP/2
)
"""Beginnings of the parser's reasons for which the other server has none."""

REQUEST_LINE = re.compile(rb"([A-Z]+) +([^ \r\n]+) +(?:HTTP|RTSP)/")


def as_h11_wants_it(data: bytes) -> bytes:
    """Two things in a request line that our parser takes and RFC 9112 (section 3) leaves to us, as they have
    no other meaning: more than one space, and the protocol RTSP, read as HTTP."""
    line = REQUEST_LINE.match(data)
    return data if line is None else b"%b %b HTTP/%b" % (line[1], line[2], data[line.end() :])


@dataclass(frozen=True)
class Outcome:
    seen: list[Seen]
    answers: list[Answer]


async def ours(packets: Sequence[bytes]) -> Outcome:
    with socket.socket() as sock:
        echo = Echo()
        listener = Listener(sock, echo, HttpLimits(body_bytes=100_000))
        client = MemoryTransport(HttpConnection(listener))
        await client.send(*packets)
        written = await client.leave()
        assert listener.connections == 0
    seen = [(each.method, _target(each.path.encode(), each.query), each.body) for each in echo.seen]
    return Outcome(seen, answers_in(written, [method for method, _, _ in seen]))


def reference(data: bytes) -> list[Seen]:
    """What a server with h11 sees. It goes on where RFC 9112 lets a server do so and h11 alone would not:
    after empty lines before a request, after a refused upgrade, and in HTTP/1.0 with keep-alive."""
    seen: list[Seen] = []
    goes_on = True
    while goes_on and (data := data.lstrip(b"\r\n")):
        server = h11.Connection(h11.SERVER)
        server.receive_data(as_h11_wants_it(data))
        server.receive_data(b"")
        try:
            request = server.next_event()
            assert isinstance(request, h11.Request)
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += bytes(event.data)
        except h11.RemoteProtocolError:
            break
        assert isinstance(event, h11.EndOfMessage)
        path, _, query = request.target.partition(b"?")
        seen.append((request.method.decode(), _target(path, query), body))
        wishes = b",".join(value for name, value in request.headers if name == b"connection").lower()
        kept = request.http_version == b"1.0" and b"keep-alive" in wishes and b"close" not in wishes
        goes_on = kept or server.their_state is not h11.MUST_CLOSE
        data = server.trailing_data[0]
    return seen


def _target(path: bytes, query: bytes) -> bytes:
    path = re.sub(rb"^https?://[^/?#]*", b"", path)
    return (path or b"/") + b"?" + query


async def compare(packets: Sequence[bytes]) -> Outcome:
    data = b"".join(packets)
    mine, theirs = await ours(packets), reference(data)
    told = f"{data!r}\nours: {mine}\nthe other's: {theirs}"
    assert mine.seen == theirs[: len(mine.seen)], f"we saw another request in {told}"
    assert [answer.status for answer in mine.answers if answer.status == 200] == [200] * len(mine.seen)
    refusals = [answer for answer in mine.answers if answer.status not in (100, 200)]
    assert len(refusals) <= 1
    if len(mine.seen) < len(theirs) and not _said_goodbye(mine):
        assert refusals, f"neither seen nor refused: {told}"
        text = refusals[0].body.decode()
        code = text.split('"code":"')[1].split('"')[0]
        assert code in STRICTER, told
        if code == "malformed_request":
            reason = text.split("not HTTP/1.1: ")[1]
            assert reason.startswith(LENIENT_REFERENCE), told
    return mine


def _said_goodbye(outcome: Outcome) -> bool:
    """After the answer to an upgrade we close, and say so."""
    last = outcome.answers[-1] if outcome.answers else None
    return last is not None and last.status == 200 and last.headers.get("connection") == "close"


BY_HAND = {
    **{name: data for name, (data, _) in WELL_FORMED.items()},
    **{name: data + get() for name, (data, _) in REFUSED.items()},
    "upgrade with a body": post(b"connection: upgrade", b"upgrade: h2c", b"content-length: 3", body=b"abc")
    + get(),
    "upgrade and close": post(
        b"connection: upgrade, close", b"upgrade: h2c", b"content-length: 3", body=b"abc"
    )
    + get(),
    "upgrade with chunks": post(
        b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"
    )
    + get(),
    "request in a body": post(b"content-length: %d" % len(get()), body=get()) + get(),
    "length too short": post(b"content-length: 2", body=b"abGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"),
    "CL.TE": post(b"content-length: 6", b"transfer-encoding: chunked", body=b"0\r\n\r\nG") + get(),
    "TE.CL": post(
        b"transfer-encoding: chunked", b"content-length: 4", body=b"5c\r\n" + get() + b"\r\n0\r\n\r\n"
    ),
    "TE with a space": post(b"transfer-encoding : chunked", b"content-length: 3", body=b"0\r\n\r\n") + get(),
    "TE with a tab": post(b"transfer-encoding:\tchunked", body=b"0\r\n\r\n") + get(),
    "TE with white space after": post(b"transfer-encoding: chunked \t", body=b"0\r\n\r\n") + get(),
    "CL with white space after": post(b"content-length: 1 \t", body=b"a") + get(),
    "TE in upper case": post(b"TRANSFER-ENCODING: CHUNKED", body=b"0\r\n\r\n") + get(),
    "TE with a comma": post(b"transfer-encoding: ,chunked", body=b"0\r\n\r\n") + get(),
    "TE with a parameter": post(b"transfer-encoding: chunked;q=1", body=b"0\r\n\r\n") + get(),
    "TE quoted": post(b'transfer-encoding: "chunked"', body=b"0\r\n\r\n") + get(),
    "TE folded": post(b"transfer-encoding:\r\n chunked", body=b"0\r\n\r\n") + get(),
    "TE after LF": post(b"a: b\ntransfer-encoding: chunked", body=b"0\r\n\r\n") + get(),
    "TE after CR": post(b"a: b\rtransfer-encoding: chunked", body=b"0\r\n\r\n") + get(),
    "TE with an underscore": post(b"transfer_encoding: chunked", b"content-length: 5", body=b"0\r\n\r\n")
    + get(),
    "extension with LF": post(b"transfer-encoding: chunked", body=b"1;\na\r\na\r\n0\r\n\r\n") + get(),
    "extension with CR": post(b"transfer-encoding: chunked", body=b"1;\ra\r\na\r\n0\r\n\r\n") + get(),
    "extension with a quoted CRLF": post(b"transfer-encoding: chunked", body=b'1;a="\r\n"\r\na\r\n0\r\n\r\n')
    + get(),
    "chunk size with leading zeros": post(
        b"transfer-encoding: chunked", body=b"0" * 18 + b"1\r\na\r\n0\r\n\r\n"
    )
    + get(),
    "chunk size with a space after": post(b"transfer-encoding: chunked", body=b"1 \r\na\r\n0\r\n\r\n")
    + get(),
    "last chunk of many zeros": post(b"transfer-encoding: chunked", body=b"000\r\n\r\n") + get(),
    "last chunk with LF": post(b"transfer-encoding: chunked", body=b"0\n\n") + get(),
    "last chunk without its end": post(b"transfer-encoding: chunked", body=b"0\r\n") + get(),
    "leading zeros of a length": post(b"content-length: 0001", body=b"a") + get(),
    "GET with a body": get(b"content-length: 3") + b"abc" + get(),
    "HEAD with a body": get(b"content-length: 3", line=b"HEAD / HTTP/1.1") + b"abc" + get(),
    "close and more": get(b"connection: close") + get(),
    "close in a list": get(b"connection: foo, Close") + get(),
    "keep-alive and close": get(b"connection: keep-alive", b"connection: close") + get(),
    "two spaces": b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n" + get(),
    "RTSP": b"GET / RTSP/1.0\r\nhost: x\r\n\r\n" + get(),
    "empty lines between": get() + b"\r\n\r\n" + get(),
    "LF between": get() + b"\n" + get(),
}


@pytest.mark.parametrize("name", BY_HAND)
async def test_by_hand(name: str) -> None:
    data = BY_HAND[name]
    whole = await compare([data])
    split = await compare([bytes([byte]) for byte in data])
    assert split.seen == whole.seen
    assert [answer.status for answer in split.answers] == [answer.status for answer in whole.answers]


WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"\r\n\r\n",
        b"\xff",
        b"#",
        b"?",
        b"0\r\n\r\n",
    ),
    *(
        b"Content-Length: 3\r\n",
        b"content-length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"chunked",
        b"identity",
    ),
    *(
        b"Host: y\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"CONNECT ",
        b"http://h/",
        b"*",
        b"1",
        b"5",
        b"a",
        b"f",
    ),
    get(b"x-sprat-tier: smuggled"),
)
BASES = (
    *(data for data, _ in WELL_FORMED.values()),
    post(b"connection: upgrade", b"upgrade: h2c", b"content-length: 3", body=b"abc"),
    post(b"transfer-encoding: chunked", body=b"a\r\n0123456789\r\n2;x=y\r\n\r\n\r\n0\r\n\r\n"),
    post(b"expect: 100-continue", b"content-length: 2", body=b"ab"),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One to three requests with up to four changes, and their headers in another order."""
    data = bytearray(
        b"".join(
            _shuffled(draw, each) for each in draw(st.lists(st.sampled_from(BASES), min_size=1, max_size=3))
        )
    )
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(1, 12)))
        match draw(st.sampled_from(["insert", "delete", "duplicate", "replace", "byte", "swap"])):
            case "insert":
                data[at:at] = draw(st.sampled_from(WORDS))
            case "delete":
                del data[at:end]
            case "duplicate":
                data[at:at] = data[at:end]
            case "replace":
                data[at:end] = draw(st.sampled_from(WORDS))
            case "byte":
                data[at:end] = draw(st.binary(min_size=1, max_size=2))
            case "swap":
                data[at:end] = data[at:end][::-1]
    return bytes(data)


def _shuffled(draw: st.DrawFn, data: bytes) -> bytes:
    head, end, body = data.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    if not line or not draw(st.booleans()):
        return data
    return b"\r\n".join([line, *draw(st.permutations(headers))]) + end + body


@fault("requests changed at random", "never does the gateway see a request that h11 does not see")
def test_mutated(measured: Callable[..., None]) -> None:
    compared: Counter[str] = Counter()

    @given(data=mutated(), cuts=st.lists(st.integers(0, 400), max_size=3))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def at_any_cut(data: bytes, cuts: list[int]) -> None:
        offsets = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
        packets = [data[start:end] for start, end in pairwise(offsets)]
        outcome = runner.run(compare(packets or [data]))
        compared.update(examples=1, seen=len(outcome.seen))
        compared.update(refused=sum(answer.status >= 400 for answer in outcome.answers))

    with asyncio.Runner() as runner:
        at_any_cut()
    measured(**compared)


def test_the_reference_is_no_echo_of_ours() -> None:
    """It sees what we refuse, and refuses what it should: else this file would prove nothing."""
    assert reference(get() + post(b"content-length: 1")) == [("GET", b"/?", b""), ("POST", b"/?", b"a")]
    assert reference(b"GET / HTTP/1.1\nhost: x\n\n") == [("GET", b"/?", b"")]
    assert reference(get(b"a : b")) == []
