"""What the report of `sprat eval agents` looks like."""

from __future__ import annotations

from typing import Any

from cluster.router.evaluation.chart import Axis, Line, chart


def plot_agents(report: dict[str, Any]) -> str:
    """Cost, as a share of always asking the large model → share of right answers. A dot per policy, a line
    through all working points of those that have a dial."""
    dearest = report["policies"]["always_large"]["per_1000_usd"]

    def place(per_1000_usd: float, quality: float) -> tuple[float, float]:
        return per_1000_usd / dearest, quality

    lines = [
        Line(
            f"{name}: {each['quality']:.1%} right, {each['per_1000_usd'] / dearest:.0%}",
            [place(*point) for point in report["curves"].get(name, ())],
            place(each["per_1000_usd"], each["quality"]),
        )
        for name, each in report["policies"].items()
    ]
    marks = [line.mark for line in lines if line.mark is not None]
    everywhere = [*marks, *[point for line in lines for point in line.points]]
    models = report["models"]
    return chart(
        f"Right answers by cost (share of {dearest:.3g} USD per 1,000 calls, declared prices)",
        f"{report['n']} calls, {models['small']['model']} and {models['large']['model']}, "
        f"{report['date'][:10]}",
        lines,
        Axis(0.0, max(1.0, *(cost for cost, _ in everywhere))),
        Axis(0.0, max(0.1, *(quality for _, quality in everywhere))),
    )
