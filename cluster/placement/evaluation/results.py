"""A comparison as committed files: the figures, and a picture of them."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

WIDTH, ROW, LEFT, TOP = 760, 34, 190, 64
PANELS = (
    ("loads_per_1000", "loads per 1,000 calls", "#0072b2"),
    ("cold_ttft_p99_ms", "p99 TTFT of cold calls, ms", "#d55e00"),
)
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def save(report: dict[str, Any], folder: Path = RESULTS) -> tuple[Path, Path]:
    """DATE-placement.json and .svg, with the shape in the name. Others of the same day and shape are
    replaced."""
    folder.mkdir(exist_ok=True)
    scenario = report["scenario"]
    shape = f"{scenario['adapters']}x{scenario['replicas']}-redraw-{scenario['redraw_every']}"
    stem = f"{report['date'][:10]}-placement-{shape}"
    table, plot = folder / f"{stem}.json", folder / f"{stem}.svg"
    table.write_text(json.dumps(report) + "\n", encoding="utf-8")
    plot.write_text(picture(report), encoding="utf-8")
    return table, plot


def picture(report: dict[str, Any]) -> str:
    """A bar per policy and figure, as one self-contained SVG."""
    rows, scenario = report["rows"], report["scenario"]
    width = (WIDTH - LEFT) // len(PANELS) - 70
    heading = (
        f"Simulated: {scenario['adapters']} adapters on {scenario['replicas']} replicas with "
        f"{scenario['slots']} places, Zipf({scenario['zipf']:g}), {scenario['utilisation']:.0%} busy, "
        f"seed {report['seed']}"
    )
    drawn = [f'<text x="16" y="24" font-size="14">{escape(heading)}</text>']
    for panel, (field, title, colour) in enumerate(PANELS):
        left = LEFT + panel * (width + 70)
        most = max([row[field] for row in rows] + [1e-9])
        drawn.append(f'<text x="{left}" y="{TOP - 12}">{escape(title)}</text>')
        for number, row in enumerate(rows):
            top = TOP + number * ROW
            long = width * row[field] / most
            if panel == 0:
                drawn.append(
                    f'<text x="{LEFT - 10}" y="{top + 16}" text-anchor="end">{escape(row["policy"])}</text>'
                )
            drawn.append(
                f'<rect x="{left}" y="{top}" width="{long:.1f}" height="{ROW - 12}" fill="{colour}"/>'
                f'<text x="{left + long + 6:.1f}" y="{top + 16}">{row[field]:,.0f}</text>'
            )
    height = TOP + len(rows) * ROW + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" {FONT}>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )
