"""What can be seen while a run lasts: lines on standard error and a tab of Locust's web page.

Both look at the latest calls only: sorting all of them again and again would take the processor from the
generator where it shares the process.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import gevent
from flask import Response, request
from locust.web import WebUI

from loadtest.generator.coordinator import Coordinator
from loadtest.metrics.call_record import CallRecord, Outcome
from loadtest.metrics.slo import Slo
from loadtest.metrics.summary import distribution_ms, groups
from loadtest.workloads.plan import Plan

LIVE_CALLS = 200
PROGRESS_S = 5.0
TAB = "sprat"

COLUMNS = {
    "name": "Latest calls of",
    "due": "Calls",
    "ok": "OK",
    "refused": "Refused",
    "failed": "Failed",
    "ttft_p50_ms": "TTFT p50 (ms)",
    "ttft_p95_ms": "TTFT p95 (ms)",
    "itl_p95_ms": "ITL p95 (ms)",
    "tpot_p50_ms": "TPOT p50 (ms)",
    "tpot_p95_ms": "TPOT p95 (ms)",
    "e2e_p50_ms": "E2E p50 (ms)",
    "e2e_p95_ms": "E2E p95 (ms)",
    "slo_percent": "SLO met (%)",
    "goodput_per_s": "Goodput (/s)",
    "cost_usd": "Cost (USD)",
    "saved_usd": "Saved (USD)",
}


def print_progress(coordinator: Coordinator, plan: Plan, slo: Slo | None) -> None:
    """Runs until it is killed."""
    while True:
        gevent.sleep(PROGRESS_S)
        if coordinator.started_s is None:
            print(f"{coordinator.ready_workers()} workers so far, waiting for more", file=sys.stderr)
            continue
        elapsed_s = coordinator.elapsed_s()
        progress = progress_line(coordinator.records, elapsed_s, _due(plan, elapsed_s), slo)
        print(progress, file=sys.stderr)


def _due(plan: Plan, elapsed_s: float) -> int | None:
    """Calls that should have started by now; in a closed loop all that are planned."""
    if not plan.is_open:
        return plan.count
    return bisect_right(plan.calls, elapsed_s, key=lambda call: call.at_s)


def progress_line(records: list[CallRecord], elapsed_s: float, due: int | None, slo: Slo | None) -> str:
    latest = records[-LIVE_CALLS:]
    ok = [record for record in latest if record.is_ok]
    ended = str(len(records)) if due is None else f"{len(records)} of {due}"
    refused = sum(record.outcome is Outcome.REFUSED for record in records)
    failed = sum(record.outcome is Outcome.FAILED for record in records)
    met = ""
    if slo is not None and latest:
        met = f", SLO met {100 * sum(map(slo.met_by, ok)) / len(latest):.1f} %"
    return (
        f"{elapsed_s:6.0f} s  ended {ended}, refused {refused}, failed {failed}; latest {len(latest)}: "
        f"TTFT p50/p95 {_pair([record.ttft_s for record in ok])} ms, "
        f"E2E p50/p95 {_pair([record.e2e_s for record in ok])} ms{met}, "
        f"late at most {1000 * max((record.lateness_s for record in latest), default=0.0):.1f} ms"
    )


def _pair(values_s: Sequence[float | None]) -> str:
    distribution = distribution_ms([value_s for value_s in values_s if value_s is not None])
    return "/".join(
        "-" if distribution[name] is None else f"{distribution[name]:.0f}" for name in ("p50", "p95")
    )


def add_tab(web_ui: WebUI, coordinator: Coordinator, slo: Slo | None) -> None:
    """Locust's page fetches `/stats/requests` every two seconds and shows `extended_stats` in the tabs
    and tables that its template arguments declare."""
    web_ui.template_args |= {
        "extended_tabs": [{"title": "Tokens, SLO and money", "key": TAB}],
        "extended_tables": [
            {"key": TAB, "structure": [{"key": key, "title": title} for key, title in COLUMNS.items()]}
        ],
    }
    assert web_ui.app is not None  # noqa: S101 (made by its constructor)

    @web_ui.app.after_request
    def with_our_rows(response: Response) -> Response:
        if request.path == "/stats/requests" and response.status_code == 200:
            stats = [{"key": TAB, "data": live_rows(coordinator.records, slo)}]
            response.set_data(json.dumps({**(response.json or {}), "extended_stats": stats}))
        return response


def live_rows(records: list[CallRecord], slo: Slo | None) -> list[dict[str, Any]]:
    """All calls, then each tier, then each tenant if there are several."""
    latest = records[-LIVE_CALLS:]
    if not latest:
        return []
    span_s = max(record.ended_s for record in latest) - min(record.intended_s for record in latest)
    tenants = groups(latest, lambda record: f"tenant {record.tenant}", slo)
    rows = [
        *groups(latest, lambda _: "all", slo),
        *groups(latest, lambda record: f"tier {record.tier or '(none)'}", slo),
        *(tenants if len(tenants) > 1 else []),
    ]
    return [_live_row(row, span_s) for row in rows]


def _live_row(group: dict[str, Any], span_s: float) -> dict[str, Any]:
    met = group["slo_attainment"]
    row = {
        **group,
        "slo_percent": None if met is None else round(100 * met, 1),
        "goodput_per_s": round(met * group["due"] / span_s, 2) if met is not None and span_s > 0 else None,
        **{
            f"{measure}_{name}_ms": group[f"{measure}_ms"][name]
            for measure in ("ttft", "itl", "tpot", "e2e")
            for name in ("p50", "p95")
        },
    }
    shown = {key: row[key] for key in COLUMNS}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in shown.items()}
