"""What a decision of the scheduler costs: server time per script, calls per second, round trip.

`python -m deployments.bench.scheduler_cost --bursts 16 --seconds 3` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from deployments.bench.admit_rate import measure_rates
from deployments.bench.cost_cases import Case, adapter_cases, plain_cases
from deployments.bench.script_cost import Plan, measure_scripts, report
from deployments.bench.throw_away_valkey import throw_away_valkey

PHASES = (plain_cases(), adapter_cases())
BURSTS = 16
RATE_SECONDS = 3.0


async def measure_cost(
    *, phases: tuple[tuple[Case, ...], ...], bursts: int, seconds: float
) -> dict[str, Any]:
    """The fields of `sprat bench scheduler --json` but for the overload. `seconds` per run of clients. In the
    main thread only."""
    with throw_away_valkey() as socket_path:
        scripts = report(await measure_scripts(socket_path, Plan(phases, bursts)))
    with throw_away_valkey() as socket_path:
        rates = await measure_rates(socket_path, seconds)
    return {**scripts, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description="internal: the cost part of the scheduler bench")
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--seconds", type=float, default=RATE_SECONDS)
    arguments = parser.parse_args()
    try:
        measured = asyncio.run(
            measure_cost(phases=PHASES, bursts=arguments.bursts, seconds=arguments.seconds)
        )
    except KeyboardInterrupt:
        sys.exit(130)
    json.dump(measured, sys.stdout)


if __name__ == "__main__":
    main()
