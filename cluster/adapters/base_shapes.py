"""The modules of a base model by the headers of its weights: what an adapter has to fit.

Truer than config.json: the shapes are those of the weights, whatever the architecture computes them from, and
no architecture has to be known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cluster.adapters.errors import BaseMismatch
from cluster.adapters.lora_modules import LoraModule
from cluster.adapters.safetensors_header import TensorEntry, read_header
from cluster.adapters.version import shown

_PLAIN = frozenset({"F16", "BF16", "F32", "F8_E4M3", "F8_E5M2"})
"""Types that keep the shape of the matrix; packed 4-bit weights do not."""

_LAYERS = "layers."
_EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """`shapes`: the end of a module's name → weights [out, in] that some module with this end has; empty
    where its weights are packed.

    The end, from `layers.` on: libraries disagree on what stands before it (`model.`,
    `language_model.model.`, `model.language_model.`), and two parts of a model may have equal ends."""

    shapes: dict[str, frozenset[tuple[int, ...]]]

    @classmethod
    def of_folder(cls, folder: Path) -> BaseShapes | None:
        """None where there are no safetensors. Raises AdapterCorrupt, OSError."""
        return cls.of_tensors(
            tensor for path in sorted(folder.glob("*.safetensors")) for tensor in read_header(path).values()
        )

    @classmethod
    def of_tensors(cls, tensors: Iterable[TensorEntry]) -> BaseShapes | None:
        found: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
        for tensor in tensors:
            module, _, parameter = tensor.name.rpartition(".")
            shapes = found[_end(module)]
            if parameter == "weight" and len(tensor.shape) == 2 and tensor.dtype in _PLAIN:
                shapes.add(tensor.shape)
        return cls({end: frozenset(shapes) for end, shapes in found.items()}) if found else None

    def check(self, modules: Iterable[LoraModule], base_model: str) -> None:
        """Raises BaseMismatch with the first module that does not fit. One that is no layer may be missing:
        `lm_head` is often tied to the embedding and has no weight of its own."""
        for module in modules:
            end = _end(module.name)
            known = self.shapes.get(end)
            if not known:
                if known is None and end.startswith(_LAYERS):
                    raise BaseMismatch(
                        f"the adapter changes {shown(module.name)}, which base model {base_model!r} does not "
                        "have. Name the base model that it was trained on."
                    )
                continue
            wanted = (module.out_features, module.in_features)
            matrices = ", ".join(str(list(shape)) for shape in sorted(known))
            if wanted not in known and not (end.endswith("embed_tokens") and wanted[::-1] in known):
                raise BaseMismatch(
                    f"the adapter changes {shown(module.name)} as a matrix of {list(wanted)}, base model "
                    f"{base_model!r} has {matrices} there. Name the base model that it was trained on."
                )


def _end(module: str) -> str:
    """`model.layers.0.mlp.up_proj` → `layers.0.mlp.up_proj`; `model.embed_tokens` → `embed_tokens`; all of
    any other name."""
    before, layers, after = module.partition(_LAYERS)
    if layers and (not before or before.endswith(".")):
        return layers + after
    last = module.rpartition(".")[2]
    return last if last in _EMBEDDINGS else module
