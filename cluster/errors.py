"""Errors with the HTTP status and the OpenAI error fields they become at the edge.

Every message is for the caller: what is wrong and what to do, no addresses, no paths of ours.
"""

from __future__ import annotations

from typing import Any


class SpratError(Exception):
    """Root of everything that sprat raises on purpose."""

    status = 500
    error_type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}
        if code is not None:
            self.code = code

    def to_openai(self) -> dict[str, Any]:
        """The body of OpenAI's error shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.error_type,
                "param": self.param,
                "code": self.code,
            }
        }


class ConfigError(SpratError):
    """The YAML, the state folder, the machine or a file that was given does not allow to start. Exit code 2
    at the command line."""

    code = "config"


class StartError(SpratError):
    """Starting or stopping the cluster failed. Exit code 1 at the command line."""

    code = "start"


class InvalidRequest(SpratError):
    status = 400
    error_type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthenticated(SpratError):
    status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class UnknownModel(SpratError):
    status = 404
    error_type = "invalid_request_error"
    code = "model_not_found"


class UnknownRoute(SpratError):
    status = 404
    error_type = "invalid_request_error"
    code = "unknown_url"


class MethodNotAllowed(SpratError):
    status = 405
    error_type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTimeout(SpratError):
    status = 408
    error_type = "invalid_request_error"
    code = "body_timeout"


class UnsupportedEncoding(SpratError):
    status = 415
    error_type = "invalid_request_error"
    code = "unsupported_encoding"


class BodyTooLarge(SpratError):
    status = 413
    error_type = "invalid_request_error"
    code = "body_too_large"


class AtCapacity(SpratError):
    """All slots of the candidates are taken: backpressure."""

    status = 429
    error_type = "rate_limit_error"
    code = "at_capacity"


class RateLimited(SpratError):
    """A rate limit of the key or the tenant."""

    status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class RequestTooLargeForLimit(InvalidRequest):
    """No waiting helps: the call is larger than the limit allows at once."""

    code = "request_exceeds_rate_limit"


class IdempotencyKeyReused(SpratError):
    status = 422
    error_type = "invalid_request_error"
    code = "idempotency_key_reused"


class IdempotencyKeyInUse(SpratError):
    status = 409
    error_type = "invalid_request_error"
    code = "idempotency_key_in_use"


class IdempotentCallCompleted(SpratError):
    status = 409
    error_type = "invalid_request_error"
    code = "already_completed"


class BudgetExceeded(SpratError):
    """The worst case of the call does not fit the budget. No Retry-After: it would not help."""

    status = 429
    error_type = "insufficient_quota"
    code = "insufficient_quota"


class BudgetUnavailable(SpratError):
    """The budget cannot be checked now, so the call is not made."""

    status = 503
    error_type = "server_error"
    code = "budget_unavailable"


class DeadlineExceeded(SpratError):
    """The call waited until its deadline and was never started."""

    status = 504
    error_type = "server_error"
    code = "deadline_exceeded"


class EngineFailed(SpratError):
    """The engine broke and no other candidate could answer."""

    status = 502
    error_type = "server_error"
    code = "engine_failed"


class NoReplica(SpratError):
    status = 503
    error_type = "server_error"
    code = "no_replica"


class SchedulerUnavailable(SpratError):
    """Redis is slow or gone."""

    status = 503
    error_type = "server_error"
    code = "scheduler_unavailable"


class StoreUnavailable(SpratError):
    """The SQL store is slow or gone."""

    status = 503
    error_type = "server_error"
    code = "store_unavailable"


class EngineTimeout(SpratError):
    status = 504
    error_type = "server_error"
    code = "engine_timeout"
