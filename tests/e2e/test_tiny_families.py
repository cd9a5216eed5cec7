"""Two families of the catalogue, tiny, on a real replica: the short form of `make prove-models`."""

from __future__ import annotations

import pytest

from cluster.catalogue import entry_named
from deployments.catalogue.prove import Target, prove

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.parametrize("model", ["qwen3-0.6b", "lfm2-350m"])
def test_a_tiny_model_of_the_family_answers_with_and_without_an_adapter(model: str) -> None:
    family, entry = entry_named(model)

    proof = prove(Target(family.family, entry, "tiny"))

    assert proof.reason == ""
    assert (proof.chat.ok, proof.stream.ok, proof.adapter.ok) == (True, True, True), proof
    assert proof.kernels == "sprat"
