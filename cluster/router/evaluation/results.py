"""A report as committed files: the figures, and the plot beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.router.evaluation.plot import plot

RESULTS = Path(__file__).parents[1] / "results"


def save(report: dict[str, Any], folder: Path = RESULTS) -> tuple[Path, Path]:
    """Returns the two files. Another one of the same day and protocol is replaced."""
    folder.mkdir(exist_ok=True)
    name = f"{report['date'][:10]}-router-{report['protocol']}"
    table, picture = folder / f"{name}.json", folder / f"{name}.svg"
    table.write_text(json.dumps(report) + "\n", encoding="utf-8")
    picture.write_text(plot(report), encoding="utf-8")
    return table, picture
