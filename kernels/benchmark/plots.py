"""One picture per question, as SVG: how many times faster ours is than each rival."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, exp, log, log2
from pathlib import Path
from typing import Any

from kernels.benchmark.report import BASELINES
from kernels.benchmark.rivals import OURS
from kernels.benchmark.rows import Row, cell_of


@dataclass(frozen=True)
class Question:
    """`of` names the point on the x axis that a row belongs to; None if it answers another question."""

    name: str
    title: str
    x_label: str
    of: Callable[[Row], str | None]


def _by_batch(row: Row) -> str | None:
    whole = row["rank_mix"] == str(row["max_rank"]) and not row["base_share"]
    asked = row["path"] == "decode" and row["hidden"] == 4096 and row["max_loras"] == 8 and whole
    return str(row["tokens"]) if asked and row["adapters"] == min(row["tokens"], 8) else None


def _by_rank_mix(row: Row) -> str | None:
    engine = (row["path"], row["hidden"], row["max_rank"], row["max_loras"])
    asked = engine == ("decode", 4096, 64, 64) and row["adapters"] == 64 and row["tokens"] in {64, 256}
    return str(row["rank_mix"]) if asked else None


def _by_adapters(row: Row) -> str | None:
    engine = (row["path"], row["hidden"], row["max_rank"], row["max_loras"])
    asked = engine == ("decode", 4096, 16, 64) and row["tokens"] in {64, 256} and not row["base_share"]
    return str(row["adapters"]) if asked else None


QUESTIONS = (
    Question(
        "batch",
        "Decode, hidden 4096, rank 16 and 64, 8 slots",
        "tokens in the batch",
        _by_batch,
    ),
    Question(
        "rank_mix",
        "Decode, hidden 4096, 64 adapters in 64 slots, largest rank 64",
        "true rank",
        _by_rank_mix,
    ),
    Question(
        "adapters",
        "Decode, hidden 4096, 64 and 256 tokens, rank 16, 64 slots",
        "adapters in the batch",
        _by_adapters,
    ),
)

Series = Mapping[str, Mapping[str, float]]
"""Rival → x → geometric mean of its time over ours."""


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """A file per question that the rows answer."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for question in QUESTIONS:
        series = series_of(result["rows"], question)
        if series:
            path = folder / f"{question.name}.svg"
            subtitle = f"{result['device']}, {result['date'][:10]}, cold weights"
            path.write_text(svg(question, series, subtitle), encoding="utf-8")
            written.append(path)
    return written


def series_of(rows: Sequence[Row], question: Question) -> Series:
    timed = [row for row in rows if row["us"] is not None and question.of(row) is not None]
    ours = {cell_of(row): row["us"] for row in timed if row["system"] == OURS and row["exact"]}
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in timed:
        if row["system"] not in {OURS, *BASELINES} and cell_of(row) in ours:
            by_x = ratios.setdefault(row["system"], {})
            by_x.setdefault(str(question.of(row)), []).append(row["us"] / ours[cell_of(row)])
    return {
        system: {x: exp(sum(map(log, each)) / len(each)) for x, each in by_x.items()}
        for system, by_x in ratios.items()
    }


WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 84, 56
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Told apart also by people who do not see all colours (Okabe and Ito)."""


def svg(question: Question, series: Series, subtitle: str) -> str:
    """Lines over a logarithmic axis: twice as fast is as far above 1 as half as fast is below."""
    xs = sorted({x for each in series.values() for x in each}, key=lambda x: (not x.isdigit(), x.zfill(6)))
    ratios = [ratio for each in series.values() for ratio in each.values()]
    low = min(0.5, 2.0 ** -ceil(-log2(min(ratios))))
    high = max(2.0, 2.0 ** ceil(log2(max(ratios))))

    def across(x: str) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (xs.index(x) + 0.5) / len(xs)

    def up(ratio: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * log(ratio / low) / log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 24, "How many times faster than each rival", size=14),
        _text(LEFT, 42, f"{question.title}, geometric mean over all projections", colour="#555"),
        _text(LEFT, 58, subtitle, colour="#555"),
    ]
    ratio = low
    while ratio <= high:
        y, width = up(ratio), 2 if ratio == 1 else 0.5
        parts += [
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-width="{width}"/>',
            _text(LEFT - 8, y + 4, f"{ratio:g}", anchor="end"),
        ]
        ratio *= 2
    parts += [_text(across(x), HEIGHT - BOTTOM + 20, x, anchor="middle") for x in xs]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, question.x_label, anchor="middle"))
    for index, (system, by_x) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = [(across(x), up(by_x[x])) for x in xs if x in by_x]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        legend_y = TOP + 10 + 20 * index
        parts += [
            f'<rect x="{WIDTH - RIGHT + 20}" y="{legend_y - 8}" width="12" height="8" fill="{colour}"/>',
            _text(WIDTH - RIGHT + 40, legend_y, system),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#111"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
