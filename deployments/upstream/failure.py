"""How calls to an upstream fail, as the replica answers its gateway."""

from __future__ import annotations

from typing import Any


class UnreadableError(Exception):
    """The upstream's answer is not what its API promises. For the operator."""


class UpstreamFailure(Exception):
    """`message` may reach the client: no word of the upstream that is not redacted. After `retry_after_s` a
    call may succeed here; a gateway tries elsewhere first."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's shape, and `retry_after_s` where there is one."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": "invalid_request_error" if self.status < 429 else "upstream_error",
            "param": self.param,
            "code": self.code,
        }
        if self.retry_after_s is not None:
            error["retry_after_s"] = round(self.retry_after_s, 3)
        return {"error": error}
