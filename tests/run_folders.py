"""What a run's folder holds. Which file a point is in is chance; the point is not."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from brittle.evaluation.run.store import _COLUMNS
from safetensors.torch import load_file


def contents(out: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every table's rows, sorted; of points, the hash of the point instead of its place in a file."""
    files = {path.name: load_file(path) for path in (out / "adversarial").glob("*.safetensors")}
    tables = {}
    with closing(sqlite3.connect(out / "run.sqlite")) as db:
        for table, columns in _COLUMNS.items():
            rows = db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
            if table == "points":
                rows = [(*row[:5], _hash(files[row[5]], row[4], row[6])) for row in rows]
            tables[table] = sorted(rows, key=repr)
    named = {row[5] for row in sqlite3.connect(out / "run.sqlite").execute("SELECT * FROM points")}
    assert named == files.keys(), "files and rows must name the same"
    return tables


def _hash(file: dict[str, Any], sample: int, place: int) -> str:
    assert file["ids"][place] == sample
    return hashlib.sha256(file["adversarial"][place].numpy().tobytes()).hexdigest()
