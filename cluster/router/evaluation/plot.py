"""Cost-quality curves as one self-contained SVG: share of calls on the strong model → recovered gap."""

from __future__ import annotations

from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, SIDE = 720, 520, 70, 60, 400

# Told apart by people with any colour vision (Okabe and Ito).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
HEADING = "Recovered gap (PGR) by share of calls on the strong model"
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def plot(report: dict[str, Any]) -> str:
    """Of the report of `sprat eval router`."""
    curves = {name: each["pgr"] for name, each in report["policies"].items()}
    top = max(1.0, *(max(points) for points in curves.values()))
    bottom = min(0.0, *(min(points) for points in curves.values()))

    def y(pgr: float) -> float:
        return float(TOP + SIDE * (top - pgr) / (top - bottom))

    drawn = [
        f'<line x1="{LEFT}" y1="{y(level):.1f}" x2="{LEFT + SIDE}" y2="{y(level):.1f}" stroke="#ddd"/>'
        f'<text x="{LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.0%}</text>'
        for level in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    drawn += [
        f'<text x="{LEFT + SIDE * share}" y="{TOP + SIDE + 18}" text-anchor="middle">{share:.0%}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(
            f"{LEFT + SIDE * at / (len(points) - 1):.1f},{y(pgr):.1f}" for at, pgr in enumerate(points)
        )
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        apgr = report["policies"][name]["apgr"]
        drawn.append(
            f'<text x="{LEFT + SIDE + 16}" y="{TOP + 20 * number + 14}" fill="{colour}">'
            f"{escape(name)}: APGR {apgr:.3f}</text>"
        )
    title = (
        f"{report['n']} prompts, protocol {report['protocol']}, {report['weak_model']} and "
        f"{report['strong_model']}, {report['date'][:10]}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<text x="{LEFT}" y="24" font-size="13" font-weight="600">{HEADING}</text>'
        f'<text x="{LEFT}" y="42" fill="#555">{escape(title)}</text>{"".join(drawn)}</svg>\n'
    )
