"""Rules of HTTP that need no connection."""

from __future__ import annotations

import pytest

from deployments.gateway.http.limits import HttpLimits
from deployments.gateway.http.rules import Refused, check_head

OPEN = HttpLimits(body_bytes=1000)
CLOSED = HttpLimits(body_bytes=1000, hosts=frozenset({b"api.example.com", b"api.example.com:8000"}))


@pytest.mark.parametrize("host", [b"api.example.com", b"API.example.com:8000"])
def test_a_host_on_the_list_is_answered(host: bytes) -> None:
    assert not check_head("1.1", {b"host": host}, 10, 1, CLOSED)


@pytest.mark.parametrize("host", [b"evil.example.com", b"api.example.com.evil.com", b"127.0.0.1"])
def test_another_host_is_not(host: bytes) -> None:
    assert not check_head("1.1", {b"host": host}, 10, 1, OPEN)
    with pytest.raises(Refused) as refused:
        check_head("1.1", {b"host": host}, 10, 1, CLOSED)
    assert refused.value.status == 421
