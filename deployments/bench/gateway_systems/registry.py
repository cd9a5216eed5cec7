"""Names → how a system is started."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from deployments.bench.gateway_systems.ray_serve import ray_serve
from deployments.bench.gateway_systems.rivals import litellm, vllm_router
from deployments.bench.gateway_systems.sprat import CASCADE, LEARNED, sprat
from deployments.bench.gateway_systems.system import Bench, RunningSystem

Start = Callable[[Bench], AbstractAsyncContextManager[RunningSystem]]

STARTS: dict[str, Start] = {
    "sprat": sprat,
    "sprat-2": partial(sprat, name="sprat-2", processes=2),
    "sprat+learned": partial(sprat, name="sprat+learned", policy=LEARNED),
    "sprat+cascade": partial(sprat, name="sprat+cascade", policy=CASCADE),
    "vllm-router": vllm_router,
    "litellm": litellm,
    "ray-serve": ray_serve,
    "ray-serve-default": partial(ray_serve, name="ray-serve-default", fast=False),
}
