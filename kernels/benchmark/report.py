"""From rows to the summary: the ratios that the targets are stated for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log
from typing import Any

from kernels.benchmark.rivals import OURS
from kernels.benchmark.rows import Row, cell_of

CSGMV = ("sglang_csgmv", "sglang_csgmv_128")
BASELINES = ("torch_reference",)
"""No rival: nobody would serve with it."""

PREFILL_TOKENS_MIN = 2048


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The fields of COMMANDS.md that are computed from rows, and more. Null where nothing was measured.

    A cell counts where ours is exact; `not_exact` names the rows of ours that are not.
    """
    decode = _cells(rows, lambda row: row["path"] == "decode")
    mixed = _cells(rows, lambda row: row["path"] == "decode" and row["rank_mix"] == "mixed")
    layers = _cells(rows, lambda row: row["path"] == "layer")
    ours = [row for row in rows if row["system"] == OURS and row["exact"] is not None]
    long = [
        row["fraction_of_limit"]
        for row in ours
        if row["path"] == "prefill" and row["tokens"] >= PREFILL_TOKENS_MIN and _timed(row)
    ]
    worst = min(
        ((ratio, cell) for cell, us in decode.items() if (ratio := _best_rival(us)) is not None),
        default=(None, None),
    )
    return {
        "geomean": {
            "decode_vs_vllm_default": _speed_up(decode, ("vllm_default",)),
            "decode_vs_vllm_tuned": _speed_up(decode, ("vllm_tuned",)),
            "decode_vs_csgmv": _speed_up(decode, CSGMV),
            "mixed_rank_vs_vllm_default": _speed_up(mixed, ("vllm_default",)),
            "prefill_fraction_of_limit": _geomean(long),
        },
        "worst_vs_best_rival": worst[0],
        "worst_cell": worst[1] and list(worst[1]),
        "layer_over_base": {
            row["system"]: row["lora_over_base"]
            for row in rows
            if row["path"] == "layer" and row.get("lora_over_base")
        },
        "layer_vs_vllm_default": _speed_up(layers, ("vllm_default",)),
        "deterministic": all(row["deterministic"] for row in ours) if ours else None,
        "deterministic_share": _share(rows, "deterministic"),
        "exact_share": _share(rows, "exact"),
        "not_exact": [list(cell_of(row)) for row in ours if not row["exact"]],
        "skipped": _reasons(rows, "skipped"),
        "failed": _reasons(rows, "failed"),
        "cpu": _cpu(rows),
    }


Times = Mapping[str, float]
"""µs by system, of one cell."""


def _timed(row: Row) -> bool:
    """A wrong result of ours is no result; a rival is taken as it is."""
    return row["us"] is not None and (row["exact"] or row["system"] != OURS)


def _cells(rows: Iterable[Row], wanted: Callable[[Row], bool]) -> dict[tuple[Any, ...], Times]:
    cells: dict[tuple[Any, ...], Times] = {}
    for row in rows:
        if wanted(row) and _timed(row):
            cells[cell_of(row)] = {**cells.get(cell_of(row), {}), row["system"]: row["us"]}
    return cells


def _speed_up(cells: Mapping[tuple[Any, ...], Times], rivals: Sequence[str]) -> float | None:
    """Geometric mean over cells of a rival's time over ours; the faster where a rival has several ways."""
    ratios = [_against(us, rivals) for us in cells.values()]
    return _geomean([ratio for ratio in ratios if ratio is not None])


def _against(us: Times, rivals: Iterable[str]) -> float | None:
    times = [us[name] for name in rivals if name in us]
    return min(times) / us[OURS] if times and OURS in us else None


def _best_rival(us: Times) -> float | None:
    return _against(us, us.keys() - {OURS, *BASELINES})


def _geomean(values: Sequence[float]) -> float | None:
    return exp(sum(map(log, values)) / len(values)) if values else None


def _share(rows: Iterable[Row], field: str) -> dict[str, float]:
    """Of the rows that were measured, by system."""
    values: dict[str, list[bool]] = {}
    for row in rows:
        if row["exact"] is not None:
            values.setdefault(row["system"], []).append(row[field])
    return {system: sum(each) / len(each) for system, each in values.items()}


def _reasons(rows: Iterable[Row], field: str) -> dict[str, dict[str, int]]:
    """System → reason → number of cells."""
    reasons: dict[str, dict[str, int]] = {}
    for row in rows:
        if field in row:
            of_system = reasons.setdefault(row["system"], {})
            of_system[row[field]] = of_system.get(row[field], 0) + 1
    return reasons


def _cpu(rows: Sequence[Row]) -> dict[str, Any]:
    """The target's cell: 256 tokens, hidden 1024, rank 16, 8 adapters, no base row. `base_rows_exact` is over
    all cells with base rows; null without a run on a CPU."""
    on_cpu = [row for row in rows if row["path"] == "cpu" and row["exact"] is not None]
    target = _cells(
        on_cpu,
        lambda row: (
            (row["tokens"], row["adapters"], row["base_share"], row["projection"]) == (256, 8, 0.0, "o")
        ),
    )
    mixed = [row["base_rows_exact"] for row in on_cpu if row["system"] == OURS and row["base_share"]]
    return {
        "speedup_vs_stock": _speed_up(target, ("vllm_cpu",)),
        "base_rows_exact": all(mixed) if mixed else None,
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result for a reader: a line per cell with each system's µs, then the summary."""
    cells: dict[tuple[Any, ...], list[str]] = {}
    for row in result["rows"]:
        shown = "not measured" if row["us"] is None else f"{row['us']:.1f} µs"
        wrong = "" if row["exact"] in {True, None} else " WRONG"
        cells.setdefault(cell_of(row), []).append(f"{row['system']} {shown}{wrong}")
    shown_cells = [f"{' '.join(map(str, cell))}: {', '.join(each)}" for cell, each in cells.items()]
    rest = [f"{key}: {value}" for key, value in result.items() if key != "rows"]
    return [*shown_cells, "", *rest]
