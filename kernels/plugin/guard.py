"""May our wrapper take the place of vLLM's? Only where what it overrides is what we know (KERNELS.md 3.7).

The interface is internal to vLLM and moves between releases. A version that was not tested or a method with
other parameters means vLLM's own kernels, with a reason that reaches `sprat status`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

TESTED_VERSIONS = frozenset({"0.32.0"})

SWITCH = "SPRAT_LORA_KERNELS"
"""Environment variable: `sprat` (also when unset) or `stock`, vLLM untouched."""

_LINEAR = "(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, *, buffer=None, **kwargs)"
_WRAPPER = {
    "__init__": "(self, max_num_batched_tokens, max_batches, device, **kwargs)",
    "update_metadata": "(self, mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)",
    "add_shrink": "(self, y, x, lora_a_stacked, scale, **kwargs)",
    "add_expand": "(self, y, x, lora_b_stacked, output_slices, offset_start=0, add_inputs=True, **kwargs)",
    "add_lora_linear": _LINEAR,
}
_CPU_WRAPPER = _WRAPPER | {
    "add_lora_embedding": "(self, y, x, lora_b_stacked, add_inputs=True, **kwargs)",
    "add_lora_logits": "(self, y, x, lora_a_stacked, lora_b_stacked, scale, *, buffer=None, **kwargs)",
}

WRAPPERS: Mapping[str, Mapping[str, str]] = {
    "PunicaWrapperCPU": _CPU_WRAPPER,
    "PunicaWrapperGPU": _WRAPPER,
}
"""vLLM's wrapper class → parameters of the methods that ours overrides, as in the tested versions."""

MANAGER: Mapping[str, str] = {
    "activate_adapter": "(self, lora_id)",
    "_get_lora_layer_weights": "(self, lora_model, module_name)",
}
"""What true ranks are read from in LoRAModelManager."""


def switch_problem(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why the operator's switch leaves vLLM's kernels in place, or None."""
    value = environment.get(SWITCH, "sprat")
    if value == "sprat":
        return None
    if value == "stock":
        return f"switched off by {SWITCH}=stock"
    return f"{SWITCH} is {value!r}; use sprat or stock"


def version_problem(version: str) -> str | None:
    """`version`: vLLM's, with or without a local part such as `+cpu`."""
    if version.partition("+")[0] in TESTED_VERSIONS:
        return None
    return f"vLLM {version} is not among the tested versions ({', '.join(sorted(TESTED_VERSIONS))})"


def wrapper_problem(stock: type) -> str | None:
    """`stock`: the class that vLLM would use."""
    if stock.__name__ not in WRAPPERS:
        return f"vLLM's wrapper is {stock.__name__}, which is not among {', '.join(WRAPPERS)}"
    return signature_problem(stock, WRAPPERS[stock.__name__])


def signature_problem(owner: type, recorded: Mapping[str, str]) -> str | None:
    """The first method of `owner` whose parameters are not the recorded ones."""
    for name, wanted in recorded.items():
        method = getattr(owner, name, None)
        if method is None:
            return f"{owner.__name__}.{name} is gone"
        found = parameters_of(method)
        if found != wanted:
            return f"{owner.__name__}.{name} takes {found}, known is {wanted}"
    return None


def parameters_of(function: Callable[..., Any]) -> str:
    """Names, kinds and defaults, without annotations: those may change without harm."""
    signature = inspect.signature(function)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
