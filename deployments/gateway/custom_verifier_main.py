"""Program of the process that runs custom verifiers: `custom_verifier_child.py` starts it and says on which
socket it is asked. It knows nothing of sprat.

Each call runs under an alarm that ends the process: the gateway ends it earlier, unless it was killed
meanwhile, and a function that hangs outside Python's code can be ended by nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

AFTER_GATEWAY_S = 1.0
"""The alarm comes this much later than the gateway gives up."""

TOLD_CHARACTERS = 200

Function = Callable[[dict[str, Any], dict[str, Any]], Any]


def main() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    functions: dict[str, Function] = {}
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rwb") as stream:
        for line in stream:
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + AFTER_GATEWAY_S)
            if "functions" in request:
                answer = import_all(request["functions"], functions)
            else:
                answer = call(functions[request["function"]], request["draft"], request["expected"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                stream.write(json.dumps({"number": request["number"], **answer}).encode() + b"\n")
                stream.flush()
            except OSError:  # the gateway has ended meanwhile
                os._exit(0)


def import_all(paths: Sequence[str], into: dict[str, Function]) -> dict[str, Any]:
    """Into `into`. Says which one is wrong, and why."""
    for path in paths:
        module, _, name = path.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except BaseException as error:  # also of a module that calls sys.exit
            return {"wrong": path, "why": f"{type(error).__name__}: {error}"[:TOLD_CHARACTERS]}
        if not callable(function):
            return {"wrong": path, "why": "it is no function"}
        into[path] = function
    return {}


def call(function: Function, draft: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Its verdict, or what went wrong: never its message, which may hold a prompt."""
    try:
        said = function(draft, expected)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"raised": f"{type(error).__name__} at {place.filename}:{place.lineno}"}
    accepted, reason = said if isinstance(said, tuple) and len(said) == 2 else (said, "")
    if not isinstance(accepted, bool) or not isinstance(reason, str):
        return {"returned": type(said).__name__}
    return {"accepted": accepted, "reason": reason[:TOLD_CHARACTERS]}


if __name__ == "__main__":
    main()
