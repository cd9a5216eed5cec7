"""One row per call, in the order of the plan."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.metrics.call_record import CallRecord


def write_csv(file: Path, records: Sequence[CallRecord]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(COLUMNS))
        writer.writeheader()
        writer.writerows({name: column(record) for name, column in COLUMNS.items()} for record in records)


def _ms(seconds_s: float | None) -> float | None:
    return None if seconds_s is None else round(seconds_s * 1000, 3)


COLUMNS: dict[str, Any] = {
    "index": lambda call: call.index,
    "worker": lambda call: call.worker,
    "tenant": lambda call: call.tenant,
    "task": lambda call: call.task,
    "intended_s": lambda call: round(call.intended_s, 6),
    "lateness_ms": lambda call: _ms(call.lateness_s),
    "outcome": lambda call: call.outcome.value,
    "status": lambda call: call.status,
    "reason": lambda call: call.reason,
    "ttft_ms": lambda call: _ms(call.ttft_s),
    "tpot_ms": lambda call: _ms(call.tpot_s),
    "e2e_ms": lambda call: _ms(call.e2e_s),
    "itl_max_ms": lambda call: _ms(max(call.gaps_s, default=None)),
    "content_chunks": lambda call: 0 if call.ttft_s is None else len(call.gaps_s) + 1,
    "planned_prompt_tokens": lambda call: call.planned_prompt_tokens,
    "prompt_tokens": lambda call: call.prompt_tokens,
    "planned_output_tokens": lambda call: call.planned_output_tokens,
    "output_tokens": lambda call: call.output_tokens,
    "cost_usd": lambda call: call.cost_usd,
    "saved_usd": lambda call: call.saved_usd,
    "tier": lambda call: call.tier,
    "model": lambda call: call.model,
    "replica": lambda call: call.replica,
    "route": lambda call: call.route,
    "request_id": lambda call: call.request_id,
}
