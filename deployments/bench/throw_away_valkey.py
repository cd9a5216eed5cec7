"""A Valkey of the bench's own: on a unix socket, with the settings of a real one, empty, gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.valkey import start_server, stop_server


@contextmanager
def throw_away_valkey() -> Iterator[Path]:
    """The path of its socket. In the main thread only: the server dies with the thread that started it."""
    with tempfile.TemporaryDirectory(prefix="sprat-bench-") as folder:
        socket_path = Path(folder) / "v.sock"
        process = start_server(socket_path, Path(folder) / "data")
        try:
            yield socket_path
        finally:
            stop_server(process)
