"""The same function in several processes that begin at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

CONTEXT = multiprocessing.get_context("fork")
"""Python starts anew for a spawned one, which takes longer than what is tested."""

START_TIMEOUT_S = 60.0


def at_once(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """One process per call; returns what each returned. An exception in one of them is raised here."""
    barrier = CONTEXT.Barrier(len(calls))
    started = []
    for arguments in calls:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_child, args=(barrier, theirs, function, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    answers = [_answer(ours) for _, ours in started]
    for process, _ in started:
        process.join()
    for worked, value in answers:
        if not worked:
            raise AssertionError(f"a process failed: {value}")
    return [value for _, value in answers]


def _answer(connection: Connection) -> tuple[bool, Any]:
    try:
        return connection.recv()
    except EOFError:
        return False, "it ended without a word"


def _child(
    barrier: Barrier, connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    try:
        barrier.wait(START_TIMEOUT_S)
        connection.send((True, function(*arguments)))
    except BaseException as error:
        connection.send((False, repr(error)))
