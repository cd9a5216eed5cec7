"""Lines over two shares, as one self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, TOP, SIDE = 720, 520, 70, 60, 400
QUARTER = 0.25

# Told apart by people with any colour vision (Okabe and Ito). Dots have numbers: there may be more of them.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


class Line(NamedTuple):
    """`points` are (x, y), both shares; `mark` is one that is shown by itself."""

    name: str
    points: Sequence[tuple[float, float]]
    mark: tuple[float, float] | None = None


class Axis(NamedTuple):
    low: float = 0.0
    high: float = 1.0

    def part(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def steps(self) -> list[float]:
        first, last = ceil(self.low / QUARTER), floor(self.high / QUARTER)
        return [step * QUARTER for step in range(first, last + 1)]


def chart(heading: str, title: str, lines: Sequence[Line], x: Axis, y: Axis) -> str:
    def across(value: float) -> float:
        return LEFT + SIDE * x.part(value)

    def down(value: float) -> float:
        return TOP + SIDE * (1 - y.part(value))

    drawn = [
        f'<line x1="{LEFT}" y1="{down(level):.1f}" x2="{LEFT + SIDE}" y2="{down(level):.1f}" stroke="#ddd"/>'
        f'<text x="{LEFT - 8}" y="{down(level) + 4:.1f}" text-anchor="end">{level:.0%}</text>'
        for level in y.steps()
    ]
    drawn += [
        f'<text x="{across(share):.1f}" y="{TOP + SIDE + 18}" text-anchor="middle">{share:.0%}</text>'
        for share in x.steps()
    ]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{across(at):.1f},{down(value):.1f}" for at, value in line.points)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if line.mark is not None:
            at, value = line.mark
            left, top = across(at), down(value)
            drawn.append(
                f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>'
                f'<text x="{left + 6:.1f}" y="{top + 14:.1f}" fill="{colour}">{number + 1}</text>'
            )
        name = line.name if line.mark is None else f"{number + 1}  {line.name}"
        drawn.append(
            f'<text x="{LEFT + SIDE + 16}" y="{TOP + 20 * number + 14}" fill="{colour}">{escape(name)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<text x="{LEFT}" y="24" font-size="13" font-weight="600">{escape(heading)}</text>'
        f'<text x="{LEFT}" y="42" fill="#555">{escape(title)}</text>{"".join(drawn)}</svg>\n'
    )
