"""Our LoRA wrapper in vLLM's place, against the classes of the vLLM that is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.config import PoolConfig
from deployments import engine_vllm
from deployments.engine_vllm import VllmReplica, engine_flags
from kernels.cpu_comparison import Shape, comparison, table
from kernels.plugin import guard, health, ranks, register
from kernels.plugin.health import KernelReport, KernelsInUse, kernels_in_use
from kernels.reference import lora_linear_reference

vllm = pytest.importorskip("vllm")

from vllm.lora.layers import LoRAMapping  # noqa: E402
from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights  # noqa: E402
from vllm.lora.model_manager import LoRAModelManager  # noqa: E402
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU  # noqa: E402
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.plugins import load_plugins_by_group  # noqa: E402

from kernels.plugin.wrapper_cpu import SpratPunicaWrapperCPU  # noqa: E402

STOCK_CPU = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM's CPU build is not installed")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What reaches vLLM's log; that logger does not hand on to the root."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog


@pytest.fixture(autouse=True)
def vllm_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(guard.SWITCH, raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    platform = type(current_platform)
    answer, activate = platform.__dict__["get_punica_wrapper"], LoRAModelManager.activate_adapter
    yield
    platform.get_punica_wrapper = answer
    LoRAModelManager.activate_adapter = activate


class TestRegistration:
    def test_vllm_finds_the_entry_point(self) -> None:
        found = {each.name: each for each in entry_points(group="vllm.general_plugins")}

        assert found[health.PLUGIN].load() is register.register

    def test_vllm_is_given_our_wrapper(self) -> None:
        register.register()

        assert current_platform.get_punica_wrapper() == register.WRAPPER_CPU

    def test_a_second_call_changes_nothing(self) -> None:
        register.register()
        answer = type(current_platform).__dict__["get_punica_wrapper"]

        register.register()

        assert type(current_platform).__dict__["get_punica_wrapper"] is answer

    def test_the_switch_leaves_vllm_untouched(
        self, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
    ) -> None:
        answer = type(current_platform).__dict__["get_punica_wrapper"]
        monkeypatch.setenv(guard.SWITCH, "stock")

        register.register()

        assert type(current_platform).__dict__["get_punica_wrapper"] is answer
        assert "switched off by SPRAT_LORA_KERNELS=stock" in said.text

    def test_a_switch_nobody_knows_is_named(
        self, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv(guard.SWITCH, "off")

        register.register()

        assert current_platform.get_punica_wrapper() == STOCK_CPU
        assert "SPRAT_LORA_KERNELS is 'off'; use sprat or stock" in said.text

    def test_a_version_that_was_not_tested(
        self, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(vllm, "__version__", "0.33.1")
        register.register()

        assert current_platform.get_punica_wrapper() == STOCK_CPU
        assert "vLLM 0.33.1 is not among the tested versions (0.32.0)" in said.text

    def test_a_method_with_other_parameters(
        self, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(PunicaWrapperCPU, "add_shrink", lambda self, y, x, lora_a, scale: None)
        register.register()

        assert current_platform.get_punica_wrapper() == STOCK_CPU
        assert "PunicaWrapperCPU.add_shrink takes (self, y, x, lora_a, scale)" in said.text

    def test_a_wrapper_of_ours_that_does_not_load(self, said: pytest.LogCaptureFixture) -> None:
        assert register.wrapper_name("kernels.plugin.nothing.Wrapper", STOCK_CPU) == STOCK_CPU
        assert "kernels.plugin.nothing.Wrapper does not load: ModuleNotFoundError" in said.text

    def test_nothing_is_raised_into_vllm(
        self, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(register, "switch_problem", lambda: 1 / 0)

        register.register()

        assert current_platform.get_punica_wrapper() == STOCK_CPU
        assert "could not be registered" in said.text

    def test_an_allow_list_without_us(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_PLUGINS", "sprat_orphan_guard")

        assert health.PLUGIN not in load_plugins_by_group("vllm.general_plugins")
        assert health.reason_for(PunicaWrapperCPU) == (
            "VLLM_PLUGINS is 'sprat_orphan_guard' and does not list sprat"
        )


class TestGuard:
    @pytest.mark.parametrize("stock", [PunicaWrapperCPU, PunicaWrapperGPU])
    def test_the_installed_wrappers_are_known(self, stock: type) -> None:
        assert guard.wrapper_problem(stock) is None

    def test_the_installed_manager_is_known(self) -> None:
        assert guard.signature_problem(LoRAModelManager, guard.MANAGER) is None

    def test_the_installed_version_is_known(self) -> None:
        assert guard.version_problem(vllm.__version__) is None

    def test_a_local_version_part_is_no_other_version(self) -> None:
        assert guard.version_problem("0.32.0+cpu") is None
        assert guard.version_problem("0.32.0rc1") is not None

    def test_a_wrapper_nobody_knows(self) -> None:
        assert guard.wrapper_problem(dict) == (
            "vLLM's wrapper is dict, which is not among PunicaWrapperCPU, PunicaWrapperGPU"
        )

    def test_a_method_that_is_gone(self) -> None:
        assert guard.signature_problem(dict, {"activate": "(self)"}) == "dict.activate is gone"

    @pytest.mark.parametrize("name", guard.WRAPPERS["PunicaWrapperCPU"])
    def test_ours_takes_what_vllms_takes(self, name: str) -> None:
        ours, stock = getattr(SpratPunicaWrapperCPU, name), getattr(PunicaWrapperCPU, name)

        assert guard.parameters_of(ours) == guard.parameters_of(stock)


SLOT_TO_ADAPTER: list[int | None] = [11, None, 12, 13]
"""vLLM's adapter ids by slot; an id of 0 is a row without adapter."""

