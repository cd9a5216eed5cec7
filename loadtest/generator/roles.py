"""Who does what: one process alone, a master with forked workers, or a master or worker across machines."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import gevent
from locust.event import Events
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.bad_input import BadInput
from loadtest.generator.chat_client import ChatClient, RequestShape
from loadtest.generator.coordinator import Coordinator
from loadtest.generator.generator import Generator
from loadtest.generator.live import add_tab, print_progress
from loadtest.generator.locust_users import ClosedLoopUser, LoadEnvironment, OpenLoopUser, PlanShape
from loadtest.generator.processes import forked
from loadtest.generator.worker import Worker
from loadtest.metrics.call_record import Outcome
from loadtest.metrics.collected import Collected
from loadtest.metrics.slo import Slo
from loadtest.workloads.mix import Mix
from loadtest.workloads.plan import Plan
from loadtest.workloads.planned_call import PlannedCall
from loadtest.workloads.prompts import PromptWriter

WARM_UP_PROMPT_TOKENS = 16
WARM_UP_OUTPUT_TOKENS = 4
FORKED_READY_S = 60.0
PRIORITY = -10


class Role(StrEnum):
    ALONE = "alone"
    MASTER = "master"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that a process needs to make its share."""

    plan: Plan
    shape: RequestShape
    mix: Mix
    seed: int
    characters_per_token: float
    slo: Slo | None


@dataclass(frozen=True, slots=True)
class Placing:
    """`forked` workers are children of this process. `host` and `port` are the master's."""

    role: Role
    forked: int
    workers: int
    host: str
    port: int
    web_host: str
    web_port: int | None


def run_load(load: Load, placing: Placing, warm_up_calls: int) -> Collected | None:
    """Makes the load and returns what came of it; None in a process that was only a worker."""
    _quiet()
    _many_files()
    _first_in_line()
    # The plan stays until the end: the collector must not walk through it in the middle of arrivals.
    gc.freeze()
    if placing.role is Role.WORKER:
        _work(load, placing)
        return None
    with forked(placing.forked, lambda: _work(load, placing)):
        _warm_up(load, warm_up_calls)
        return _lead(load, placing)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _lead(load: Load, placing: Placing) -> Collected:
    environment = _environment(load, placing)
    alone = placing.role is Role.ALONE
    runner: LocalRunner | MasterRunner = (
        environment.create_local_runner()
        if alone
        else environment.create_master_runner(placing.host, placing.port)
    )
    coordinator = Coordinator(runner, load.plan)
    if isinstance(runner, LocalRunner):
        _attach_worker(environment, runner, load)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, coordinator.interrupted.set)
    web_ui = None
    if placing.web_port is not None:
        del sys.argv[1:]  # Locust reads the command line as its own, again for each visit of its page
        web_ui = environment.create_web_ui(placing.web_host, placing.web_port, delayed_start=True)
        add_tab(web_ui, coordinator, load.slo)
        web_ui.start()  # type: ignore[no-untyped-call]
        print(f"live at http://{placing.web_host}:{placing.web_port}", file=sys.stderr)
    progress = gevent.spawn(print_progress, coordinator, load.plan, load.slo)
    try:
        coordinator.run(placing.workers, FORKED_READY_S if placing.forked else None)
    finally:
        progress.kill()
        runner.quit()
        if web_ui is not None:
            web_ui.stop()  # type: ignore[no-untyped-call]
    return Collected(
        records=sorted(coordinator.records, key=lambda record: record.index),
        pauses_s=coordinator.pauses_s,
        workers=len(coordinator.workers),
        lost_workers=len(coordinator.lost),
        in_flight=coordinator.in_flight,
        interrupted=coordinator.interrupted.is_set(),
    )


def _work(load: Load, placing: Placing) -> None:
    environment = _environment(load, placing)
    try:
        runner = environment.create_worker_runner(placing.host, placing.port)
    except OSError as error:
        raise BadInput(f"no master at {placing.host}:{placing.port}: {error}") from error
    _attach_worker(environment, runner, load)
    with suppress(KeyboardInterrupt):
        runner.greenlet.join()


def _environment(load: Load, placing: Placing) -> LoadEnvironment:
    users = placing.workers if load.plan.users is None else load.plan.users
    user_class = OpenLoopUser if load.plan.is_open else ClosedLoopUser
    return LoadEnvironment(
        user_classes=[user_class],
        events=Events(),  # type: ignore[no-untyped-call]
        shape_class=PlanShape(users),
        host=load.shape.endpoint,
        locustfile="sprat loadtest",
    )


def _attach_worker(environment: LoadEnvironment, runner: LocalRunner | WorkerRunner, load: Load) -> None:
    worker = Worker(runner, load.plan)
    prompts = PromptWriter(load.seed, load.characters_per_token)
    environment.generator = Generator(
        load.plan, load.shape, load.mix, prompts, on_record=worker.take, on_end=worker.finish
    )
    worker.attach(environment.generator)


def _warm_up(load: Load, calls: int) -> None:
    """Not measured. Says at once what would otherwise be the result of every call."""
    client = ChatClient(load.shape)
    prompts = PromptWriter(load.seed, load.characters_per_token)
    tenant = load.mix.tenants[0]
    for number in range(calls):
        call = PlannedCall(-1 - number, 0.0, WARM_UP_PROMPT_TOKENS, WARM_UP_OUTPUT_TOKENS)
        answer, _ = client.call(load.shape.body(call, prompts.prompt(call)), tenant.key)
        if answer.reason == "connect" or answer.status in {401, 403, 404, 405}:
            raise BadInput(f"--endpoint {load.shape.endpoint}: {answer.reason}: {answer.message}")
        if answer.outcome is not Outcome.OK:
            print(f"warm-up call: {answer.reason}: {answer.message}", file=sys.stderr)
    client.close()


def _quiet() -> None:
    """Locust speaks of its own spawn rates; what matters here is in the report."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("locust").setLevel(logging.ERROR)


def _first_in_line() -> None:
    """Beside a busy server on the same machine, waiting for the processor would be measured as the server's
    time. The generator needs little of it. Only root may ask; others see the pauses in the report."""
    with suppress(PermissionError):
        os.nice(PRIORITY)


def _many_files() -> None:
    """Every call in flight is a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
