"""Tables of results that grow row by row, so that a benchmark can be stopped and started again."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_row(table: Path, fields: Sequence[str], row: Mapping[str, Any]) -> None:
    """Appends `row` to the CSV file `table`, which gets a header if it is new."""
    new = not table.exists()
    with open(table, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow(row)
