"""Files of examples for topics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.router.embedding.training import Examples


def read_examples(files: Sequence[Path]) -> Examples:
    """JSON lines `{"text", "topic"}`; a topic of null is an example of what is none of them. Raises
    ConfigError with file and line."""
    texts: list[str] = []
    topics: list[str | None] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read as text: {error}.") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                text, topic = _example(file, number, line)
                texts.append(text)
                topics.append(topic)
    return Examples(tuple(texts), tuple(topics))


def _example(file: Path, number: int, line: str) -> tuple[str, str | None]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: line {number} is no JSON: {error.msg}.") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or "topic" not in entry:
        raise ConfigError(f'{file}: line {number} is not {{"text": …, "topic": …}}.')
    topic = entry["topic"]
    if not (topic is None or (isinstance(topic, str) and topic)):
        raise ConfigError(f"{file}: line {number}: the topic is {topic!r}, not a name or null.")
    return entry["text"], topic
