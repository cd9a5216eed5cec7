"""The report as one HTML page that fetches nothing: styles, tables and plots are inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from loadtest.metrics.call_record import CallRecord
from loadtest.metrics.slo import Slo
from loadtest.report.charts import charts

NOTHING = "-"
LATENCIES = {"TTFT": "ttft_ms", "ITL": "itl_ms", "TPOT": "tpot_ms", "E2E": "e2e_ms"}
QUANTILES = ("mean", "p50", "p90", "p95", "p99", "max")


def page(report: dict[str, Any], records: Sequence[CallRecord], slo: Slo | None) -> str:
    """Texts of servers stand in it (error messages, names), so everything is escaped."""
    environment = Environment(
        loader=PackageLoader("loadtest.report", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "usd": usd}
    return environment.get_template("page.html").render(
        report=report,
        charts=[(chart, Markup(chart.svg)) for chart in charts(records, slo)],  # noqa: S704 (ours, escaped)
        latencies=LATENCIES,
        quantiles=QUANTILES,
        groupings={"Tiers": report["tiers"], "Tenants": report["tenants"], "Tasks": report["tasks"]},
    )


def number(value: float | None) -> str:
    """Three to four significant digits, thousands apart."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f} %"


def usd(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.6f}" if abs(value) < 1 else f"{value:,.2f}"
