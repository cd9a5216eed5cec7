"""The description of the API (OpenAPI 3.1), made from the same tables that check the bodies. Pure.

What joins several fields (`stream_options` needs `stream`) is said by the checks alone: a body that keeps to
this description may still get 400, and one that does not always does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import SpratError
from cluster.types import PriorityClass
from deployments.gateway.endpoints.checks import object_schema
from deployments.gateway.endpoints.endpoint import Endpoint, openai_error
from deployments.gateway.feedback import FIELDS as FEEDBACK_FIELDS
from deployments.gateway.feedback import REQUIRED as FEEDBACK_REQUIRED

Json = dict[str, Any]

REFUSALS: dict[int, str] = {
    400: "The body or a header is not what this route takes.",
    401: "No valid API key.",
    402: "Reserved: a budget that is used up is 429 today.",
    404: "The model, the route, or the call that feedback is about does not exist.",
    405: "Another method.",
    408: "The body did not arrive in time.",
    409: "The Idempotency-Key is in use, or its answer was not kept.",
    413: "The body is too large.",
    415: "The body is encoded in a way that is not taken.",
    422: "The Idempotency-Key came with another body before.",
    429: "A limit, a budget, or no slot in time. `retry-after` where waiting helps.",
    499: "The client has gone.",
    502: "The engine failed.",
    503: "No replica, or budgets cannot be checked now.",
    504: "Not started by its deadline, or no complete answer in time.",
}

HEADERS: list[Json] = [
    {
        "name": "x-sprat-tier",
        "in": "header",
        "description": "The tier, before any rule.",
        "schema": {"type": "string"},
    },
    {
        "name": "x-sprat-class",
        "in": "header",
        "description": "Who waits for whom when all slots are taken.",
        "schema": {"enum": [each.value for each in PriorityClass]},
    },
    {
        "name": "x-sprat-deadline-ms",
        "in": "header",
        "description": "A call that could not be started by then never is.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    },
    {
        "name": "idempotency-key",
        "in": "header",
        "description": "A retry under the same key gets the first answer.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
    },
]

NULLABLE_STRING = {"type": ["string", "null"]}
OPENAI_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": NULLABLE_STRING,
                "code": NULLABLE_STRING,
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
ANTHROPIC_ERROR: Json = {
    "type": "object",
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            "required": ["type", "message"],
        },
    },
    "required": ["type", "error"],
}

MODEL: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
    "required": ["id", "object", "created", "owned_by"],
}
FEEDBACK: Json = {
    "type": "object",
    "properties": {
        "object": {"const": "feedback"},
        "request_id": {"type": "string"},
        "score": {"type": "number"},
        "label": NULLABLE_STRING,
        "at_ms": {"type": "integer"},
    },
    "required": ["object", "request_id", "score", "label", "at_ms"],
}
STATE: Json = {"type": "object", "properties": {"state": {"type": "string"}}, "required": ["state"]}


def openapi(endpoints: Mapping[str, Endpoint], version: str, models: Sequence[str] = ()) -> Json:
    """The whole document. `endpoints`: by the path that clients use; `models`: what `model` may say
    (`Router.names`), any string if it is empty."""
    model = {"enum": list(models)} if models else {"type": "string", "minLength": 1, "maxLength": 128}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sprat", "version": version},
        "security": [{"bearer": []}, {"x-api-key": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Error": OPENAI_ERROR, "AnthropicError": ANTHROPIC_ERROR, "Model": MODEL},
        },
        "paths": {
            **{path: {"post": _call(path, endpoint, model)} for path, endpoint in endpoints.items()},
            "/v1/models": {"get": _page("Everything that `model` may say.", _list_of_models())},
            "/v1/models/{name}": {
                "get": _page("One of them.", {"$ref": "#/components/schemas/Model"}),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": model}],
            },
            "/v1/feedback": {
                "post": _page("How good the answer to a call was; the newest counts.", FEEDBACK)
                | {"requestBody": _json_body(object_schema(FEEDBACK_FIELDS, FEEDBACK_REQUIRED))}
            },
            "/livez": {"get": _page("Whether the process answers.", STATE) | {"security": []}},
            "/readyz": {"get": _page("Whether calls can be served.", STATE) | {"security": []}},
        },
    }


def _call(path: str, endpoint: Endpoint, model: Json) -> Json:
    content: Json = {"application/json": {"schema": {"type": "object"}}}
    if endpoint.stream is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    body = object_schema(endpoint.fields, endpoint.required)
    body["properties"]["model"] = model
    return {
        "operationId": path.strip("/").replace("/", "_"),
        "parameters": HEADERS,
        "requestBody": _json_body(body),
        "responses": {"200": {"description": "The engine's answer.", "content": content}}
        | _refusals(_error_schema(endpoint)),
    }


def _json_body(schema: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _page(description: str, schema: Json) -> Json:
    answer = {"description": description, "content": {"application/json": {"schema": schema}}}
    return {"responses": {"200": answer} | _refusals("Error")}


def _refusals(schema: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        str(status): {"description": description, "content": content}
        for status, description in REFUSALS.items()
    }


def _error_schema(endpoint: Endpoint) -> str:
    error = SpratError("")
    return "Error" if endpoint.error_body(error) == openai_error(error) else "AnthropicError"


def _list_of_models() -> Json:
    return {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
        "required": ["object", "data"],
    }
