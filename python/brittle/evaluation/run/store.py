"""A run's folder: per-sample rows in SQLite, adversarial points beside it, and what the run was begun with.

====================== =======================================================================================
``run.json``           versions, seed, settings, arguments, fingerprint: written once, when the run begins
``run.sqlite``         a row for every sample and stage, in write-ahead-log mode
``adversarial/``       safetensors files of adversarial points, each written whole before rows name it
``run.lock``           held by whoever works on the run
====================== =======================================================================================

A sample's rows of one stage are committed together with its mark in ``done``, so a process may be killed at
any moment: what is marked is whole, and what is not will be done again. A file of points is written under
another name, flushed to disk and renamed, and only then do rows name it; a file that no row names is what a
killed process left, and is removed when the run is next begun.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brittle._files import write_whole

FORMAT = 1

_TABLES = """
CREATE TABLE done (
    stage TEXT, data_set TEXT, id INTEGER,
    PRIMARY KEY (stage, data_set, id)
) WITHOUT ROWID;
CREATE TABLE samples (
    data_set TEXT, id INTEGER, name TEXT, label INTEGER, segment TEXT,
    prediction INTEGER, confidence REAL, log_loss REAL,
    PRIMARY KEY (data_set, id)
) WITHOUT ROWID;
CREATE TABLE outputs (
    data_set TEXT, id INTEGER, logits BLOB, features BLOB,
    PRIMARY KEY (data_set, id)
);
CREATE TABLE skipped (
    data_set TEXT, id INTEGER, name TEXT, reason TEXT,
    PRIMARY KEY (data_set, id)
) WITHOUT ROWID;
CREATE TABLE answers (
    data_set TEXT, kind TEXT, level INTEGER, scale REAL, seed INTEGER, id INTEGER,
    prediction INTEGER, confidence REAL, log_loss REAL,
    PRIMARY KEY (data_set, kind, level, seed, id)
) WITHOUT ROWID;
CREATE TABLE attacks (
    data_set TEXT, attack TEXT, norm TEXT, seed INTEGER, id INTEGER,
    distance REAL, prediction INTEGER, certified INTEGER,
    zero_gradient INTEGER, nonfinite_gradient INTEGER, stalled INTEGER, cycled INTEGER,
    forwards INTEGER, backwards INTEGER,
    PRIMARY KEY (data_set, attack, norm, seed, id)
) WITHOUT ROWID;
CREATE TABLE verdicts (
    data_set TEXT, attack TEXT, norm TEXT, seed INTEGER, epsilon REAL, id INTEGER, success INTEGER,
    PRIMARY KEY (data_set, attack, norm, seed, epsilon, id)
) WITHOUT ROWID;
CREATE TABLE points (
    data_set TEXT, attack TEXT, norm TEXT, seed INTEGER, id INTEGER, file TEXT, place INTEGER,
    PRIMARY KEY (data_set, attack, norm, seed, id)
) WITHOUT ROWID;
CREATE TABLE landscapes (
    data_set TEXT, id INTEGER, losses BLOB,
    PRIMARY KEY (data_set, id)
) WITHOUT ROWID;
"""

_COLUMNS = {
    name: tuple(column.split()[0] for column in re.findall(r"(\w+ (?:TEXT|INTEGER|REAL|BLOB))", body))
    for name, body in re.findall(r"CREATE TABLE (\w+) \((.*?)PRIMARY KEY", _TABLES, re.DOTALL)
}

Row = Sequence[Any]


class RunStoreError(OSError):
    """The run's folder cannot be read or written; what it holds is intact."""

    def __str__(self) -> str:
        return str(self.args[0])


