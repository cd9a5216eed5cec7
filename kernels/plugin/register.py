"""vLLM's entry point `vllm.general_plugins`: our LoRA wrapper instead of vLLM's (KERNELS.md section 3.2).

vLLM asks its platform for the name of a wrapper class when it builds the LoRA layers of a model. `register`
answers in the platform's place. It runs in every process of vLLM, several times in some; the checks, which
import half of vLLM, wait until a model with adapters is built. Nothing here raises into vLLM: whatever goes
wrong is logged and vLLM's own wrapper stays, which `health.py` then reports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kernels.plugin.guard import switch_problem, version_problem, wrapper_problem
from kernels.plugin.ranks import keep_ranks_current

# Below "vllm", the only logger that vLLM gives a handler.
logger = logging.getLogger("vllm.sprat")

WRAPPER_GPU = "kernels.plugin.wrapper_gpu.SpratPunicaWrapperGPU"
WRAPPER_CPU = "kernels.plugin.wrapper_cpu.SpratPunicaWrapperCPU"


def register() -> None:
    """Called by vLLM. A second call changes nothing."""
    try:
        _register()
    except Exception:
        logger.exception("sprat's LoRA kernels could not be registered: vLLM's own stay")


def _register() -> None:
    from vllm.platforms import current_platform

    problem = switch_problem()
    if problem is not None:
        logger.warning("vLLM's own LoRA kernels stay: %s", problem)
        return
    if current_platform.is_cuda():
        ours = WRAPPER_GPU
    elif current_platform.is_cpu():
        ours = WRAPPER_CPU
    else:
        logger.warning("vLLM's own LoRA kernels stay: none of sprat's run on %s", current_platform)
        return
    platform = type(current_platform)
    stock: Callable[[], str] = platform.get_punica_wrapper
    if hasattr(stock, "answers_for_sprat"):
        return

    def get_punica_wrapper(_cls: type) -> str:
        return wrapper_name(ours, stock())

    get_punica_wrapper.answers_for_sprat = True  # type: ignore[attr-defined]
    platform.get_punica_wrapper = classmethod(get_punica_wrapper)


def wrapper_name(ours: str, stock: str) -> str:
    """Dotted name of the class that vLLM shall use; `stock` where the guard says so or ours is broken."""
    try:
        problem = problem_with(ours, stock)
        if problem is None:
            keep_ranks_current()
    except Exception as error:
        logger.debug("what went wrong with %s", ours, exc_info=True)
        problem = f"{ours} does not load: {type(error).__name__}: {error}"
    if problem is None:
        return ours
    logger.error("vLLM's own LoRA kernels stay: %s", problem)
    return stock


def problem_with(ours: str, stock: str) -> str | None:
    """Why `ours` cannot stand in for `stock`, or None. Raises whatever importing the two raises."""
    import vllm
    from vllm.utils.import_utils import resolve_obj_by_qualname

    problem = version_problem(vllm.__version__) or wrapper_problem(resolve_obj_by_qualname(stock))
    if problem is None:
        resolve_obj_by_qualname(ours)
    return problem
