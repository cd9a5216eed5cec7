"""A report as committed files: `results/DATE-gateway.json` and the plot beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtest.plot import plot

RESULTS = Path(__file__).parent / "results"


def save(report: dict[str, Any], folder: Path = RESULTS) -> tuple[Path, Path]:
    """Returns the two files. Another one of the same day is replaced."""
    folder.mkdir(exist_ok=True)
    name = f"{report['date'][:10]}-gateway"
    table, picture = folder / f"{name}.json", folder / f"{name}.svg"
    rows = ",\n".join(json.dumps(row) for row in report["rows"])
    head = json.dumps({key: value for key, value in report.items() if key != "rows"}, indent=1)
    table.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    picture.write_text(plot(report), encoding="utf-8")
    return table, picture
