"""A report as committed files: the figures, and the plot beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def save(report: dict[str, Any], name: str, picture: str, folder: Path = RESULTS) -> tuple[Path, Path]:
    """DATE-`name`.json and .svg. Others of the same day and name are replaced."""
    folder.mkdir(exist_ok=True)
    stem = f"{report['date'][:10]}-{name}"
    table, plot = folder / f"{stem}.json", folder / f"{stem}.svg"
    table.write_text(json.dumps(report) + "\n", encoding="utf-8")
    plot.write_text(picture, encoding="utf-8")
    return table, plot