class RunStore:
    """Reads and writes a run's folder. Several processes of one machine may write at once, each with a store
    of its own.

    Args:
        out: the run's folder, which must exist.
        create: make the tables if they are not there; otherwise their absence is an error.

    Raises:
        RunStoreError: the folder holds no run, or cannot be read or written.
    """

    def __init__(self, out: Path, *, create: bool = False) -> None:
        self.out = out
        path = out / "run.sqlite"
        if not create and not path.exists():
            raise RunStoreError(f"evaluate: {out} must be a folder with a run in it; got no run.sqlite there")
        with _explained(path):
            # Transactions are begun by hand; another worker's may take as long as the disk does.
            self._db = sqlite3.connect(path, timeout=600, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                if create:
                    self._make_tables()
                self._db.execute("SELECT 1 FROM done LIMIT 1")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the database; the store is of no use afterwards."""
        # The last one to close empties the write-ahead log, which a full disk refuses: nothing is lost.
        with _explained(self.out):
            self._db.close()

    # ---- writing ----

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All rows that are written inside are committed together, or none of them is."""
        with _explained(self.out):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def insert(self, table: str, rows: Iterable[Row]) -> None:
        """Add rows to a table; a row that is there already is an error."""
        columns = _COLUMNS[table]
        places = ", ".join("?" * len(columns))
        self._db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)

    def mark(self, stage: str, data_set: str, ids: Iterable[int]) -> None:
        """The samples' rows of this stage are all there."""
        self.insert("done", ((stage, data_set, i) for i in ids))

    def skip(self, data_set: str, sample: int, name: str, reason: str) -> None:
        """A sample that cannot be read; no stage will ask for it again."""
        with self.writing():
            self._db.execute(
                "INSERT OR IGNORE INTO skipped VALUES (?, ?, ?, ?)", (data_set, sample, name, reason)
            )

    def save_points(self, stem: str, ids: Tensor, points: Tensor) -> str:
        """Write adversarial points to a file of their own, whole and on disk; returns its name.

        Args:
            stem: of the file's name, which ``ids`` make unique: a sample is in one of a stage's files.
            ids: int64 ``[N]``, N > 0.
            points: ``[N, ...]``.
        """
        from safetensors.torch import save

        folder = self.out / "adversarial"
        name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', stem)}-{int(ids.min()):09d}.safetensors"
        content = save({"ids": ids.cpu().contiguous(), "adversarial": points.detach().cpu().contiguous()})
        with _explained(folder):
            folder.mkdir(exist_ok=True)
            write_whole(folder / name, content)
        return name

    def clean_up(self) -> None:
        """Remove the files that a killed process left; for whoever holds the run alone."""
        folder = self.out / "adversarial"
        with _explained(folder):
            named = {name for (name,) in self._db.execute("SELECT DISTINCT file FROM points")}
            for path in folder.glob("*") if folder.exists() else ():
                if path.name not in named:
                    path.unlink()
            for path in self.out.glob(".*.json.*"):
                path.unlink()
            for path in self.out.glob(".report.html.*"):
                path.unlink()

    # ---- reading ----

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query gives."""
        with _explained(self.out):
            return self._db.execute(query, values).fetchall()

    def column(self, query: str, *values: Any, dtype: Any = np.int64) -> NDArray[Any]:
        """One column of numbers."""
        with _explained(self.out):
            return np.fromiter((row[0] for row in self._db.execute(query, values)), dtype=dtype)

    def finished(self, stage: str, data_set: str) -> NDArray[np.int64]:
        """The ids that need no further work in this stage: done, or not to be read."""
        return self.column(
            "SELECT id FROM done WHERE stage = ? AND data_set = ? "
            "UNION SELECT id FROM skipped WHERE data_set = ?",
            stage,
            data_set,
            data_set,
        )

    def blobs(self, table: str, column: str, data_set: str) -> Tensor | None:
        """The float32 arrays of a set's samples, by id, as ``[N, D]``; None where there are none."""
        query = f"FROM {table} WHERE data_set = ? AND {column} IS NOT NULL"
        (count,), *_ = self.rows(f"SELECT count(*) {query}", data_set)
        if count == 0:
            return None
        out: NDArray[np.float32] | None = None
        with _explained(self.out):
            for place, (blob,) in enumerate(
                self._db.execute(f"SELECT {column} {query} ORDER BY id", (data_set,))
            ):
                values = np.frombuffer(blob, np.float32)
                if out is None:
                    out = np.empty((count, len(values)), np.float32)
                out[place] = values
        assert out is not None
        return torch.from_numpy(out)

    def point(self, data_set: str, attack: str, norm: str, seed: int, sample: int) -> Tensor | None:
        """A sample's adversarial point ``[...]``, or None."""
        from safetensors import safe_open

        found = self.rows(
            "SELECT file, place FROM points "
            "WHERE data_set = ? AND attack = ? AND norm = ? AND seed = ? AND id = ?",
            *(data_set, attack, norm, seed, sample),
        )
        if not found:
            return None
        ((file, place),) = found
        with safe_open(self.out / "adversarial" / file, framework="pt") as tensors:
            point: Tensor = tensors.get_slice("adversarial")[place : place + 1][0]
        return point

    def _make_tables(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'done'").fetchall():
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    with _explained(path):
        write_whole(path, (text + "\n").encode())


def read_run_json(out: str | Path) -> dict[str, Any]:
    """What a run was begun with.

    Args:
        out: the run's folder.

    Raises:
        RunStoreError: there is no run, or one of another format.
    """
    path = Path(out) / "run.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise RunStoreError(f"evaluate: {out} must be a folder with a run in it; {path}: {reason}") from None
    keys = {"settings", "arguments", "sets", "fingerprint"}
    if not isinstance(found, dict) or found.get("format") != FORMAT or not keys <= found.keys():
        raise RunStoreError(f"evaluate: {path} must be a run of format {FORMAT}; got another")
    return found


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the run for this process and its workers; the system lets go of it when the process ends.

    Raises:
        RunStoreError: another process works on the run.
    """
    with _explained(out):
        file = os.open(out / "run.lock", os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunStoreError(f"evaluate: another process is at work on the run in {out}") from None
        yield
    finally:
        os.close(file)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """A disk that is full, read-only or gone is one sentence."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise
        raise RunStoreError(_KEPT.format(path=path, reason=error)) from error
    except RunStoreError:
        raise
    except OSError as error:
        raise RunStoreError(_KEPT.format(path=path, reason=error.strerror or error)) from error


_KEPT = (
    "evaluate: {path} must be readable and writable; got: {reason} (what is finished is kept, and the same "
    "command goes on from there)"
)
