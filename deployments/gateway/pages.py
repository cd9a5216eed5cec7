"""What is no call: models, health, feedback: an ordinary ASGI application."""

from __future__ import annotations

import time
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.errors import (
    MethodNotAllowed,
    SpratError,
    UnknownModel,
    UnknownRoute,
    UnsupportedEncoding,
)
from deployments.gateway.admission import Admission
from deployments.gateway.auth import Authenticator
from deployments.gateway.current_router import CurrentRouter
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.gateway.feedback import Feedback
from deployments.gateway.openapi import openapi
from deployments.version import version

OPEN_ROUTES = frozenset({"/livez", "/readyz"})
"""They need no key."""


def pages(
    current: CurrentRouter, admission: Admission, authenticator: Authenticator, feedback: Feedback
) -> Starlette:
    """The application. Who may see a page was decided before it is asked (`GatewayServer.handle`)."""
    started_s = int(time.time())

    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started_s, "owned_by": "sprat"}

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [entry(name) for name in current.router.names()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in current.router.names():
            raise UnknownModel(f"The model {name[:200]!r} does not exist here.", param="model")
        return _json(entry(name))

    async def livez(_: Request) -> Response:
        return _json({"state": "alive"})

    async def readyz(_: Request) -> Response:
        """From what this gateway knows already: a store that hangs must not hang its readiness. While Redis
        is away it is ready as long as any key may still be served."""
        known = {"decisions_without_redis": admission.decisions_without_redis}
        if not admission.may_serve:
            return _json({"state": "no replica is ready"} | known, 503)
        if not admission.store_is_away:
            return _json({"state": "ready"} | known)
        if await authenticator.anybody_served_without_redis():
            return _json({"state": "degraded", "reason": "Redis does not answer"} | known)
        return _json({"state": "Redis does not answer, and every key has a budget"} | known, 503)

    async def give_feedback(request: Request) -> Response:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedEncoding("Send the body as it is, without Content-Encoding.")
        headers = request.headers
        key = await authenticator.key_of(headers.get("authorization"), headers.get("x-api-key"))
        return _json(await feedback.give(key.tenant, await request.body()))

    async def api(_: Request) -> Response:
        return _json(openapi(ENDPOINTS, version(), current.router.names()))

    return Starlette(
        routes=[
            Route("/openapi.json", api),
            Route("/v1/models", models),
            Route("/v1/models/{name}", model),
            Route("/v1/feedback", give_feedback, methods=["POST"]),
            Route("/livez", livez),
            Route("/readyz", readyz),
        ],
        exception_handlers={SpratError: _sprat_error, HTTPException: _http_error},  # type: ignore[dict-item]
    )


async def _sprat_error(_: Request, error: SpratError) -> Response:
    response = _json(error.to_openai(), error.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return response


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = request.url.path[:200]
    found: SpratError = UnknownRoute(f"{request.method} {path} does not exist here.")
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "")
        found = MethodNotAllowed(f"{path} takes {allowed}.")
    response = _json(found.to_openai(), found.status)
    response.headers.update(error.headers or {})
    return response


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
