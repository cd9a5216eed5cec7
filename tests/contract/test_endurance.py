"""What only shows after long, or at one moment in a thousand: an outage of minutes, a soak, and a client that
leaves at any await point (rows 5, 8 and 10 of the peers' failures).

Short in the normal run; `make prove-endurance` runs them at full length and commits what was measured.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp
import orjson
import psutil
import pytest

from cluster import keys
from cluster.tenants import Budget, BudgetWindow, RateLimit, key_owner
from deployments.gateway.http.message import Reply, Request
from tests.fault_matrix import fault
from tests.gateways import FAST, GatewayProcess, GatewayUnderTest, RunningEngine, cost_of, running_gateway
from tests.own_valkey import OwnValkey, own_valkey

pytestmark = pytest.mark.contract

T = TypeVar("T")
Measured = Callable[..., None]

DOLLAR = 1_000_000


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


# A client that leaves at any await point.

ROUNDS = 20 if os.environ.get("SPRAT_EVERY_AWAIT") == "1" else 2
"""Every round goes through all await points. They are not always the same ones: a reply may be there
already, a connection fresh or kept."""

SHORT = {"model": "small", "max_tokens": 4}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
ONE_SLOT = {"cap": 1, "profile": replace(FAST, decode_tokens_per_s=400)}


class CancelledAt:
    """Runs a coroutine and cancels its task when it suspends for the `at`-th time: at once, or `together`
    with the result that it waits for (which Python 3.11's `wait_for` may then prefer). `where`: at which
    await, once it has happened."""

    def __init__(self, at: int, *, together: bool) -> None:
        self._at = at
        self._together = together
        self.suspensions = 0
        self.where = ""

    def __repr__(self) -> str:
        return f"cancelled at suspension {self._at}: {self.where or 'not reached'}"

    @types.coroutine
    def run(self, handler: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = handler.send(None) if thrown is None else handler.throw(thrown)
            except StopIteration as end:
                return cast("T", end.value)
            self.suspensions += 1
            if self.suspensions == self._at:
                self.where = _await_point(handler)
                self._cancel(waits_for)
            try:
                yield waits_for  # a task sends None, or throws
            except BaseException as error:
                thrown = error
            else:
                thrown = None

    def _cancel(self, waits_for: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._together and waits_for is not None:
            # Before the task's own callback, which is added when this step ends.
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


def _await_point(coroutine: Any) -> str:
    frames = []
    while coroutine is not None:
        for kind in ("cr", "gi", "ag"):
            if (frame := getattr(coroutine, f"{kind}_frame", None)) is not None:
                frames.append(
                    f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                )
                coroutine = getattr(coroutine, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            break
    return " > ".join(frames)


class Cancelling:
    """Between connections and the gateway: cancels the handler of chosen keys as a connection does when its
    client leaves."""

    def __init__(self, gateway: GatewayUnderTest) -> None:
        listener = gateway.gateway.listener
        self._handle = listener.handler
        self._chosen: dict[str, CancelledAt] = {}
        listener.handler = self._handler

    def choose(self, key: str, at: int, *, together: bool) -> CancelledAt:
        """The next call of `key`."""
        run = self._chosen["Bearer " + key] = CancelledAt(at, together=together)
        return run

    async def _handler(self, request: Request, reply: Reply) -> None:
        run = self._chosen.pop(request.header(b"authorization") or "", None)
        if run is None:
            await self._handle(request, reply)
        else:
            await run.run(self._handle(request, reply))  # type: ignore[arg-type]  # an async function


def cost_of_stream(text: str) -> int:
    events = (line.removeprefix("data: ") for line in text.split("\n") if '"usage":{' in line)
    return cost_of(orjson.loads(next(events)))


async def ask_unary(gateway: GatewayUnderTest, key: str) -> int | None:
    """What the call cost, told by its answer; None when there was none."""
    try:
        status, answer = await gateway.ask(SHORT, key=key)
    except aiohttp.ClientError:
        return None
    assert status == 200, answer
    return cost_of(answer)


async def ask_streamed(gateway: GatewayUnderTest, key: str) -> int | None:
    try:
        async with gateway.post(SHORT | STREAM, key=key) as response:
            assert response.status == 200
            text = await response.text()
    except aiohttp.ClientError:
        return None
    import json

    chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    return cost_of(next(chunk for chunk in chunks if chunk.get("usage")))


async def ask_idempotent(gateway: GatewayUnderTest, key: str) -> int | None:
    """One that left is forgotten, or kept, within a second."""
    try:
        async with asyncio.timeout(1.0):
            while (call := await gateway.ask(SHORT, key=key, idempotency_key=key))[
                1
            ] == "idempotency_key_in_use":
                await asyncio.sleep(0.01)
    except aiohttp.ClientError:
        return None
    status, answer = call
    assert status == 200, answer
    return cost_of(answer)


async def waiting(gateway: GatewayUnderTest) -> int:
    return sum((await gateway.scheduler.pool_load("specialist")).waiting)


@asynccontextmanager
async def slot_taken(gateway: GatewayUnderTest) -> AsyncIterator[None]:
    """By a call whose client leaves at the end."""
    occupant = asyncio.create_task(gateway.ask({"model": "small", "max_tokens": 200}))
    await gateway.until_leases(1)
    yield
    occupant.cancel()
    await asyncio.wait({occupant})


async def ask_queued(gateway: GatewayUnderTest, key: str) -> int | None:
    async with slot_taken(gateway):
        call = asyncio.create_task(ask_unary(gateway, key))
        async with asyncio.timeout(5):
            while not call.done() and not await waiting(gateway):
                await asyncio.sleep(0.002)
    return await call


async def hold_of_a_call(gateway: GatewayUnderTest) -> int:
    """Micro-USD."""
    key, key_id = gateway.new_key(Budget("", BudgetWindow.TOTAL, DOLLAR))
    async with slot_taken(gateway):
        call = asyncio.create_task(ask_unary(gateway, key))
        async with asyncio.timeout(5):
            while not (held := (await gateway.budget(key_owner(key_id)))[1]):
                await asyncio.sleep(0.002)
    await call
    return held


async def spent_with_nothing_left(gateway: GatewayUnderTest, owner: str, run: CancelledAt) -> int:
    """Within a second: no lease, no ticket, nothing held, nothing running; Redis and ledger agree."""
    sums = (owner, "total")
    settling = gateway.gateway.context.settling
    state: Any = None
    try:
        async with asyncio.timeout(1.0):
            while True:
                settled = not settling.open and await settling.flush()
                spent, held = await gateway.budget(*sums)
                state = {
                    "settled": settled,
                    "held": held,
                    "leases": await gateway.leases(),
                    "tickets": await waiting(gateway),
                    "running": sum(engine.running for engine in gateway.engines.values()),
                    "not in the ledger": spent - gateway.ledger.spent([sums])[sums],
                }
                if state == dict.fromkeys(state, 0) | {"settled": True}:
                    return spent
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"left behind: {state}, {run}") from None


@fault(
    "a client leaves at any await point of its call",
    "no lease, no place in the queue and no hold is left within 1 s; money is counted once; its key is not "
    "refused",
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("together", [False, True], ids=["before_its_result", "with_its_result"])
@pytest.mark.parametrize("ask", [ask_unary, ask_streamed, ask_queued, ask_idempotent])
async def test_cancelled_at_every_await_point(
    valkey: OwnValkey,
    tmp_path: Path,
    ask: Callable[[GatewayUnderTest, str], Awaitable[int | None]],
    together: bool,
    measured: Measured,
) -> None:
    """LiteLLM #36926: a reservation leaked on cancel, then false 429s."""
    async with running_gateway(valkey.url, tmp_path) as gateway:
        cancelling = Cancelling(gateway)
        await gateway.add_engine("specialist", "s1", **ONE_SLOT)
        await gateway.until_ready()
        hold = await hold_of_a_call(gateway)
        await_points: list[int] = []
        cut: Counter[str] = Counter()
        # On a quick machine a round may step over the engine's only await: then there is another one.
        while len(await_points) < ROUNDS or not cut["after it cost something"]:
            for at in count(1):
                # Room for this call and one more; a call that never ran takes nothing of it.
                key, key_id = gateway.new_key(
                    Budget("", BudgetWindow.TOTAL, 2 * hold), requests=RateLimit(per_minute=1, burst=2)
                )
                run = cancelling.choose(key, at, together=together)
                told = await ask(gateway, key)
                spent = await spent_with_nothing_left(gateway, key_owner(key_id), run)
                assert spent <= hold, run
                assert told == (None if run.where else spent), run
                again = ask_idempotent if ask is ask_idempotent else ask_unary
                for _ in range(2 if spent == 0 else 1):
                    async with asyncio.timeout(2):
                        assert await again(gateway, key) is not None, run
                if not run.where:  # it ended by itself, before
                    assert spent > 0
                    break
                cut["before it cost anything" if spent == 0 else "after it cost something"] += 1
            await_points.append(run.suspensions)
    measured(
        await_points=[min(await_points), max(await_points)], rounds=len(await_points), cancelled=dict(cut)
    )
    assert min(await_points) >= 4
    assert cut["before it cost anything"] >= ROUNDS


# A gateway in a process of its own, under a steady load.

MB = 1e6
CALLS_PER_S = 40
WORKERS = 7
"""Not a divisor of the number of kinds: each of them asks all kinds in turn."""


@dataclass
class Measurement:
    """Of the process, every second."""

    process: GatewayProcess
    rss_mb: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    def sample(self) -> None:
        self.rss_mb.append(psutil.Process(self.process.pid).memory_info().rss / MB)
        self.at_s.append(time.monotonic())

    async def every_second(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(1.0)

    @property
    def growth_mb(self) -> float:
        """The most that it ever was above its beginning."""
        return max(self.rss_mb) - self.rss_mb[0]

    def trend_mb(self) -> float:
        """What a straight line through all samples rises from the first to the last."""
        return statistics.linear_regression(self.at_s, self.rss_mb).slope * (self.at_s[-1] - self.at_s[0])


@asynccontextmanager
async def gateway_process(
    valkey: OwnValkey, folder: Path, **changes: Any
) -> AsyncIterator[tuple[GatewayProcess, GatewayUnderTest]]:
    """The process, and a client of it that owns its engines, keys and ledger."""
    async with running_gateway(valkey.url, folder, **changes) as helper:
        await helper.add_engine("specialist", "s1", cap=64)
        process = GatewayProcess(valkey.url, folder, **changes)
        try:
            client = replace(helper, url=process.url)
            async with asyncio.timeout(30):
                while not await listens(client):
                    await asyncio.sleep(0.05)
            await client.until_ready()
            yield process, client
        finally:
            process.kill()


async def listens(gateway: GatewayUnderTest) -> bool:
    try:
        await gateway.readiness()
    except aiohttp.ClientError:
        return False
    return True


async def steadily(seconds: float, ask: Callable[[int], Awaitable[None]]) -> int:
    """`ask(number of the call)` at `CALLS_PER_S`, by `WORKERS` that each wait for their last answer. Returns
    how many were asked."""
    started = time.monotonic()
    asked = 0

    async def work(worker: int) -> None:
        nonlocal asked
        for number in range(worker, int(seconds * CALLS_PER_S), WORKERS):
            await asyncio.sleep(max(0.0, started + number / CALLS_PER_S - time.monotonic()))
            if time.monotonic() - started > seconds:
                return  # it is behind: the calls that are left are not asked
            await ask(number)
            asked += 1

    await asyncio.gather(*(work(worker) for worker in range(WORKERS)))
    return asked


# Every command of Redis times out.

TIMEOUTS_S = float(os.environ.get("SPRAT_TIMEOUTS_SECONDS", "12"))
RSS_BOUND_MB = 10 + 0.05 * TIMEOUTS_S
"""25 MB in 5 min, where 256 are asked for: some for the allocator, and 50 kB per second of outage."""

SLOWER_AT_MOST = 3.0
HICCUP_MS = 10.0 if TIMEOUTS_S < 60 else 0.0
"""In a short run p95 is one or two calls of a busy machine."""

KINDS = ("unary", "unary", "unary", "streamed", "streamed", "refused", "refused", "idempotent")
IMPATIENT = {"redis__timeout_ms": 200, "redis__connect_timeout_ms": 200}


@fault(
    "every command of Redis times out for minutes, under a steady load",
    "memory stays flat, late calls are as fast as early ones, none is lost in the books",
)
@pytest.mark.timeout(TIMEOUTS_S + 120)
async def test_every_command_times_out(
    valkey: OwnValkey, tmp_path: Path, measured: Measured, recovered: Callable[[float], None]
) -> None:
    """LiteLLM v1.100.0: bodies of alerts grew until the process was out of memory."""
    async with gateway_process(valkey, tmp_path, **IMPATIENT) as (process, gateway):
        key, key_id = gateway.new_key()
        budgeted, _ = gateway.new_key(Budget("", BudgetWindow.TOTAL, DOLLAR))
        paid = 0
        latencies: list[tuple[float, str, float]] = []

        async def ask(number: int) -> None:
            nonlocal paid
            started = time.monotonic()
            kind = KINDS[number % len(KINDS)]
            if kind == "refused":
                assert (await gateway.ask(SHORT, key=budgeted))[1] == "budget_unavailable"
            elif kind == "idempotent":  # asks the store every time
                assert (await gateway.ask(SHORT, key=key, idempotency_key=str(number)))[0] == 503
            else:
                cost = await (ask_streamed if kind == "streamed" else ask_unary)(gateway, key)
                assert cost is not None, kind
                paid += cost
            latencies.append((started, kind, time.monotonic() - started))

        await steadily(max(3.0, TIMEOUTS_S / 20), lambda _: ask(KINDS.index("unary")))
        valkey.hang()
        async with asyncio.timeout(10):
            while (await gateway.readiness())[1] != "degraded":
                await asyncio.sleep(0.02)
        latencies.clear()
        measurement = Measurement(process)
        sampling = asyncio.create_task(measurement.every_second())
        began = time.monotonic()
        asked = await steadily(TIMEOUTS_S, ask)
        sampling.cancel()
        assert (await gateway.readiness())[1] == "degraded"
        valkey.go_on()
        back = time.monotonic()
        await gateway.until_ready()
        sums = (key_owner(key_id), "total")
        async with asyncio.timeout(30 + TIMEOUTS_S):
            while gateway.ledger.spent([sums])[sums] != paid:
                await asyncio.sleep(0.1)
        recovered(time.monotonic() - back)

    quarter_s = TIMEOUTS_S / 4
    figures: dict[str, Any] = {}
    for kind in dict.fromkeys(KINDS):
        early = [took for at, each, took in latencies if each == kind and at < began + quarter_s]
        late = [took for at, each, took in latencies if each == kind and at >= began + 3 * quarter_s]
        for name, of in (("median", statistics.median), ("p95", p95)):
            figures[f"{kind}_{name}_ms"] = [round(1000 * of(early), 2), round(1000 * of(late), 2)]
    measured(
        outage_s=TIMEOUTS_S,
        calls=asked,
        rss_mb=[round(measurement.rss_mb[0], 1), round(measurement.rss_mb[-1], 1)],
        rss_growth_mb=round(measurement.growth_mb, 2),
        rss_bound_mb=RSS_BOUND_MB,
        **figures,
    )
    assert asked > 0.9 * TIMEOUTS_S * CALLS_PER_S
    assert measurement.growth_mb < RSS_BOUND_MB, measurement.rss_mb
    for name, (first, last) in figures.items():
        assert last <= SLOWER_AT_MOST * max(first, HICCUP_MS), (name, figures)


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


# A soak.

SOAK_S = float(os.environ.get("SPRAT_SOAK_SECONDS", "20"))
WARM_UP_S = SOAK_S / 4
TREND_BOUND_MB = 2.0
TREND_BOUND_MB_PER_1000_CALLS = 0.05
"""The first is what the allocator may still move in any run. Half an hour asks 54,000 calls, so 90 bytes that
each of them left behind would be seen."""

PER_CALL_BYTES = 2_000
"""Of the store's memory: a reservation and at times an answer, kept 24 h, and the events of a call."""

SPARE_CONNECTIONS = 8
"""To engines and store: kept, so a few more when more calls met by chance."""

JOURNAL_BYTES = 1_000_000
"""Of what is in the ledger already; not more after a day than after a minute."""

OUTLIVE = ("resv", "idem", "gcra")
"""Keys that outlive their call, by design and until their time is over (cluster/keys.py)."""


class Mix:
    """Every kind of call in turn, by several tenants, through a session of its own."""

    OUTCOMES = frozenset(
        {
            "answered",
            "streamed",
            "waited",
            "no budget",
            "rate limited",
            "within its rate",
            "left in mid-stream",
            "left before an answer",
            "answered twice, run once",
        }
    )

    def __init__(self, gateway: GatewayUnderTest) -> None:
        self._gateway = gateway
        self.outcomes: Counter[str] = Counter()
        self._keys = [
            gateway.new_key(Budget("", BudgetWindow.TOTAL, 1000 * DOLLAR), tenant=tenant)[0]
            for tenant in ("acme", "birch", "cedar")
            for _ in range(3)
        ]
        self._broke, _ = gateway.new_key(Budget("", BudgetWindow.TOTAL, 1), tenant="dune")
        self._limited, _ = gateway.new_key(requests=RateLimit(per_minute=1, burst=1), tenant="dune")
        self._kinds: tuple[Callable[[GatewayUnderTest, str], Awaitable[str]], ...] = (
            self._unary,
            self._streamed,
            self._two_for_one_slot,
            self._two_for_one_slot,
            self._refused,
            self._cancelled_in_stream,
            self._cancelled_in_queue,
            self._idempotent,
        )

    async def run(self, seconds: float) -> int:
        async with aiohttp.ClientSession() as session:
            gateway = replace(self._gateway, session=session)

            async def ask(number: int) -> None:
                kind = self._kinds[number % len(self._kinds)]
                outcome = await kind(gateway, self._keys[number % len(self._keys)])
                self.outcomes[outcome] += 1

            return await steadily(seconds, ask)

    async def _unary(self, gateway: GatewayUnderTest, key: str) -> str:
        return "answered" if await ask_unary(gateway, key) else "lost"

    async def _streamed(self, gateway: GatewayUnderTest, key: str) -> str:
        return "streamed" if await ask_streamed(gateway, key) else "lost"

    async def _two_for_one_slot(self, gateway: GatewayUnderTest, key: str) -> str:
        """Each takes 50 ms alone."""
        started = time.monotonic()
        answers = await asyncio.gather(
            *(gateway.ask({"model": "large", "max_tokens": 5}, key=key) for _ in range(2))
        )
        assert [status for status, _ in answers] == [200, 200]
        return "waited" if time.monotonic() - started > 0.075 else "ran side by side"

    async def _cancelled_in_queue(self, gateway: GatewayUnderTest, key: str) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await gateway.ask({"model": "large", "max_tokens": 5}, key=key)
        return "left before an answer"

    async def _cancelled_in_stream(self, gateway: GatewayUnderTest, key: str) -> str:
        async with gateway.post({"model": "small", "max_tokens": 200} | STREAM, key=key) as response:
            assert response.status == 200
            await response.content.readany()
        return "left in mid-stream"

    async def _refused(self, gateway: GatewayUnderTest, key: str) -> str:
        if key in self._keys[::2]:
            assert (await gateway.ask(SHORT, key=self._broke))[1] == "insufficient_quota"
            return "no budget"
        status, _ = await gateway.ask(SHORT, key=self._limited)
        return "rate limited" if status == 429 else "within its rate"

    async def _idempotent(self, gateway: GatewayUnderTest, key: str) -> str:
        name = secrets.token_hex(8)
        first = await gateway.ask(SHORT, key=key, idempotency_key=name)
        assert await gateway.ask(SHORT, key=key, idempotency_key=name) == first
        return "answered twice, run once"


@dataclass
class AtRest:
    """What is there when no call runs."""

    asyncio_tasks: int
    open_files: int
    journal_bytes: int
    keys: Counter[str]
    without_expiry: set[str]
    store_bytes: int

    @classmethod
    async def of(cls, process: GatewayProcess, valkey: OwnValkey, folder: Path) -> AtRest:
        with valkey.client() as client:
            names = list(client.scan_iter(count=1000))
            store_bytes = client.info("memory")["used_memory"]
            without_expiry = {name for name in names if client.ttl(name) == -1}
        tasks = []
        for _ in range(20):  # some come and go with every tick
            tasks.append(process.asyncio_tasks())
            await asyncio.sleep(0.05)
        return cls(
            asyncio_tasks=min(tasks),
            open_files=psutil.Process(process.pid).num_fds(),
            journal_bytes=sum(
                file.stat().st_size for file in (folder / "journal").rglob("*") if file.is_file()
            ),
            keys=Counter(name.split(":")[1] for name in names),
            without_expiry=without_expiry,
            store_bytes=store_bytes,
        )


async def until_at_rest(gateway: GatewayUnderTest, engines: Iterable[RunningEngine]) -> None:
    await gateway.until_no_lease(within_s=10)
    for engine in engines:
        await engine.until_idle(within_s=10)
    for pool in ("specialist", "reserve"):
        assert (await gateway.scheduler.pool_load(pool)).waiting == (0, 0, 0)


@fault(
    "a steady mix of calls for a long time: answered, streamed, refused, queued, given up",
    "memory, open files, asyncio tasks and the store return to what they were",
)
@pytest.mark.timeout(SOAK_S + 120)
async def test_soak(
    valkey: OwnValkey, tmp_path: Path, measured: Measured, capfd: pytest.CaptureFixture[str]
) -> None:
    """LiteLLM #12685: slow growth of memory for over a year."""
    async with gateway_process(valkey, tmp_path) as (process, gateway):
        reserve = await gateway.add_engine(
            "reserve", "r1", cap=1, profile=replace(FAST, decode_tokens_per_s=100)
        )
        engines = [*gateway.engines.values(), reserve]
        mix = Mix(gateway)
        await mix.run(WARM_UP_S)
        await until_at_rest(gateway, engines)
        before = await AtRest.of(process, valkey, tmp_path)

        measurement = Measurement(process)
        sampling = asyncio.create_task(measurement.every_second())
        asked = await mix.run(SOAK_S - WARM_UP_S)
        sampling.cancel()
        await until_at_rest(gateway, engines)
        after = await AtRest.of(process, valkey, tmp_path)
        with valkey.client() as client:
            outlived = [name for name in client.scan_iter(count=1000) if name.split(":")[1] in OUTLIVE]
            for name in outlived:
                client.delete(name)
            client.xtrim(keys.EVENTS, maxlen=0, approximate=False)
        bare = await AtRest.of(process, valkey, tmp_path)

    bound_mb = TREND_BOUND_MB + TREND_BOUND_MB_PER_1000_CALLS * asked / 1000
    per_call_bytes = (after.store_bytes - before.store_bytes) / asked
    measured(
        soak_s=SOAK_S,
        calls=asked,
        outcomes=dict(mix.outcomes),
        rss_mb=[round(measurement.rss_mb[0], 1), round(measurement.rss_mb[-1], 1)],
        rss_trend_mb=round(measurement.trend_mb(), 3),
        rss_mb_per_1000_calls=round(1000 * measurement.trend_mb() / asked, 3),
        rss_bound_mb=round(bound_mb, 2),
        asyncio_tasks=[before.asyncio_tasks, after.asyncio_tasks],
        open_files=[before.open_files, after.open_files],
        journal_bytes=[before.journal_bytes, after.journal_bytes],
        store_keys=[before.keys.total(), after.keys.total(), bare.keys.total()],
        store_bytes=[before.store_bytes, after.store_bytes, bare.store_bytes],
        store_bytes_per_call=round(per_call_bytes),
    )
    assert "Traceback" not in capfd.readouterr().err  # of the process too: who leaves is no error
    assert set(mix.outcomes) == Mix.OUTCOMES, mix.outcomes
    assert asked > 0.9 * (SOAK_S - WARM_UP_S) * CALLS_PER_S
    assert measurement.trend_mb() < bound_mb, measurement.rss_mb
    assert after.asyncio_tasks <= before.asyncio_tasks
    assert after.open_files <= before.open_files + SPARE_CONNECTIONS
    assert after.journal_bytes <= JOURNAL_BYTES
    # A reservation per call that was let in, an answer per idempotent one; the rest is as many as before.
    twice = mix.outcomes["answered twice, run once"] + mix.outcomes["waited"]
    assert after.keys["resv"] <= mix.outcomes.total() + twice
    assert after.keys["idem"] == mix.outcomes["answered twice, run once"]
    assert after.without_expiry <= before.without_expiry
    assert bare.keys.total() <= before.keys.total() - sum(before.keys[kind] for kind in OUTLIVE)
    assert per_call_bytes < PER_CALL_BYTES
    assert bare.store_bytes < before.store_bytes + MB