MIXED = (12, 0, 11, 11, 0, 13, 12)
SLOTS = np.array([2, -1, 0, 0, -1, 3, 2])
BASE = torch.from_numpy(SLOTS == -1)


def wrapper_for(mapping: tuple[int, ...], wrapper: type = SpratPunicaWrapperCPU) -> Any:
    """A wrapper that was told of a batch; every row is a token and is sampled from."""
    made = wrapper(64, 16, torch.device("cpu"), lora_config=None)
    made.update_metadata(LoRAMapping(mapping, mapping, is_prefill=True), SLOT_TO_ADAPTER, 5, 100)
    return made


@pytest.fixture
def weights() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Two packed slices, [4, 1, 8, 20] and [4, 1, 6 or 3, 8], every rank the largest."""
    generator = torch.Generator().manual_seed(0)
    a = tuple(torch.randn(4, 1, 8, 20, generator=generator) for _ in range(2))
    b = tuple(torch.randn(4, 1, width, 8, generator=generator) for width in (6, 3))
    return a, b


class TestWrapper:
    def test_a_mixed_batch(self, weights: Any) -> None:
        a, b = weights
        x, y = torch.randn(7, 20), torch.randn(7, 9)
        given_y = y.clone()
        wanted = lora_linear_reference(y, x, a, b, torch.tensor(SLOTS), ranks.ranks_of(a))

        wrapper_for(MIXED).add_lora_linear(y, x, a, b, 1.0, (6, 3))

        torch.testing.assert_close(y, wanted.float(), rtol=1e-4, atol=1e-4)
        assert torch.equal(y[BASE], given_y[BASE])

    def test_vllms_own_gives_base_rows_the_last_slot(self, weights: Any) -> None:
        """The bug that ours is free of (vLLM PR #48421). Gone from vLLM? Then say so in the README."""
        a, b = weights
        x, y = torch.randn(7, 20), torch.zeros(7, 9)

        wrapper_for(MIXED, PunicaWrapperCPU).add_lora_linear(y, x, a, b, 1.0, (6, 3))

        of_last_slot = torch.cat([x[BASE] @ a[s][3, 0].T @ b[s][3, 0].T for s in (0, 1)], dim=1)
        torch.testing.assert_close(y[BASE], of_last_slot, rtol=1e-4, atol=1e-4)

    def test_the_next_batch_replaces_the_last(self, weights: Any) -> None:
        a, b = weights
        wrapper = wrapper_for(MIXED)
        wrapper.update_metadata(LoRAMapping((0, 0), (0, 0), is_prefill=True), SLOT_TO_ADAPTER, 5, 100)
        x, y = torch.randn(2, 20), torch.zeros(2, 9)

        wrapper.add_lora_linear(y, x, a, b, 1.0, (6, 3))

        assert not y.any()

    def test_padding_rows_get_no_adapter(self, weights: Any) -> None:
        a, b = weights
        x, y = torch.randn(9, 20), torch.zeros(9, 9)

        wrapper_for(MIXED).add_lora_linear(y, x, a, b, 1.0, (6, 3))

        assert y[0].any()
        assert not y[7:].any()

    def test_fewer_rows_than_tokens_are_refused(self, weights: Any) -> None:
        a, b = weights

        with pytest.raises(ValueError, match="6 rows, but the batch has 7 tokens"):
            wrapper_for(MIXED).add_lora_linear(torch.zeros(6, 9), torch.randn(6, 20), a, b, 1.0, (6, 3))

    def test_the_two_steps_of_fully_sharded_layers(self, weights: Any) -> None:
        a, b = weights
        x, whole = torch.randn(7, 20), torch.randn(7, 9)
        wide = torch.cat([torch.randn(7, 2), whole], dim=1)
        left, wrapper, hidden = wide[:, :2].clone(), wrapper_for(MIXED), torch.zeros(2, 7, 8)
        wrapper.add_lora_linear(whole, x, a, b, 1.0, (6, 3))

        wrapper.add_shrink(hidden, x, a, 1.0)
        wrapper.add_expand(wide, hidden, b, (6, 3), offset_start=2, add_input=True)

        torch.testing.assert_close(wide[:, 2:], whole)
        assert torch.equal(wide[:, :2], left)
        assert not hidden[:, BASE].any()

    def test_embedding(self, weights: Any) -> None:
        _, (b, _) = weights
        looked_up, y = torch.randn(7, 8), torch.zeros(7, 6)

        wrapper_for(MIXED).add_lora_embedding(y, looked_up, b, add_input=True)

        wanted = torch.stack([b[slot, 0] @ row for slot, row in zip(SLOTS, looked_up, strict=True)])
        torch.testing.assert_close(y[~BASE], wanted[~BASE])
        assert not y[BASE].any()

    def test_logits(self, weights: Any) -> None:
        """y may have more columns than the vocabulary that B knows, or fewer."""
        (a, _), (b, _) = weights
        x = torch.randn(7, 20)
        for width in (4, 6, 9):
            y = torch.zeros(7, width)

            wrapper_for(MIXED).add_lora_logits(y, x, a, b, 1.0)

            known = min(width, 6)
            wanted = torch.zeros(7, 6)
            wrapper_for(MIXED).add_lora_linear(wanted, x, (a,), (b,), 1.0, (6,))
            torch.testing.assert_close(y[:, :known], wanted[:, :known])
            assert not y[:, known:].any()

    def test_logits_of_unknown_rows_are_refused(self, weights: Any) -> None:
        (a, _), (b, _) = weights

        with pytest.raises(ValueError, match="prompt_logprobs"):
            wrapper_for(MIXED).add_lora_logits(torch.zeros(9, 6), torch.randn(9, 20), a, b, 1.0)


K, R, LORAS = 5, 8, 3


def layer(slices: int, *, local_rank: int = R, tp_rank: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        lora_a_stacked=tuple(torch.zeros(LORAS, 1, local_rank, K) for _ in range(slices)),
        lora_b_stacked=tuple(torch.zeros(LORAS, 1, 4, R) for _ in range(slices)),
        tp_rank=tp_rank,
    )


def weights_of(rank: int) -> LoRALayerWeights:
    return LoRALayerWeights("m", rank, rank, torch.zeros(rank, K), torch.zeros(4, rank))


class Manager:
    """As much of vLLM's LoRAModelManager as ranks are read from."""

    def __init__(self, **modules: SimpleNamespace) -> None:
        self.modules = modules
        self.lora_index_to_id: list[int | None] = [None] * LORAS
        self.adapters: dict[int, dict[str, Any]] = {}

    def activate_adapter(self, lora_id: int) -> bool:
        if lora_id in self.lora_index_to_id:
            return False
        self.lora_index_to_id[self.lora_index_to_id.index(None)] = lora_id
        return True

    def get_adapter(self, lora_id: int) -> dict[str, Any]:
        return self.adapters[lora_id]

    def _get_lora_layer_weights(self, lora_model: dict[str, Any], module_name: str) -> Any:
        return lora_model.get(module_name)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.setattr(Manager, "activate_adapter", ranks.writing_ranks(Manager.activate_adapter))
    monkeypatch.setattr(ranks, "_RANKS", {})
    return Manager(qkv=layer(3), down=layer(1))


def ranks_in(module: SimpleNamespace, slot: int) -> list[int]:
    return ranks.ranks_of(module.lora_a_stacked)[:, slot].tolist()


class TestTrueRanks:
    def test_unknown_is_the_largest(self) -> None:
        module = layer(3)

        assert ranks.ranks_of(module.lora_a_stacked).tolist() == [[R] * LORAS] * 3
        assert ranks.ranks_of(module.lora_a_stacked).dtype == torch.int32

    def test_always_the_same_tensor(self, manager: Manager) -> None:
        before = ranks.ranks_of(manager.modules["qkv"].lora_a_stacked)
        manager.adapters[7] = {"down": weights_of(2)}

        manager.activate_adapter(7)

        assert ranks.ranks_of(manager.modules["qkv"].lora_a_stacked) is before
        assert before[:, 0].tolist() == [0, 0, 0]

    def test_of_each_module_and_slice(self, manager: Manager) -> None:
        packed = PackedLoRALayerWeights.pack([weights_of(4), None, weights_of(4)])
        manager.adapters[7] = {"qkv": packed}

        manager.activate_adapter(7)

        assert ranks_in(manager.modules["qkv"], 0) == [4, 0, 4]
        assert ranks_in(manager.modules["down"], 0) == [0]
        assert ranks_in(manager.modules["qkv"], 1) == [R, R, R]

    def test_a_slot_that_changes_hands(self, manager: Manager) -> None:
        manager.adapters |= {7: {"down": weights_of(2)}, 8: {"down": weights_of(5)}}
        manager.activate_adapter(7)
        manager.lora_index_to_id[0] = None

        manager.activate_adapter(8)

        assert ranks_in(manager.modules["down"], 0) == [5]
        manager.lora_index_to_id[0] = None
        manager.activate_adapter(7)
        assert ranks_in(manager.modules["down"], 0) == [2]

    def test_an_adapter_that_is_active_already_is_left_alone(self, manager: Manager) -> None:
        manager.adapters[7] = {"down": weights_of(2)}
        manager.activate_adapter(7)
        manager.adapters.clear()

        assert not manager.activate_adapter(7)
        assert ranks_in(manager.modules["down"], 0) == [2]

    def test_one_tensor_for_all_slices(self) -> None:
        assert ranks.slice_ranks(weights_of(6), 3) == [6, 6, 6]

    def test_parts_that_are_not_slices_have_the_largest_rank(self) -> None:
        """Two groups over four slices, as in_proj_qkv and in_proj_z."""
        packed = PackedLoRALayerWeights.pack([weights_of(4), weights_of(6)])

        assert ranks.slice_ranks(packed, 4) == [6, 6, 6, 6]

    @pytest.mark.parametrize(("tp_rank", "wanted"), [(0, 4), (1, 1)])
    def test_a_worker_that_has_half_the_rows_of_a(self, tp_rank: int, wanted: int) -> None:
        manager = Manager(up=layer(1, local_rank=4, tp_rank=tp_rank))
        manager.adapters[7] = {"up": weights_of(5)}
        manager.activate_adapter(7)

        ranks.write_ranks(manager, 7)

        assert ranks_in(manager.modules["up"], 0) == [wanted]

    def test_weights_nobody_understands_have_the_largest_rank(
        self, manager: Manager, said: pytest.LogCaptureFixture
    ) -> None:
        manager.adapters |= {7: {"down": weights_of(2)}, 8: {"down": object()}}
        manager.activate_adapter(7)
        manager.lora_index_to_id[0] = None

        manager.activate_adapter(8)

        assert ranks_in(manager.modules["down"], 0) == [R]
        assert "down is computed at the largest rank for adapter 8" in said.text

    def test_what_is_no_linear_layer_is_passed_over(self, manager: Manager) -> None:
        embedding = SimpleNamespace(lora_a_stacked=torch.zeros(LORAS, 100, R))
        experts = SimpleNamespace(lora_a_stacked=[torch.zeros(R, K)])
        manager.modules |= {"embedding": embedding, "experts": experts, "none": SimpleNamespace()}
        manager.adapters[7] = {"down": weights_of(2)}

        manager.activate_adapter(7)

        assert ranks_in(manager.modules["down"], 0) == [2]

    def test_vllms_method_is_wrapped_once(self) -> None:
        ranks.keep_ranks_current()
        wrapped = LoRAModelManager.activate_adapter
        assert hasattr(wrapped, "writes_ranks_for_sprat")

        ranks.keep_ranks_current()

        assert LoRAModelManager.activate_adapter is wrapped

    def test_a_method_with_other_parameters_is_left_alone(
        self, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
    ) -> None:
        def other(self: Any, lora_id: int, slot: int) -> bool:
            raise NotImplementedError

        monkeypatch.setattr(LoRAModelManager, "activate_adapter", other)

        ranks.keep_ranks_current()

        assert LoRAModelManager.activate_adapter is other
        assert "every adapter is computed at the largest rank" in said.text


class Engine:
    def __init__(self, *answers: dict[str, str] | Exception) -> None:
        self.answers = answers

    async def collective_rpc(self, method: str, timeout: float | None = None) -> list[Any]:  # noqa: ASYNC109
        assert hasattr(KernelReport, method)
        for answer in self.answers:
            if isinstance(answer, Exception):
                raise answer
        return list(self.answers)


def worker_with(*wrappers: Any) -> KernelReport:
    worker = KernelReport()
    manager = SimpleNamespace(punica_wrapper_mapping=dict(enumerate(wrappers)))
    worker.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))
    return worker


