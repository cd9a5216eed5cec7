"""`python -m loadtest run`: command line → plan → load → report and exit code."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.bad_input import BadInput
from loadtest.metrics.collected import Collected
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.metrics.verdict import BAD_INPUT, Finished, finish
from loadtest.workloads.grammar import FORMS, parse_workload
from loadtest.workloads.lengths import FORMS as LENGTH_FORMS
from loadtest.workloads.mix import Mix, Tenant, checked_tasks, parse_task, read_mix
from loadtest.workloads.plan import Caps, Plan, PlanInput, make_plan
from loadtest.workloads.prompts import CHARACTERS_PER_TOKEN
from loadtest.workloads.rate import parse_rate
from loadtest.workloads.traces import default_folders, find_trace, read_trace

if TYPE_CHECKING:
    from loadtest.generator.roles import Placing

KEY_VARIABLE = "OPENAI_API_KEY"
SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="load on one server, after a trace or an arrival process")
    parser.set_defaults(execute=run)
    load = parser.add_argument_group("load")
    load.add_argument("--workload", required=True, help=FORMS)
    load.add_argument("--rate", default="1x", help="0.5x scales the arrivals, 3/s sets their mean rate")
    load.add_argument("--duration", help="no call starts later: 60s, 5m, 1h")
    load.add_argument("--limit", type=int, help="the first so many requests")
    load.add_argument("--seed", type=int, default=1)
    load.add_argument("--lengths", default="256,64", help=f"where the workload has none: {LENGTH_FORMS}")
    load.add_argument("--traces", type=Path, help="folder of trace files, before SPRAT_TRACES")
    load.add_argument("--max-prompt-tokens", type=int, help="longer prompts are cut; the report counts them")
    load.add_argument("--max-output-tokens", type=int, help="longer answers are cut; the report counts them")
    load.add_argument("--chars-per-token", type=float, default=CHARACTERS_PER_TOKEN, help="of the prompts")
    server = parser.add_argument_group("server")
    server.add_argument("--endpoint", default="http://127.0.0.1:8000/v1", help="OpenAI base URL")
    server.add_argument("--api-key", help=f"default: ${KEY_VARIABLE}")
    server.add_argument("--model", default="auto")
    server.add_argument("--unary", action="store_true", help="whole answers instead of streams")
    server.add_argument("--task", action="append", default=[], help="NAME or NAME=SHARE: metadata.task")
    server.add_argument("--mix", type=Path, help="YAML list of tenants: name, key, weight, task")
    server.add_argument("--timeout", default="300s", help="longest duration of one call")
    server.add_argument("--warm-up", type=int, default=1, help="calls before the run, not measured")
    verdict = parser.add_argument_group("verdict and output")
    verdict.add_argument("--slo", help="ttft_p95_s=2,tpot_p95_ms=80,e2e_p95_s=30 or a YAML file")
    verdict.add_argument("--max-lateness-ms", type=float, default=50.0, help="p99; a later run is invalid")
    verdict.add_argument("--json", action="store_true", help="one JSON object on standard output")
    verdict.add_argument("--csv", type=Path, help="one row per call")
    verdict.add_argument("--html", type=Path, help="one self-contained page")
    verdict.add_argument("--web-port", type=int, help="Locust's live page while the run lasts")
    verdict.add_argument("--web-host", default="127.0.0.1")
    workers = parser.add_argument_group("workers")
    workers.add_argument("--processes", type=int, default=1, help="worker processes on this machine")
    workers.add_argument("--master", action="store_true", help="wait for --expect-workers from elsewhere")
    workers.add_argument("--worker", action="store_true", help="work for a master with the same options")
    workers.add_argument("--expect-workers", type=int, default=1)
    workers.add_argument("--master-host", default="127.0.0.1")
    workers.add_argument("--master-port", type=int, default=5557)


def run(options: argparse.Namespace) -> int:
    try:
        finished = _run(options)
    except BadInput as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0 if finished is None else finished.exit_code


def _run(options: argparse.Namespace) -> Finished | None:
    if find_spec("locust") is None:
        raise BadInput("the load generator is not installed; install sprat with its extra: sprat[loadtest]")
    slo = parse_slo(options.slo, streamed=not options.unary) if options.slo else None
    given = _plan_input(options)
    folders = [*([options.traces] if options.traces else []), *default_folders()]
    plan = make_plan(given, lambda trace: read_trace(find_trace(trace, folders)))
    placing = _placing(options, plan)
    _check_writable(options.csv, options.html)

    from loadtest.generator.chat_client import RequestShape
    from loadtest.generator.roles import Load, run_load

    shape = RequestShape(
        options.endpoint, options.model, streamed=not options.unary, timeout_s=_duration_s(options.timeout)
    )
    load = Load(plan, shape, given.mix, given.seed, options.chars_per_token, slo)
    print(_announcement(options, plan), file=sys.stderr)
    began = datetime.now(UTC)
    collected = run_load(load, placing, options.warm_up)
    if collected is None:
        return None
    finished = finish(collected, plan.count, slo, options.max_lateness_ms / 1000)
    report = {**_facts(options, given, plan, began, collected), **finished.report}
    _write(options, collected, report, slo)
    return finished


def _plan_input(options: argparse.Namespace) -> PlanInput:
    for name in ("limit", "max_prompt_tokens", "max_output_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} {value}: has to be at least 1")
    if not 0.5 <= options.chars_per_token <= 100:
        raise BadInput(f"--chars-per-token {options.chars_per_token:g}: has to be between 0.5 and 100")
    key = options.api_key or os.environ.get(KEY_VARIABLE) or "none"
    tenants = read_mix(options.mix) if options.mix else (Tenant("default", key),)
    return PlanInput(
        workload=parse_workload(options.workload),
        mix=Mix(tenants, checked_tasks([parse_task(text) for text in options.task])),
        lengths=options.lengths,
        rate=parse_rate(options.rate),
        duration_s=None if options.duration is None else _duration_s(options.duration),
        limit=options.limit,
        seed=options.seed,
        caps=Caps(options.max_prompt_tokens, options.max_output_tokens),
    )


def _placing(options: argparse.Namespace, plan: Plan) -> Placing:
    from loadtest.generator.roles import Placing, Role, free_port

    if sum((options.master, options.worker, options.processes > 1)) > 1:
        raise BadInput("--master, --worker and --processes exclude each other")
    forked = options.processes if options.processes > 1 else 0
    workers = options.expect_workers if options.master else options.processes
    if workers < 1:
        raise BadInput("--processes and --expect-workers have to be at least 1")
    if plan.users is not None and plan.users < workers:
        raise BadInput(f"closed:{plan.users} has fewer users than there are workers ({workers})")
    role = Role.WORKER if options.worker else Role.MASTER if options.master or forked else Role.ALONE
    return Placing(
        role=role,
        forked=forked,
        workers=workers,
        host="127.0.0.1" if forked else options.master_host,
        port=free_port() if forked else options.master_port,
        web_host=options.web_host,
        web_port=options.web_port,
    )


def _duration_s(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text.strip())
    if not found or float(found[1]) <= 0:
        raise BadInput(f"a duration of {text!r}: use 60s, 5m or 1h")
    return float(found[1]) * SECONDS[found[2]]


def _check_writable(*files: Path | None) -> None:
    """Before the run, not after an hour of it."""
    for file in files:
        if file is not None and not os.access(file.absolute().parent, os.W_OK):
            raise BadInput(f"{file}: the folder {file.absolute().parent} is not there or cannot be written")


def _announcement(options: argparse.Namespace, plan: Plan) -> str:
    if plan.is_open:
        size = f"{len(plan.calls)} calls over {plan.span_s:.0f} s"
    else:
        size = f"{plan.users} users" + (f", {plan.count} calls" if plan.count else "")
    clipped = f", {plan.clipped_prompts} prompts and {plan.clipped_outputs} outputs clipped"
    return f"loadtest: {options.workload} at {options.endpoint}: {size}{clipped}"


def _facts(
    options: argparse.Namespace, given: PlanInput, plan: Plan, began: datetime, collected: Collected
) -> dict[str, Any]:
    """What was run. No key and no prompt is in it."""
    return {
        "date": began.isoformat(timespec="seconds"),
        "workload": str(given.workload),
        "rate": str(given.rate),
        "duration_s": given.duration_s,
        "limit": given.limit,
        "seed": given.seed,
        "open_loop": plan.is_open,
        "endpoint": options.endpoint,
        "model": options.model,
        "streamed": not options.unary,
        "workers": collected.workers,
        "warm_up_calls": options.warm_up,
        "chars_per_token": options.chars_per_token,
        "clipped": {"prompts": plan.clipped_prompts, "outputs": plan.clipped_outputs},
        "caps": {"prompt_tokens": given.caps.prompt_tokens, "output_tokens": given.caps.output_tokens},
        "generator_cores": os.cpu_count(),
    }


def _write(
    options: argparse.Namespace, collected: Collected, report: dict[str, Any], slo: Slo | None
) -> None:
    from loadtest.report.csv_rows import write_csv
    from loadtest.report.page import page
    from loadtest.report.text import text

    if options.csv:
        write_csv(options.csv, collected.records)
    if options.html:
        options.html.write_text(page(report, collected.records, slo), encoding="utf-8")
    print(json.dumps(report) if options.json else text(report))
