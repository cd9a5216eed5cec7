"""Rendered files as text: a comment that says how to use the file, then YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Repeated values are written out, and texts of several lines as blocks."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def as_text(header: str, documents: Sequence[dict[str, Any]]) -> str:
    """`header`: lines of a comment. Several documents stand one after the other, as kubectl reads them."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.strip().splitlines())
    return comment + yaml.dump_all(list(documents), Dumper=_Dumper, sort_keys=False, width=110)
