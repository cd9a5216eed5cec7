"""The kernel benchmark: its arithmetic, what it takes for right, what survives a cut, the rivals' files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from triton.runtime.errors import OutOfResources

from kernels.batch import BASE_ROW
from kernels.benchmark import command, plots, tune_ours, tune_vllm
from kernels.benchmark.cases import Case, CaseBuilder, Run
from kernels.benchmark.grid import CORE, GRIDS, LAYER, Cell
from kernels.benchmark.limits import MachineRates, limit_us, work_of
from kernels.benchmark.report import summary
from kernels.benchmark.rivals import PACKAGES, Sources, sglang_kernels
from kernels.benchmark.rivals.cublas_loop import AdapterLoop
from kernels.benchmark.rivals.files import Package, Unavailable, find, load
from kernels.benchmark.rows import OtherMachine, RowsFile, cell_of
from kernels.benchmark.run import Benchmark
from kernels.benchmark.timing import NoClock, Timing, WallClock
from kernels.benchmark.tuning import by_shape, geometric_means
from kernels.selection import Settings, Shape, table_line

ROOT = Path(__file__).parents[2]
H200 = MachineRates(copy_bytes_per_s=4.3e12, matmul_flops_per_s=788e12)
TINY = Cell("batch", 64, "qkv", 6, 2, "mixed", max_rank=32, max_loras=3, base_share=0.34)


def cell(projection="qkv", tokens=16, adapters=4, rank=16, hidden=4096, **changes) -> Cell:
    return replace(
        Cell("batch", hidden, projection, tokens, adapters, str(rank), rank, max_loras=64), **changes
    )


class TestLimits:
    """The tables of KERNELS.md section 5, which were computed apart from this code."""

    @pytest.mark.parametrize(
        ("tokens", "adapters", "rank", "us"),
        [(1, 1, 8, 0.08), (16, 16, 16, 2.32), (64, 8, 64, 4.88), (64, 64, 64, 35.6), (256, 64, 16, 10.7)],
    )
    def test_decode_qkv(self, tokens, adapters, rank, us):
        work = work_of(cell("qkv", tokens, adapters, rank), bytes_per_number=2)

        assert limit_us(work, H200) == pytest.approx(us, rel=0.01, abs=0.005)

    @pytest.mark.parametrize(
        ("hidden", "tokens", "adapters", "rank", "us"),
        [(2048, 1, 1, 64, 1.34), (4096, 64, 8, 8, 5.79), (4096, 64, 64, 64, 159), (8192, 64, 64, 8, 45.1)],
    )
    def test_decode_layer(self, hidden, tokens, adapters, rank, us):
        work = work_of(cell(LAYER, tokens, adapters, rank, hidden), bytes_per_number=2)

        assert limit_us(work, H200) == pytest.approx(us, rel=0.01)

    def test_prefill(self):
        work = work_of(cell("gate_up", 8192, 4, 64), bytes_per_number=2)

        assert limit_us(work, H200) == pytest.approx(238, rel=0.01)
        assert work.flops / H200.matmul_flops_per_s == pytest.approx(49e-6, rel=0.01)

    def test_base_rows_are_no_work_and_ranks_count_as_they_are(self):
        half = cell("o", tokens=64, adapters=8, base_share=0.5)
        mixed = cell("o", tokens=4, adapters=4, max_loras=4, rank_mix="mixed", max_rank=64)

        assert work_of(half, 2) == work_of(cell("o", tokens=32, adapters=8), 2)
        assert work_of(mixed, 2).flops == 2 * (8 + 16 + 32 + 64) * (4096 + 4096)


class TestGrid:
    @pytest.mark.parametrize("name", GRIDS)
    def test_every_cell_is_a_batch_and_is_there_once(self, name):
        cells = GRIDS[name]

        assert len({cell_of(each.shape) for each in cells}) == len(cells)
        for each in cells:
            rows = each.slots()
            used = rows[rows != BASE_ROW]
            assert len(rows) == each.tokens
            assert len(set(used.tolist())) == each.adapters, each
            assert used.max() < each.max_loras, each
            assert np.mean(rows == BASE_ROW) == pytest.approx(each.base_share, abs=0.1), each
            assert each.ranks().max() <= each.max_rank, each

    def test_what_targets_are_stated_for_comes_first(self):
        questions = list(dict.fromkeys(each.question for each in GRIDS["full"]))

        assert questions[:4] == ["layer", "mixed_ranks", "batch", "short_prefill"]
        assert questions[: len(CORE)] == [question.__name__ for question in CORE]
        assert GRIDS["full"][: len(GRIDS["core"])] == GRIDS["core"]

    def test_the_cells_of_the_targets(self):
        grid = GRIDS["core"]

        assert (grid[0].tokens, grid[0].adapters, grid[0].rank_mix, grid[0].hidden) == (64, 16, "16", 4096)
        assert {each.tokens for each in grid if each.question == "batch"} == {1, 4, 16, 64, 128, 256}
        for each in grid:
            if each.question == "mixed_ranks":
                assert (each.max_rank, each.max_loras) == (64, 64)
                assert set(each.ranks()) == {8, 16, 32, 64}
        assert all(each.tokens >= 2048 for each in grid if each.path == "prefill")

    def test_prefill_rows_of_an_adapter_follow_each_other_and_decode_rows_do_not(self):
        changes = [np.count_nonzero(np.diff(cell(tokens=n, adapters=4).slots())) for n in (2048, 256)]

        assert changes[0] == 3
        assert changes[1] > 100


class Spoilt(AdapterLoop):
    """The adapter loop, and then something that must not be."""

    def __init__(self, spoil: Callable[[Case], None]) -> None:
        super().__init__("sprat")
        self._spoil = spoil

    def prepare(self, case: Case) -> Run:
        right = super().prepare(case)

        def run(index: int) -> None:
            right(index)
            self._spoil(case)

        return run


class Absent:
    name = "vllm_default"
    looping = False

    def prepare(self, case: Case) -> Run:
        raise Unavailable(f"not for {case.cell.tokens} tokens")


class Broken:
    name = "vllm_tuned"
    looping = False

    def prepare(self, case: Case) -> Run:
        raise ValueError("no such settings")


def benchmark(rows: RowsFile, clock=None, dtype=torch.float32, **systems) -> Benchmark:
    clock = clock or WallClock(seconds_per_cell=0, replays_min=2)
    builder = CaseBuilder(torch.device("cpu"), dtype, sets=2)
    return Benchmark(builder, clock, H200, systems, rows, {"device": "test"}, lambda _line: None)


def measured(system, which=TINY, **how) -> dict:
    rows = RowsFile(None, {})
    benchmark(rows, **how, sprat=system).measure([which], float("inf"))
    (row,) = rows.rows
    return row


class TestCorrectness:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("which", [TINY, replace(TINY, projection=LAYER)], ids=str)
    def test_a_right_one_is_exact(self, dtype, which):
        row = measured(AdapterLoop("sprat"), which, dtype=dtype)

        assert row["exact"] is True
        assert row["base_rows_exact"] is True
        assert row["deterministic"] is True

    def test_nothing_done_is_not_exact(self):
        row = measured(Spoilt(lambda case: case.reset()))

        assert row["exact"] is False
        assert row["error"] > 10

    def test_the_last_place_of_a_base_row_counts(self):
        def spoil(case: Case) -> None:
            y = case.linears[0].y
            row = int(np.flatnonzero(case.slots == BASE_ROW)[0])
            y[row, 3] = torch.nextafter(y[row, 3], torch.tensor(torch.inf))

        row = measured(Spoilt(spoil))

        assert row["base_rows_exact"] is False
        assert row["exact"] is False

    def test_one_wrong_row_of_another_adapter(self):
        def spoil(case: Case) -> None:
            mine, other = (int(np.flatnonzero(case.slots == slot)[0]) for slot in sorted(set(case.slots))[1:])
            case.linears[0].y[mine] += case.linears[0].y[other] - case.linears[0].y_before[other]

        assert measured(Spoilt(spoil))["exact"] is False

    def test_not_a_number_is_not_exact(self):
        assert measured(Spoilt(lambda case: case.linears[0].y.fill_(torch.nan)))["exact"] is False

    def test_other_bits_in_another_replay(self):
        generator = torch.Generator().manual_seed(1)

        def spoil(case: Case) -> None:
            case.linears[0].y[0] += 1e-3 * torch.rand((), generator=generator)

        assert measured(Spoilt(spoil))["deterministic"] is False


ANY_TIME = pytest.approx(1e6, abs=1e6)


class TestRows:
    def test_a_row_has_its_fields_and_names_the_machine(self):
        row = measured(AdapterLoop("sprat"))

        assert {*TINY.shape, "system", "us", "gb_s", "fraction_of_limit", "exact"} <= row.keys()
        assert row["us_p20"] <= row["us"] <= row["us_p80"]
        assert row["gb_s"] == pytest.approx(work_of(TINY, 4).bytes_min / row["us"] / 1e3)
        assert row["fraction_of_limit"] == pytest.approx(limit_us(work_of(TINY, 4), H200) / row["us"])
        assert row["lora_over_base"] == pytest.approx(row["us"] / row["base_us"])
        assert row["device"] == "test"

    def test_without_a_clock_there_is_no_figure(self):
        row = measured(AdapterLoop("sprat"), clock=NoClock())

        assert row["exact"] is True
        assert row["us"] is row["gb_s"] is row["fraction_of_limit"] is None

    def test_what_cannot_run_or_fails_is_listed_and_the_others_go_on(self):
        rows = RowsFile(None, {})
        systems = {"sprat": AdapterLoop("sprat"), "vllm_default": Absent(), "vllm_tuned": Broken()}
        benchmark(rows, **systems, sglang_csgmv=Unavailable("no wheel")).measure([TINY], float("inf"))
        by_system = {row["system"]: row for row in rows.rows}

        assert by_system["sprat"]["us"] > 0
        assert by_system["vllm_default"]["skipped"] == "not for 6 tokens"
        assert by_system["sglang_csgmv"]["skipped"] == "no wheel"
        assert by_system["vllm_tuned"]["failed"] == "ValueError: no such settings"
        assert summary(rows.rows)["skipped"]["sglang_csgmv"] == {"no wheel": 1}

    def test_a_run_goes_on_where_it_was_cut(self, tmp_path):
        file, machine = tmp_path / "rows.jsonl", {"device": "test"}
        cells = [TINY, replace(TINY, tokens=5)]
        first = {"sprat": Unavailable("no wheel"), "loop": AdapterLoop("loop"), "vllm_default": Absent()}
        left = benchmark(RowsFile(file, machine), **first).measure(cells[:1], float("inf"))
        file.write_text(file.read_text() + '{"cut sho')
        loop = AdapterLoop("loop")
        loop.prepare = lambda case: (
            pytest.fail("measured again") if case.cell.tokens == 6 else Broken().prepare(case)
        )
        rows = RowsFile(file, machine)
        second = {"sprat": AdapterLoop("sprat"), "loop": loop, "vllm_default": Absent()}
        again = benchmark(rows, **second).measure(cells, float("inf"))
        whole = RowsFile(file, machine).rows

        assert left == again == 0
        assert whole == rows.rows
        how = {
            (row["tokens"], row["system"]): [row["us"], row.get("skipped"), row.get("failed")]
            for row in whole
        }
        assert how == {
            (6, "sprat"): [ANY_TIME, None, None],
            (6, "loop"): [ANY_TIME, None, None],
            (6, "vllm_default"): [None, "not for 6 tokens", None],
            (5, "sprat"): [ANY_TIME, None, None],
            (5, "loop"): [None, None, "ValueError: no such settings"],
            (5, "vllm_default"): [None, "not for 5 tokens", None],
        }

    def test_time_that_is_used_up(self):
        rows = RowsFile(None, {})

        assert benchmark(rows, sprat=AdapterLoop("sprat")).measure([TINY] * 3, stop_s=0) == 3
        assert rows.rows == []

    def test_rows_of_another_machine_are_refused(self, tmp_path):
        RowsFile(tmp_path / "rows.jsonl", {"device": "one"})

        with pytest.raises(OtherMachine, match=r"begun on .*one.*this is .*two"):
            RowsFile(tmp_path / "rows.jsonl", {"device": "two"})

    def test_percentiles_are_per_op(self):
        assert Timing.of([50, 10, 30, 20, 40, 60], ops=10) == Timing(2, 3, 5, 6)


def made_up(which: Cell, us: dict[str, float], **changes) -> list[dict]:
    same = {"question": which.question, **which.shape, "exact": True, "deterministic": True}
    return [
        {**same, "system": system, "us": each, "fraction_of_limit": 1 / each, "lora_over_base": each / 10}
        | changes
        for system, each in us.items()
    ]


class TestReport:
    def test_geometric_means_over_the_cells_of_each_path(self):
        rows = [
            *made_up(cell(), {"sprat": 1, "vllm_default": 2, "sglang_csgmv": 3, "sglang_csgmv_128": 1.5}),
            *made_up(cell(rank_mix="mixed"), {"sprat": 2, "vllm_default": 16, "vllm_tuned": 6}),
            *made_up(cell(tokens=2048), {"sprat": 2, "vllm_default": 1}),
            *made_up(cell(tokens=8192), {"sprat": 8, "vllm_default": 1}),
            *made_up(cell(LAYER), {"sprat": 1, "vllm_default": 3}),
        ]
        found = summary(rows)

        assert found["geomean"] == {
            "decode_vs_vllm_default": pytest.approx(4),
            "decode_vs_vllm_tuned": pytest.approx(3),
            "decode_vs_csgmv": pytest.approx(1.5),
            "mixed_rank_vs_vllm_default": pytest.approx(8),
            "prefill_fraction_of_limit": pytest.approx(1 / 4),
        }
        assert found["layer_over_base"] == {"sprat": 0.1, "vllm_default": pytest.approx(0.3)}
        assert found["layer_vs_vllm_default"] == pytest.approx(3)

    def test_the_worst_cell_is_against_its_best_rival(self):
        rows = [
            *made_up(cell(), {"sprat": 2, "vllm_default": 10, "cublas_loop": 1, "torch_reference": 0.1}),
            *made_up(cell(tokens=64), {"sprat": 1, "vllm_default": 0.9}),
            *made_up(cell(tokens=2048), {"sprat": 100, "vllm_default": 1}),
        ]
        found = summary(rows)

        assert found["worst_vs_best_rival"] == pytest.approx(0.5)
        assert found["worst_cell"] == list(cell().shape.values())

    def test_a_wrong_result_of_ours_is_no_result(self):
        rows = made_up(cell(), {"sprat": 1}, exact=False) + made_up(cell(), {"vllm_default": 5})
        found = summary(rows)

        assert found["geomean"]["decode_vs_vllm_default"] is None
        assert found["not_exact"] == [list(cell().shape.values())]
        assert found["exact_share"] == {"sprat": 0.0, "vllm_default": 1.0}

    def test_one_replay_with_other_bits_is_enough(self):
        rows = made_up(cell(), {"sprat": 1}) + made_up(cell(tokens=4), {"sprat": 1}, deterministic=False)

        assert summary(rows)["deterministic"] is False

    def test_the_cpu_target_is_one_cell(self):
        target, half = GRIDS["cpu"][:2]
        times = {"sprat": 1, "vllm_cpu": 4}
        rows = made_up(target, times) + made_up(half, {"sprat": 1, "vllm_cpu": 50}, base_rows_exact=True)

        assert summary(rows)["cpu"] == {"speedup_vs_stock": pytest.approx(4), "base_rows_exact": True}
        assert summary(rows)["worst_vs_best_rival"] is None

    def test_nothing_measured(self):
        found = summary([])

        assert set(found["geomean"].values()) == {None}
        assert found["deterministic"] is None


class TestTuning:
    def test_cells_that_settings_cannot_tell_apart_are_chosen_for_together(self):
        few, many, other = cell(adapters=1), cell(adapters=8), cell(tokens=4)
        shapes = by_shape([few, other, many, cell(LAYER)], tune_ours.shape_of)

        assert list(shapes.values()) == [[few, many], [other]]
        assert next(iter(shapes)) == Shape(16, 4096, (4096, 1024, 1024), 16, 64)
        assert geometric_means([{"a": 1, "b": 2}, {"a": 16}]) == {"a": 4}

    def test_the_search_finds_the_least_of_a_bowl(self):
        def us_of(settings: tune_vllm.Settings) -> float:
            return abs(settings["split_k"] - 8) + abs(settings["block_k"] - 64) + settings["num_warps"]

        found, us = tune_vllm.search(tune_vllm.START["shrink"], tune_vllm.SPACE["shrink"], us_of)

        assert (found["split_k"], found["block_k"], found["num_warps"]) == (8, 64, 2)
        assert us == 2
        assert found["block_m"] == tune_vllm.START["shrink"]["block_m"]

    def test_the_keys_of_vllm(self):
        assert tune_vllm.keys("shrink", cell()) == ("65", "3", "16", "4096", "16")
        assert tune_vllm.keys("expand", cell()) == ("65", "3", "16", "16", "4096")

    def test_a_line_replaces_the_one_of_its_shape(self, tmp_path):
        path, shape = tmp_path / "folder" / "GPU.json", tune_ours.shape_of(cell())
        for parts in (2, 4):
            tune_ours.write_line(path, table_line(shape, Settings("split", parts=parts)))
            tune_ours.write_line(path, table_line(replace(shape, tokens=1), Settings("single")))
        lines = json.loads(path.read_text())["lines"]

        assert [(each["tokens"], each["settings"]["parts"]) for each in lines] == [(16, 4), (1, 16)]

    def test_our_table_gets_the_fastest_settings_of_each_shape(self, tmp_path, monkeypatch):
        space = [Settings("split", parts=parts) for parts in (2, 4, 8)]
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(tune_ours, "_search_space", lambda _shape: space)
        monkeypatch.setattr(
            tune_ours, "SpratKernels", lambda settings: Sleeping(abs(settings.parts - 4), settings.parts == 2)
        )
        said = []
        tune_ours.tune(
            *builder_and_clock(),
            [TINY, replace(TINY, adapters=1)],
            seconds=60,
            folder=tmp_path,
            say=said.append,
        )
        (line,) = json.loads((tmp_path / "Some_GPU.json").read_text())["lines"]

        assert line["settings"]["parts"] == 4
        assert (line["tokens"], line["columns"], line["slices"]) == (6, 64, 3)
        assert len(said) == 1

    def test_vllm_finds_what_was_tuned_where_it_looks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some-GPU 1")
        monkeypatch.setattr(
            tune_vllm, "SPACE", {op: {"block_m": (16, 32, 64)} for op in ("shrink", "expand")}
        )
        monkeypatch.setattr(tune_vllm, "VllmKernels", lambda *_how: TunedByRows())
        tune_vllm.tune(
            *builder_and_clock(),
            source=None,
            cells=[TINY],
            seconds=60,
            folder=tmp_path,
            say=lambda _line: None,
        )
        shrink, expand = (
            json.loads((tmp_path / f"Some_GPU_1_{name}.json").read_text())
            for name in ("SHRINK", "EXPAND_TRUE")
        )

        assert shrink["4"]["3"]["6"]["64"]["32"]["block_m"] == 32
        assert expand["4"]["3"]["6"]["32"]["64"]["block_m"] == 32

    def test_no_time_left(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        said = []
        tune_ours.tune(*builder_and_clock(), [TINY], seconds=-1, folder=tmp_path, say=said.append)

        assert said[0].startswith("out of time")
        assert not list(tmp_path.iterdir())


def builder_and_clock() -> tuple[CaseBuilder, WallClock]:
    return CaseBuilder(torch.device("cpu"), torch.float32, sets=1), WallClock(0, replays_min=2)


@dataclass
class Sleeping:
    """Takes so many milliseconds, or more of the device than there is."""

    ms: float
    too_large: bool = False

    def prepare(self, _case: Case) -> Run:
        def run(_index: int) -> None:
            if self.too_large:
                raise OutOfResources(300, 227, "shared memory")
            time.sleep(self.ms / 1e3)

        return run


class TunedByRows:
    def prepare_half(self, case: Case, op: str, settings: dict) -> Run:
        assert op in {"shrink", "expand"}
        return Sleeping(abs(settings["block_m"] - 32) / 16).prepare(case)


class TestPlots:
    def test_a_picture_for_each_question_that_was_measured(self, tmp_path):
        batch = [
            cell(tokens=n, adapters=min(n, 8), max_loras=8, projection=p)
            for n in (1, 64)
            for p in ("o", "qkv")
        ]
        rows = [
            row for n, each in enumerate(batch) for row in made_up(each, {"sprat": 1, "vllm_default": 2**n})
        ]
        written = plots.draw({"rows": rows, "device": "made <up>", "date": "2000-01-01"}, tmp_path)

        assert [path.name for path in written] == ["batch.svg"]
        assert plots.series_of(rows, plots.QUESTIONS[0]) == {
            "vllm_default": {"1": pytest.approx(2**0.5), "64": pytest.approx(2**2.5)}
        }
        root = ET.fromstring(written[0].read_text())
        texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "made <up>, 2000-01-01, cold weights" in texts
        assert {"1", "64", "vllm_default"} <= set(texts)


class TestFiles:
    PACKAGE = Package("some", ("some",), "some==1", ("some/first.py", "some/second.py"))

    def test_files_load_beside_stubs_and_leave_nothing_behind(self, tmp_path):
        (tmp_path / "some").mkdir()
        (tmp_path / "some/first.py").write_text("from some import flags\nVALUE = flags.NUMBER\n")
        (tmp_path / "some/second.py").write_text("from some.first import VALUE\nTWICE = 2 * VALUE\n")
        source = find(self.PACKAGE, tmp_path)
        before = dict(sys.modules)

        numbers = [load(source, {"some.flags": {"NUMBER": n}})["some.second"].TWICE for n in (1, 2)]

        assert numbers == [2, 4]
        assert sys.modules.keys() == before.keys()

    def test_an_installed_package_of_that_name_is_there_again_afterwards(self, tmp_path):
        (tmp_path / "json").mkdir()
        (tmp_path / "json/first.py").write_text("import json\nWHICH = json\n")
        source = find(Package("json", ("json",), "json==1", ("json/first.py",)), tmp_path)

        loaded = load(source, {})["json.first"]

        assert loaded.WHICH is not json
        assert sys.modules["json"] is json

    def test_a_folder_without_the_package_is_refused(self, tmp_path):
        with pytest.raises(Unavailable, match=r"holds no some/first\.py"):
            find(self.PACKAGE, tmp_path)

    def test_what_cannot_be_fetched_is_said(self, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:9/simple")
        monkeypatch.setenv("PIP_NO_INDEX", "1")

        with pytest.raises(Unavailable, match="some==1 is not installed and cannot be fetched"):
            find(self.PACKAGE, None)


class TestCsgmvLayout:
    def test_ranks_are_packed_and_base_rows_have_a_slot_of_rank_0(self):
        case = CaseBuilder(torch.device("cpu"), torch.float32, sets=1).build(TINY)
        weights = case.linears[0].sets[0]
        a, b = sglang_kernels.pack(case.ranks, weights.a, weights.b)
        segments = sglang_kernels.segments_of(case, chunk_rows_max=16)

        assert a.shape == (4, 3 * 32, 64)
        assert torch.equal(a[0, 8:16], weights.a[1][0, 0, :8])
        assert torch.equal(a[1, 32:48], weights.a[2][1, 0, :16])
        assert torch.equal(a[2], torch.cat([each[2, 0] for each in weights.a]))
        assert torch.equal(b[2], torch.cat([each[2, 0] for each in weights.b]))
        assert not a[3].any()
        assert segments.lora_ranks.tolist() == [8, 16, 32, 0]
        assert segments.weight_indices.tolist() == [0, 1, 3]
        assert segments.seg_indptr.tolist() == [0, 2, 4, 6]


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """The rivals' files alone, as they travel to a machine where nothing is installed."""
    folder = tmp_path_factory.mktemp("rivals")
    sources = Sources({})
    for package in PACKAGES:
        try:
            sources.of(package).copy_to(folder)
        except Unavailable as reason:
            pytest.skip(str(reason))
    return folder


