"""What is compared: systems and modes, as the command line names them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from loadtest.streaming_client import Endpoint

BASELINE = "direct"
"""The system whose times are subtracted from the others': the engine without anything before it."""


class Mode(StrEnum):
    UNARY = "unary"
    STREAM = "stream"
    """The engine sends its chunks at once: what is measured is the cost of passing them on."""

    STREAM_PACED = "stream-paced"
    """The engine leaves real gaps between chunks."""


@dataclass(frozen=True, slots=True)
class System:
    """`model_paced` and `url_paced` name what answers with real gaps; one of them is enough. `pids` are the
    gateway's own processes, `store_pids` those of the database that it works with. `pause_pids` are stopped
    while it is not its turn: of systems that would otherwise take processor time from the others."""

    name: str
    url: str
    api_key: str
    model: str
    pids: tuple[int, ...] = ()
    store_pids: tuple[int, ...] = ()
    pause_pids: tuple[int, ...] = ()
    model_paced: str | None = None
    url_paced: str | None = None

    def endpoint(self, mode: Mode) -> Endpoint:
        paced = mode is Mode.STREAM_PACED and self.url_paced
        return Endpoint.of(paced or self.url, self.api_key)

    def model_for(self, mode: Mode) -> str:
        return (self.model_paced if mode is Mode.STREAM_PACED else None) or self.model

    def reason_against(self, mode: Mode) -> str | None:
        """Why this system cannot run in this mode, or None."""
        if mode is Mode.STREAM_PACED and not (self.model_paced or self.url_paced):
            return "stream-paced needs model_paced or url_paced"
        return None


@dataclass(frozen=True, slots=True)
class Skip:
    system: str
    reason: str
    mode: Mode | None = None

    def to_json(self) -> dict[str, str]:
        row = {"system": self.system, "reason": self.reason}
        return row if self.mode is None else row | {"mode": self.mode.value}


def parse_system(text: str) -> System:
    """`name=direct,url=http://127.0.0.1:9000,key=K,model=M[,pid=1][,pid=2][,store_pid=3][,pause_pid=1][,model_paced=P][,url_paced=U]`"""
    single: dict[str, str] = {}
    pids: dict[str, list[int]] = {"pid": [], "store_pid": [], "pause_pid": []}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if not separator or not value:
            raise ValueError(f"--system: {part!r} is not name=value")
        if name in pids:
            pids[name].append(_pid(name, value))
        elif name not in {"name", "url", "key", "model", "model_paced", "url_paced"}:
            raise ValueError(f"--system: unknown field {name!r}")
        elif name in single:
            raise ValueError(f"--system: {name} stands there twice")
        else:
            single[name] = value
    missing = {"name", "url", "key", "model"} - single.keys()
    if missing:
        raise ValueError(f"--system: {', '.join(sorted(missing))} missing in {text!r}")
    for url in (single["url"], single.get("url_paced", single["url"])):
        Endpoint.of(url, "")  # says what is wrong with a URL before anything runs
    return System(
        name=single["name"],
        url=single["url"],
        api_key=single["key"],
        model=single["model"],
        pids=tuple(pids["pid"]),
        store_pids=tuple(pids["store_pid"]),
        pause_pids=tuple(pids["pause_pid"]),
        model_paced=single.get("model_paced"),
        url_paced=single.get("url_paced"),
    )


def parse_skip(text: str) -> Skip:
    name, separator, reason = text.partition("=")
    if not separator or not name or not reason:
        raise ValueError(f"--skip: {text!r} is not system=reason")
    return Skip(name, reason)


def _pid(name: str, value: str) -> int:
    if not value.isdigit():
        raise ValueError(f"--system: {name}={value} is not a number")
    return int(value)
