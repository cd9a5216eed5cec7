"""The operator's own verifiers, in a real process: what they may say, hang in and die of."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import uvloop

from cluster.config.verifiers import PythonVerifierConfig
from cluster.errors import ConfigError
from cluster.router.verifiers import Draft, Expected, Tool, ToolCall
from deployments.gateway import custom_verifier
from deployments.gateway.custom_verifier import CustomVerifier, CustomVerifierProcess

FUNCTIONS = """
import asyncio, os, re, subprocess, sys, time

def short(draft, expected):
    print("functions may print")
    return len(draft["text"]) < 10, "Too LONG: " + "x" * 100

def plain(draft, expected):
    return draft["text"] == "yes"

def sees(draft, expected):
    seen = [draft["tool_calls"][0]["name"], str(draft["token_logprobs"]), draft["others"][0]["text"]]
    return False, ",".join([*seen, expected["tools"][0]["name"], expected["tool_choice"]])

def by_text(draft, expected):
    if draft["text"] == "sleep":
        time.sleep(60)
    if draft["text"] == "pause":
        time.sleep(0.3)
    if draft["text"] == "backtrack":
        re.match("^(a|aa)+$", "a" * 60 + "!")
    if draft["text"] == "leave":
        os._exit(3)
    if draft["text"] == "exit":
        sys.exit(3)
    if draft["text"] == "raise":
        raise ValueError("secret " + draft["text"])
    if draft["text"] == "child":
        open(expected["tool_choice"], "w").write(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)
    odd = {"none": None, "one": 1, "three": (True, "a", "b"), "bad reason": (False, 5)}
    return odd.get(draft["text"], True)

async def later(draft, expected):
    return True

number = 5
"""

GATEWAY = """
import asyncio, sys
from deployments.gateway.custom_verifier import CustomVerifierProcess

async def main():
    process = CustomVerifierProcess(["my_verifiers:by_text"])
    await process.check()
    print(process.pid, flush=True)
    draft = {"text": "backtrack"}
    await process.run("my_verifiers:by_text", 2.0, {"draft": draft, "expected": {}})

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_verifiers.py").write_text(FUNCTIONS)
    (tmp_path / "my_exit.py").write_text("import sys\nsys.exit(1)")
    (tmp_path / "my_crash.py").write_text("import os\nos._exit(1)")
    (tmp_path / "my_typo.py").write_text("import jsn")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest_asyncio.fixture
async def process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CustomVerifierProcess]:
    monkeypatch.setattr(custom_verifier, "LEAST_S_BETWEEN_STARTS", 0.0)
    names = ("short", "plain", "sees", "by_text", "later")
    made = CustomVerifierProcess([f"my_verifiers:{name}" for name in names])
    await made.check()
    yield made
    await made.close()


def verifier(process: CustomVerifierProcess, name: str, timeout_s: float = 10.0) -> CustomVerifier:
    config = PythonVerifierConfig(kind="python", function=f"my_verifiers:{name}", timeout_s=timeout_s)
    return CustomVerifier(config, process)


async def said(of: CustomVerifier, text: str, **expected: Any) -> str:
    verdict = await of.judge(Draft(text), Expected(**expected))
    assert verdict.accepted == (verdict.reason == "accepted")
    return verdict.reason


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("short", "yes", "accepted"),
        ("short", "a long story", "python:too_long:_" + "x" * 38),
        ("plain", "yes", "accepted"),
        ("plain", "no \ud800", "python:refused"),
        ("by_text", "none", "python:wrong_answer"),
        ("by_text", "one", "python:wrong_answer"),
        ("by_text", "three", "python:wrong_answer"),
        ("by_text", "bad reason", "python:wrong_answer"),
        ("by_text", "raise", "python:error"),
        ("by_text", "exit", "python:error"),
        ("by_text", "x" * 2_000_000, "accepted"),
    ],
)
async def test_a_function_says_a_bool_or_a_bool_and_a_reason(
    process: CustomVerifierProcess, name: str, text: str, reason: str
) -> None:
    before = process.pid
    assert await said(verifier(process, name), text) == reason
    assert process.pid == before is not None


@pytest.mark.filterwarnings("ignore:coroutine")
async def test_a_coroutine_is_no_answer(process: CustomVerifierProcess) -> None:
    assert await said(verifier(process, "later"), "x") == "python:wrong_answer"


async def test_a_function_sees_draft_and_expectation(process: CustomVerifierProcess) -> None:
    draft = Draft("", (ToolCall("clock", "{}"),), "stop", (-0.5,), (Draft("other"),))
    verdict = await verifier(process, "sees").judge(
        draft, Expected(tools=(Tool("clock"),), tool_choice="auto")
    )
    assert verdict.reason == "python:clock_-0.5_other_clock_auto"


async def test_what_a_function_raises_is_counted_and_told_without_its_message(
    process: CustomVerifierProcess, caplog: pytest.LogCaptureFixture
) -> None:
    broken = verifier(process, "by_text")
    for _ in range(5):
        await said(broken, "raise")
    assert broken.errors == {"error": 5}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3  # the 1st, 2nd and 4th
    assert "ValueError at " in told[0]
    assert "my_verifiers.py:" in told[0]
    assert "secret" not in "".join(told)


