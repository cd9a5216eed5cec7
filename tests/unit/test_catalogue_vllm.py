"""Each entry of the catalogue against the vLLM that is installed here. Importing it takes ten seconds."""

from __future__ import annotations

import pytest

from cluster.catalogue import Entry, families

pytest.importorskip("vllm", reason="vLLM is not installed")

ENTRIES = [entry for family in families() for entry in family.entries]


@pytest.fixture(autouse=True)
def vllm_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parser of flags loads plugins, ours among them, for the rest of the process."""
    monkeypatch.setenv("VLLM_PLUGINS", "")


def of_models(entries: list[Entry]) -> list[str]:
    return [entry.model for entry in entries]


def test_vllm_has_the_architectures_that_are_said_to_be_supported() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    registered = set(ModelRegistry.get_supported_archs())
    missing = [
        entry for entry in ENTRIES if not {entry.architecture, entry.served_architecture} <= registered
    ]

    assert of_models(missing) == of_models([entry for entry in ENTRIES if entry.unsupported is not None])


def test_vllm_knows_the_parsers() -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools = {None, *ToolParserManager.list_registered()}
    reasoning = {None, *ReasoningParserManager.list_registered()}

    assert of_models([entry for entry in ENTRIES if entry.tool_call_parser not in tools]) == []
    assert of_models([entry for entry in ENTRIES if entry.reasoning_parser not in reasoning]) == []


def test_vllm_knows_the_quantisations() -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    assert (
        of_models([entry for entry in ENTRIES if not {*entry.quantisations} <= {*QUANTIZATION_METHODS}]) == []
    )


def test_models_without_adapters_are_those_whose_class_takes_none() -> None:
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    takes_lora: dict[str, bool] = {}
    for entry in ENTRIES:
        if entry.unsupported is None:
            try:
                loaded = ModelRegistry.models[entry.served_architecture].load_model_cls()
            except ModuleNotFoundError as error:
                # Qwen 3.5 asks for it even without pictures, and the environment for CPUs is without.
                assert error.name == "torchvision"  # noqa: PT017 (others are importable)
            else:
                takes_lora[entry.model] = supports_lora(loaded)

    assert takes_lora == {
        entry.model: entry.no_adapters is None for entry in ENTRIES if entry.model in takes_lora
    }
    assert len(takes_lora) > len(ENTRIES) / 2


def test_vllm_takes_the_flags() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    for entry in ENTRIES:
        parser.parse_args([*entry.parser_flags, *entry.engine_options])  # exits on a flag it does not know
