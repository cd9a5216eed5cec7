"""Locust's side of the generator: users, the shape that holds their number, and the rows of its web page."""

from __future__ import annotations

from locust import LoadTestShape, User, constant, task
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser

from loadtest.generator.generator import Generator
from loadtest.metrics.call_record import CallRecord

NO_TIER = "answers"


class LoadEnvironment(Environment):
    """Locust hands its environment to every user; the generator of the process travels with it."""

    generator: Generator


class OpenLoopUser(User):
    """One per process: Locust's view of an open loop, which has no users. The arrivals are the generator's
    own, so that nothing that Locust does with its users can disturb them."""

    wait_time = constant(0)

    @task
    def watch(self) -> None:
        _generator_of(self).ended.wait()
        raise StopUser


class ClosedLoopUser(User):
    """One of the users of `closed:USERS`."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        _generator_of(self).user()
        raise StopUser


class PlanShape(LoadTestShape):
    """The plan says how many users there are, from the first to the last second; Locust's web page then
    offers no way to change their number under a running plan."""

    def __init__(self, users: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._users = users

    def tick(self) -> tuple[int, float]:
        return self._users, float(self._users)


def fire_rows(request: EventHook, record: CallRecord) -> None:
    """A call → rows of Locust's statistics, grouped by tier. Refusals and failures are rows of their own."""
    kind = record.tier or NO_TIER
    if not record.is_ok:
        _fire(request, record.outcome.value, record.reason, record.e2e_s, RuntimeError(record.reason))
        return
    _fire(request, kind, "E2E", record.e2e_s)
    if record.ttft_s is not None:
        _fire(request, kind, "TTFT", record.ttft_s)
    if record.tpot_s is not None:
        _fire(request, kind, "TPOT", record.tpot_s)


def _fire(request: EventHook, kind: str, name: str, time_s: float, error: Exception | None = None) -> None:
    request.fire(  # type: ignore[no-untyped-call]
        request_type=kind,
        name=name,
        response_time=time_s * 1000,
        response_length=0,
        exception=error,
        context={},
    )


def _generator_of(user: User) -> Generator:
    environment = user.environment
    assert isinstance(environment, LoadEnvironment)  # noqa: S101 (narrows the type; built by `roles`)
    return environment.generator
