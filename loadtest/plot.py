"""The report as one self-contained SVG: for each mode requests per second, added time and processor cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from loadtest.systems import BASELINE

WIDTH, PANEL_HEIGHT, TOP, LEFT = 1200, 250, 76, 66
PANELS_PER_ROW = 3

# Told apart by people with any colour vision (Okabe and Ito); direct is the grey one.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#000000")
BASELINE_COLOUR = "#999999"

FONT = 'font-family="system-ui, sans-serif" font-size="12"'
HEADING = 'font-size="17" font-weight="600"'
BOLD = 'font-weight="600"'
PALE = 'fill="#555"'


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    mode: str
    field: str


def _panels(modes: Sequence[str]) -> list[Panel]:
    """Three per mode: how much, how long, at what cost."""
    panels = []
    for mode in modes:
        streamed = mode != "unary"
        added = ("added TTFT p50, ms", "added_ttft_p50_ms") if streamed else ("added p50, ms", "added_p50_ms")
        cost = (
            ("CPU µs per chunk", "cpu_us_per_chunk")
            if streamed
            else ("CPU µs per request", "cpu_us_per_request")
        )
        panels += [
            Panel(f"{mode}: requests per second", mode, "requests_per_s"),
            Panel(f"{mode}: {added[0]}", mode, added[1]),
            Panel(f"{mode}: {cost[0]}", mode, cost[1]),
        ]
    return panels


def plot(report: dict[str, Any]) -> str:
    """Concurrency across, logarithmic scales both ways; a value of 0 or less has no place on them."""
    rows = report["rows"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    panels = _panels(modes)
    height = TOP + PANEL_HEIGHT * math.ceil(len(panels) / PANELS_PER_ROW) + 26
    width = WIDTH / PANELS_PER_ROW
    drawn = [
        _panel(
            panel,
            rows,
            systems,
            number % PANELS_PER_ROW * width,
            TOP + number // PANELS_PER_ROW * PANEL_HEIGHT,
        )
        for number, panel in enumerate(panels)
    ]
    pinning = report["pinning"] or "none"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            _text(20, 26, f"Gateways before one stub engine, {report['date'][:10]}", HEADING),
            _text(
                20,
                46,
                f"{report['cores']} cores; pinning: {pinning}; closed loop, "
                f"{report['seconds_per_cell']:g} s per point; both axes logarithmic",
                PALE,
            ),
            _legend(systems),
            *drawn,
            _text(WIDTH - 20, height - 8, "concurrent callers", f'{PALE} text-anchor="end"'),
            "</svg>\n",
        )
    )


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _legend(systems: Sequence[str]) -> str:
    parts, x = [], 20
    for name in systems:
        parts.append(f'<rect x="{x}" y="56" width="14" height="4" fill="{_colour(name, systems)}"/>')
        parts.append(_text(x + 19, 63, name))
        x += 40 + 7 * len(name)
    return "".join(parts)


def _panel(panel: Panel, rows: Sequence[dict[str, Any]], systems: Sequence[str], x: float, y: float) -> str:
    points = {
        name: [
            (row["concurrency"], row[panel.field])
            for row in rows
            if row["mode"] == panel.mode and row["system"] == name and (row[panel.field] or 0) > 0
        ]
        for name in systems
    }
    shown = [point for each in points.values() for point in each]
    title = _text(x + 20, y + 26, panel.title, BOLD)
    if not shown:
        return title + _text(x + LEFT, y + 60, "no values", PALE)
    across = _Scale([c for c, _ in shown], x + LEFT, x + WIDTH / PANELS_PER_ROW - 22)
    up = _Scale([value for _, value in shown], y + PANEL_HEIGHT - 26, y + 44)
    grid = f'<line x1="{across.begin:.1f}" x2="{across.end:.1f}" stroke="#e4e4e4"'
    parts = [title]
    for value in up.ticks():
        height = up.at(value)
        parts.append(f'{grid} y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_text(across.begin - 8, height + 4, f"{value:,g}", f'{PALE} text-anchor="end"'))
    parts += [
        _text(across.at(c), up.begin + 18, str(c), f'{PALE} text-anchor="middle"')
        for c in sorted({c for c, _ in shown})
    ]
    for name, each in points.items():
        parts.append(_line(name, _colour(name, systems), sorted(each), across, up))
    return "".join(parts)


def _line(name: str, colour: str, points: list[tuple[int, float]], across: _Scale, up: _Scale) -> str:
    """With the figures as titles of the dots, which browsers show under the mouse."""
    corners = " ".join(f"{across.at(c):.1f},{up.at(value):.1f}" for c, value in points)
    dots = "".join(
        f'<circle cx="{across.at(c):.1f}" cy="{up.at(value):.1f}" r="3.2" fill="{colour}">'
        f"<title>{escape(name)}, c={c}: {value:,g}</title></circle>"
        for c, value in points
    )
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


class _Scale:
    """Logarithmic: the smallest value stands at `begin`, the largest at `end`."""

    STEPS = (1, 2, 5)

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self._low, self._high = min(values), max(values)
        if self._low == self._high:
            self._low, self._high = self._low / 2, self._high * 2

    def at(self, value: float) -> float:
        share = math.log(value / self._low) / math.log(self._high / self._low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Few enough to read: every 1, 2 and 5 of a decade, or the decades only."""
        decades = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
        every = [step * 10.0**power for power in decades for step in self.STEPS]
        inside = [value for value in every if self._low <= value <= self._high]
        return inside if len(inside) <= 7 else [v for v in inside if math.log10(v).is_integer()]


def _colour(name: str, systems: Sequence[str]) -> str:
    others = [each for each in systems if each != BASELINE]
    return BASELINE_COLOUR if name == BASELINE else COLOURS[others.index(name) % len(COLOURS)]
