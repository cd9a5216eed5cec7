"""`GET /v1/models`: the base model and its adapters, in vLLM's form."""

from __future__ import annotations

from typing import Any

from deployments.sim.served_models import ServedModels


def models_page(served: ServedModels, context_tokens: int, started_s: int) -> dict[str, Any]:
    base = _card(served.base_model, started_s) | {"max_model_len": context_tokens}
    adapters = [_card(adapter, started_s) | {"parent": served.base_model} for adapter in served.adapters]
    return {"object": "list", "data": [base, *adapters]}


def _card(model: str, started_s: int) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": started_s,
        "owned_by": "sprat-sim",
        "root": model,
        "parent": None,
        "max_model_len": None,
    }