@pytest.mark.parametrize("text", ["sleep", "backtrack"])
async def test_a_function_that_hangs_is_ended_and_the_loop_goes_on(
    process: CustomVerifierProcess, text: str
) -> None:
    """Also in C code that never gives Python's lock back."""
    first, hangs = process.pid, verifier(process, "by_text", timeout_s=1.0)
    began, longest = time.monotonic(), 0.0
    judging = asyncio.create_task(said(hangs, text))
    while not judging.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - before)
    assert await judging == "python:timeout"
    assert time.monotonic() - began < 10
    assert longest < 0.8
    assert await said(verifier(process, "by_text"), "fine") == "accepted"
    assert process.pid != first
    assert first is not None
    assert not psutil.pid_exists(first)
    assert hangs.errors == {"timeout": 1}


async def test_a_process_that_died_is_started_again(process: CustomVerifierProcess) -> None:
    judge = verifier(process, "by_text")
    assert await said(judge, "leave") == "python:died"
    assert await said(judge, "fine") == "accepted"
    killed = process.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert [await said(judge, "fine") for _ in range(3)][-1] == "accepted"
    assert process.pid != killed


async def test_what_a_function_started_ends_with_it(process: CustomVerifierProcess, folder: Path) -> None:
    told = folder / "pid"
    assert await said(verifier(process, "by_text", 1.0), "child", tool_choice=str(told)) == "python:timeout"
    assert await said(verifier(process, "by_text"), "fine") == "accepted"
    assert is_gone(int(told.read_text()))


async def test_starts_are_paced(process: CustomVerifierProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_verifier, "LEAST_S_BETWEEN_STARTS", 60.0)
    judge = verifier(process, "by_text", timeout_s=0.2)
    assert await said(judge, "leave") == "python:died"
    assert await said(judge, "fine") == "python:busy"
    assert process.pid is None


async def test_a_hundred_drafts_at_once(process: CustomVerifierProcess) -> None:
    plain = verifier(process, "plain")
    texts = ["yes", "no"] * 50
    assert await asyncio.gather(*(said(plain, text) for text in texts)) == ["accepted", "python:refused"] * 50


async def test_calls_behind_one_that_hangs_wait_no_longer_than_they_may(
    process: CustomVerifierProcess,
) -> None:
    judge, began = verifier(process, "by_text", timeout_s=0.3), time.monotonic()
    hung, *others = await asyncio.gather(*(said(judge, text) for text in ["sleep"] + ["fine"] * 20))
    assert hung == "python:timeout"
    assert set(others) == {"python:busy"}
    assert time.monotonic() - began < 5


async def test_calls_are_bounded_in_number(
    process: CustomVerifierProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_verifier, "MAX_CALLS", 3)
    judge = verifier(process, "by_text")
    running = [asyncio.create_task(said(judge, "pause")) for _ in range(3)]
    await asyncio.sleep(0)
    assert await said(judge, "fine") == "python:busy"
    assert await asyncio.gather(*running) == ["accepted"] * 3
    assert await said(judge, "fine") == "accepted"


async def test_the_answer_of_a_caller_who_left_is_nobodys(process: CustomVerifierProcess) -> None:
    left = asyncio.create_task(said(verifier(process, "by_text"), "pause"))
    await asyncio.sleep(0.1)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert await said(verifier(process, "plain"), "no") == "python:refused"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_verifiers:nothing", "'my_verifiers:nothing' cannot be used: AttributeError"),
        ("my_verifiers:number", "it is no function"),
        ("no_such_module:check", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_typo:check", "No module named 'jsn'"),
        ("my_exit:check", "SystemExit"),
        (
            "my_crash:check",
            "my_crash:check, my_verifiers:plain cannot be imported: the process that does it ended",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
async def test_a_function_that_cannot_be_imported_is_told_at_the_start(function: str, message: str) -> None:
    process = CustomVerifierProcess(["my_verifiers:plain", function])
    with pytest.raises(ConfigError, match=message):
        await process.check()
    assert process.pid is None
    await process.close()


@pytest.mark.usefixtures("folder")
async def test_without_a_check_the_first_draft_starts_it() -> None:
    process = CustomVerifierProcess(["my_verifiers:plain"])
    assert await said(verifier(process, "plain", timeout_s=20), "yes") == "accepted"
    await process.close()


async def test_closing_ends_it_in_the_middle_of_a_call(process: CustomVerifierProcess) -> None:
    pid, judging = process.pid, asyncio.create_task(said(verifier(process, "by_text"), "sleep"))
    await asyncio.sleep(0.1)
    await process.close()
    assert await judging == "python:died"
    assert await said(verifier(process, "plain"), "yes") == "python:busy"
    assert pid is not None
    assert not psutil.pid_exists(pid)
    await process.close()


@pytest.mark.usefixtures("folder")
async def test_closing_does_not_wait_for_a_start() -> None:
    process = CustomVerifierProcess(["my_verifiers:plain"])
    starting = asyncio.create_task(process.check())
    await asyncio.sleep(0.01)
    await process.close()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert process.pid is None


@pytest.mark.usefixtures("folder")
def test_it_works_in_the_gateways_own_loop() -> None:
    async def judge() -> str:
        process = CustomVerifierProcess(["my_verifiers:plain"])
        await process.check()
        reason = await said(verifier(process, "plain"), "yes")
        await process.close()
        return reason

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(judge()) == "accepted"


def test_it_ends_with_a_gateway_that_was_killed(folder: Path) -> None:
    """Though its function hangs where Python cannot interrupt it."""
    gateway = subprocess.Popen(
        [sys.executable, "-c", GATEWAY],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])},
    )
    assert gateway.stdout is not None
    pid = int(gateway.stdout.readline())
    time.sleep(0.5)  # it backtracks by now
    gateway.kill()
    gateway.wait()
    deadline = time.monotonic() + 20
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