def run_command(*arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "kernels.benchmark", "--json", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FIELDS = {"device", "date", "versions", "rows", "geomean", "worst_vs_best_rival", "deterministic", "cpu"}


class TestCommand:
    def test_every_system_is_right_in_the_interpreter_and_none_is_timed(self, collected):
        from_files = ["--vllm-src", collected, "--sglang-src", collected]
        result = run_command("--device", "interpreter", "--only", "o", *from_files)
        rows = {row["system"]: row for row in result["rows"]}

        assert rows.pop("vllm_tuned")["skipped"]
        assert len(rows) == 8
        for name, row in rows.items():
            assert (row["exact"], row["deterministic"], row["us"]) == (True, True, None), (name, row)
        assert result["versions"]["vllm"] == "0.32.0"
        assert result["versions"]["sglang"] == "0.5.23"
        assert result.keys() >= FIELDS

    def test_packed_slices_in_the_interpreter(self, collected):
        result = run_command(
            "--device", "interpreter", "--only", "qkv,sprat,sglang_csgmv", "--sglang-src", collected
        )

        assert [(row["system"], row["exact"]) for row in result["rows"]] == [
            ("sprat", True),
            ("sglang_csgmv", True),
        ]

    def test_the_cpu_path_is_timed_and_saved(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(command, "RESULTS", tmp_path)
        monkeypatch.setattr(command, "WallClock", Quick)
        code = command.main(["--device", "cpu", "--only", "o", "--json", "--save"])
        result = json.loads(capsys.readouterr().out)
        (saved,) = tmp_path.iterdir()

        assert code == 0
        assert result.keys() >= FIELDS
        assert json.loads(saved.read_text()) == result
        assert saved.name.startswith(result["date"][:10])
        # Quick times five calls: on a busy machine they say nothing of speed.
        assert result["cpu"]["speedup_vs_stock"] > 0
        assert result["cpu"]["base_rows_exact"] is True
        stock = [row for row in result["rows"] if row["system"] == "vllm_cpu" and row["base_share"]]
        assert [row["base_rows_exact"] for row in stock] == [False, False]

    def test_plots_of_a_saved_run(self, tmp_path, capsys):
        file = tmp_path / "run.json"
        rows = made_up(GRIDS["core"][20], {"sprat": 1, "vllm_default": 2})
        file.write_text(json.dumps({"device": "made up", "date": "2000-01-01", "rows": rows}))

        assert command.main(["plots", str(file), "--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / "batch.svg")]

    def test_collecting_what_was_collected(self, collected, tmp_path, capsys):
        from_files = ["--vllm-src", str(collected), "--sglang-src", str(collected)]

        assert command.main(["rivals", "--out", str(tmp_path), *from_files]) == 0
        assert "vllm 0.32.0, sglang 0.5.23" in capsys.readouterr().out
        copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
        assert copied == {path.relative_to(collected) for path in collected.rglob("*") if path.is_file()}

    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            (["--device", "cpu", "--only", "gpt"], "gpt: not one of"),
            (["tune-ours", "--device", "cpu"], "settings belong to a GPU"),
            pytest.param(
                [],
                "use --device cpu",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
            ),
        ],
    )
    def test_wrong_use_is_one_sentence(self, arguments, wanted, capsys):
        assert command.main(arguments) == 2
        assert wanted in capsys.readouterr().err


class Quick(WallClock):
    sets = 2

    def __init__(self) -> None:
        super().__init__(seconds_per_cell=0, replays_min=5)
