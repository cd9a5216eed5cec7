"""Line plots as inline SVG: axes, curves, marks. Knows nothing of load tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito 2008: told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 40, 52
TICKS = 5
MOST_POINTS = 400

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    label: str
    points: Sequence[Point]
    colour: str


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, which differ; on a logarithmic axis both are above 0."""

    title: str
    low: float
    high: float
    is_log: bool = False

    def position(self, value: float) -> float:
        """0 at the low end, 1 at the high end; values outside stay at the ends."""
        kept = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(kept / self.low) / math.log(self.high / self.low)
        return (kept - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.is_log else _linear_ticks(self.low, self.high)


def plot(title: str, curves: Sequence[Curve], x: Axis, y: Axis, mark: tuple[str, float] | None = None) -> str:
    """`mark` is a labelled vertical line at a value of x."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *(_x_tick(x, value) for value in x.ticks()),
        *(_y_tick(y, value) for value in y.ticks()),
        _title(x.title, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "middle"),
        _title(y.title, 4, TOP - 10, "start"),
        *([_mark(x, *mark)] if mark else []),
        *(_curve(curve, x, y) for curve in curves),
        "</svg>",
    ]
    return "".join(parts)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `MOST_POINTS` of them, evenly, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(number * step)] for number in range(MOST_POINTS)]


def short(value: float) -> str:
    """2500 → 2.5k; without zeros at the end."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.3g}"


def _title(text: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _curve(curve: Curve, x: Axis, y: Axis) -> str:
    path = " ".join(f"{_left(x, at):.1f},{_top(y, value):.1f}" for at, value in thinned(curve.points))
    label = f"<title>{escape(curve.label)}</title>"
    return f'<polyline points="{path}" stroke="{curve.colour}">{label}</polyline>'


def _mark(x: Axis, label: str, value: float) -> str:
    at = _left(x, value)
    anchor = "end" if x.position(value) > 0.5 else "start"
    shift = -5 if anchor == "end" else 5
    return (
        f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="mark" x="{at + shift:.1f}" y="{HEIGHT - BOTTOM - 8}" text-anchor="{anchor}">'
        f"{escape(label)}</text>"
    )


def _x_tick(axis: Axis, value: float) -> str:
    at = _left(axis, value)
    return (
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(value)}</text>'
    )


def _y_tick(axis: Axis, value: float) -> str:
    at = _top(axis, value)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>'
    )


def _left(axis: Axis, value: float) -> float:
    return LEFT + axis.position(value) * (WIDTH - LEFT - RIGHT)


def _top(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.position(value) * (HEIGHT - TOP - BOTTOM)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = _nice((high - low) / TICKS)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [tick for tick in ticks if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
