"""The tests under `interpreted` need a process with TRITON_INTERPRET=1 from its start, and those beside this
file one without: Triton reads it when it is imported. test_interpreted.py starts the former."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