OURS, STOCK = {"name": "sprat", "reason": ""}, {"name": "stock", "reason": "switched off"}


class TestHealth:
    def test_a_worker_with_our_wrapper(self) -> None:
        assert worker_with(wrapper_for(MIXED)).report_lora_kernels() == OURS

    def test_a_worker_with_one_foreign_wrapper(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(guard.SWITCH, "stock")
        worker = worker_with(wrapper_for(MIXED), wrapper_for(MIXED, PunicaWrapperCPU))

        assert worker.report_lora_kernels() == {
            "name": "stock",
            "reason": "switched off by SPRAT_LORA_KERNELS=stock",
        }

    def test_a_reason_that_only_the_log_knows(self) -> None:
        assert "vLLM chose PunicaWrapperCPU" in health.reason_for(PunicaWrapperCPU)

    async def test_all_workers_must_have_it(self) -> None:
        assert await kernels_in_use(Engine(OURS, OURS)) == KernelsInUse("sprat")
        assert await kernels_in_use(Engine(OURS, STOCK)) == KernelsInUse("stock", "switched off")

    async def test_what_cannot_be_asked_is_not_ours(self) -> None:
        found = await kernels_in_use(Engine(AttributeError("no report_lora_kernels")))

        assert found == KernelsInUse(
            "stock", "the workers do not say: AttributeError: no report_lora_kernels"
        )

    def test_the_extension_is_found_by_its_name(self) -> None:
        from vllm.utils.import_utils import resolve_obj_by_qualname

        assert resolve_obj_by_qualname(health.WORKER_EXTENSION) is KernelReport


class TestReplica:
    """What a replica asks vLLM for, and says when it did not get it."""

    @staticmethod
    def pool(**changes: Any) -> PoolConfig:
        return PoolConfig.model_validate(
            {
                "tier": "small",
                "base_model": "tiny",
                "node_class": "cheap",
                "context_tokens": 256,
                "throughput": {"prompt_tokens_per_s": 1, "output_tokens_per_s": 1},
                "adapters": ["intent@1"],
            }
            | changes
        )

    async def checked(self, engine: Engine, **changes: Any) -> SimpleNamespace:
        """Not a real one: that has an asynchronous `__del__`, for Ray Serve to call."""
        replica = SimpleNamespace(
            pool_name="specialist",
            pool=self.pool(**changes),
            kernels=VllmReplica.kernels,
            warning=VllmReplica.warning,
        )
        await VllmReplica._check_kernels(replica, engine)
        return replica

    def test_it_asks_for_our_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        environment: dict[str, str] = {}
        monkeypatch.setattr(engine_vllm.os, "environ", environment)

        engine_vllm._set_environment(self.pool(), on_gpu=False)

        assert health.PLUGIN in environment["VLLM_PLUGINS"].split(",")
        assert environment[guard.SWITCH] == "sprat"
        flags = engine_flags(self.pool(), "/weights")
        assert flags[flags.index("--worker-extension-cls") + 1] == health.WORKER_EXTENSION

    def test_the_pool_can_ask_for_vllms_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        environment: dict[str, str] = {}
        monkeypatch.setattr(engine_vllm.os, "environ", environment)

        engine_vllm._set_environment(self.pool(kernels="stock"), on_gpu=False)

        assert guard.switch_problem(environment) == "switched off by SPRAT_LORA_KERNELS=stock"

    @pytest.mark.parametrize("answer", [OURS, STOCK], ids=lambda answer: answer["name"])
    async def test_what_it_asked_for_is_no_news(self, answer: dict[str, str]) -> None:
        replica = await self.checked(Engine(answer), kernels=answer["name"])

        assert (replica.kernels, replica.warning) == (answer["name"], "")

    async def test_what_it_did_not_get_is_in_its_status(self) -> None:
        replica = await self.checked(Engine(STOCK))

        assert replica.kernels == "stock"
        assert replica.warning == "adapters run on stock kernels, not on sprat: switched off"

    async def test_without_adapters_there_are_none(self) -> None:
        replica = await self.checked(Engine(RuntimeError("asked")), adapters=[])

        assert (replica.kernels, replica.warning) == ("none", "")


def test_the_comparison_on_cpu() -> None:
    shapes = (Shape(16, 2), Shape(16, 2, base_share=0.5, widths=(8, 4)))

    result = comparison(3, shapes)

    assert result["cpu"]["base_rows_exact"] is True
    assert result["cpu"]["speedup_vs_stock"] == result["rows"][0]["speedup"]["p50"] > 0
    for row in result["rows"]:
        assert 0 < row["ours_us"]["p20"] <= row["ours_us"]["p50"] <= row["ours_us"]["p80"]
        assert max(row["ours_max_error"], row["stock_max_error"]) < 1e-4
    assert [row["stock_base_rows_exact"] for row in result["rows"]] == [True, False]
    assert len(table(result).splitlines()) == 1 + len(shapes)
