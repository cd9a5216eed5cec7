"""What the reports of `sprat eval` look like."""

from __future__ import annotations

from typing import Any

from cluster.router.evaluation.chart import Axis, Line, chart


def plot_router(report: dict[str, Any]) -> str:
    """Share of calls on the strong model → recovered gap."""
    policies = report["policies"]
    lines = [
        Line(
            f"{name}: APGR {each['apgr']:.3f}",
            [(at / (len(each["pgr"]) - 1), pgr) for at, pgr in enumerate(each["pgr"])],
        )
        for name, each in policies.items()
    ]
    values = [pgr for each in policies.values() for pgr in each["pgr"]]
    title = (
        f"{report['n']} prompts, protocol {report['protocol']}, {report['weak_model']} and "
        f"{report['strong_model']}, {report['date'][:10]}"
    )
    return chart(
        "Recovered gap (PGR) by share of calls on the strong model",
        title,
        lines,
        Axis(),
        Axis(min(0.0, *values), max(1.0, *values)),
    )


def plot_scope(report: dict[str, Any]) -> str:
    """Out-of-scope recall → in-scope accuracy, as the threshold rises; the dot is at the chosen one."""
    lines = [
        Line(
            f"{name}: {each['in_scope_accuracy']:.1%} / {each['out_of_scope_recall']:.1%}",
            [(recall, accuracy) for recall, accuracy in each["curve"]],
            (each["out_of_scope_recall"], each["in_scope_accuracy"]),
        )
        for name, each in report["systems"].items()
    ]
    title = f"{report['n_in_scope']} and {report['n_out_of_scope']} utterances, {report['date'][:10]}"
    return chart("In-scope accuracy by out-of-scope recall", title, lines, Axis(), Axis())
