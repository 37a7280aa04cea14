"""A run's folder: per-sample rows in SQLite, adversarial points beside it, and what the run was begun with.

====================== =======================================================================================
``run.json``           versions, seed, settings, arguments, fingerprint: written once, when the run begins
``run.sqlite``         a row for every sample and stage, in write-ahead-log mode
``adversarial/``       safetensors files of adversarial points, each written whole before rows name it
``run.lock``           held by whoever works on the run
====================== =======================================================================================

A sample's rows of one stage are committed together with its mark in ``done``, so a process may be killed at
any moment: what is marked is whole, and what is not will be done again. A file of points is written under
another name, flushed to disk and renamed, and only then do rows name it; a file of such a name that no row
names is what a killed process left, and is removed when the run is next begun. Nothing else is ever removed.

A folder may come from somebody else. What it holds is looked at before it is believed: its tables must be
ours to the letter, ``run.json`` of our shape, files regular ones under names that we would give them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypedDict

from brittle._files import parse_json, read_regular, require_regular, write_whole

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

_STATEMENTS = {
    match[1]: " ".join(match[0].split()) for match in re.finditer(r"CREATE TABLE (\w+)[^;]*", _TABLES)
}

#: What :meth:`RunStore.save_points` calls its files, and what a file is called while it is written.
_POINTS = re.compile(r"[A-Za-z0-9._-]+-\d{9,}\.safetensors")
_DRAFTS = re.compile(r"\.((run|report|begun)\.json|report\.html|[A-Za-z0-9._-]+-\d{9,}\.safetensors)\.\d+")

Row = Sequence[Any]


class SetJson(TypedDict):
    """A data set of a run, as ``run.json`` has it."""

    name: str
    samples: int
    classes: list[str]


class SettingsJson(TypedDict):
    """The settings of a run, as ``run.json`` has them; :class:`Settings` checks their values."""

    views: list[str]
    norms: list[str]
    epsilons: dict[str, list[float]]
    reported: dict[str, float]
    attacks: list[str]
    steps: int
    restarts: int
    seed: int
    repeat_seeds: int
    precision: str
    bounds: list[float]


FingerprintJson = TypedDict(
    "FingerprintJson",
    {
        "weights": str,
        "answers": list[list[float]],
        "bounds": list[float],
        "mean": list[float] | None,
        "std": list[float] | None,
        "fixed batch": int,
        "limit": int | None,
    },
)


class RunJson(TypedDict):
    """What a run was begun with."""

    format: int
    settings: SettingsJson
    arguments: dict[str, Any]
    sets: list[SetJson]
    fingerprint: FingerprintJson


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
        readonly: write nothing, so that the folder may be one that can only be read.

    Raises:
        RunStoreError: the folder holds no run, holds tables that are not those of a run, or cannot be read or
            written.
    """

    def __init__(self, out: Path, *, create: bool = False, readonly: bool = False) -> None:
        self.out = out
        self._path = path = out / "run.sqlite"
        if not create and not os.path.lexists(path):
            raise RunStoreError(f"evaluate: {out} must be a folder with a run in it; got no run.sqlite there")
        with _explained(path, readonly=readonly):
            if os.path.lexists(path):
                require_regular(path, follow=False)
            self._db = _readable(path) if readonly else _writable(path)
            try:
                if create:
                    self._make_tables()
                self._check_tables()
            except BaseException:
                self._db.close()
                raise
            self._inode = os.stat(path).st_ino

    def _check_tables(self) -> None:
        """Refuse other tables than ours, and whatever else a database may hold: a view or a trigger is
        somebody's code, and SQLite would run it."""
        entries = self._db.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE NOT (type = 'index' AND sql IS NULL)"
        ).fetchall()
        found = {name: " ".join(str(sql).split()) for kind, name, sql in entries if kind == "table"}
        if len(found) != len(entries) or found != _STATEMENTS:
            raise RunStoreError(
                f"evaluate: {self._path} must hold the tables of a run and nothing else; got others"
            )

    def still_there(self) -> None:
        """Raise RunStoreError if the database has been removed or replaced since it was opened."""
        try:
            there = os.stat(self._path).st_ino == self._inode
        except OSError:
            there = False
        if not there:
            raise RunStoreError(
                f"evaluate: {self._path} must stay where it is while a run is at work; it was removed or "
                "replaced, and with it the rows of this run"
            )

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
        """Remove the files that a killed process left; for whoever holds the run alone, and only in a folder
        where a run was before.

        Only regular files are removed, and only such as bear a name that this store gives: drafts, and points
        that no row names. A folder of points that is a link leads to somebody else's files.
        """
        folder = self.out / "adversarial"
        with _explained(folder):
            named = {name for (name,) in self._db.execute("SELECT DISTINCT file FROM points")}
            remove_drafts(self.out)
            if not folder.is_dir() or folder.is_symlink():
                return
            remove_drafts(folder)
            for path in _regular_files(folder):
                if _POINTS.fullmatch(path.name) and path.name not in named:
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
        with safe_open(self.points_file(file), framework="pt") as tensors:
            point: Tensor = tensors.get_slice("adversarial")[place : place + 1][0]
        return point

    def points_file(self, name: Any) -> Path:
        """Where a file of points is, by the name that rows give.

        Raises:
            RunStoreError: it is no name of ours, or what bears it is no regular file in the run's own folder.
        """
        folder = self.out / "adversarial"
        if not (isinstance(name, str) and _POINTS.fullmatch(name)):
            raise RunStoreError(
                f"evaluate: rows must name files of points in {folder}, as a run calls them; got {name!r:.80}"
            )
        try:
            require_regular(folder / name, follow=False)
        except OSError as error:
            raise RunStoreError(f"evaluate: {folder / name}: {error.strerror}") from None
        if folder.is_symlink():
            raise RunStoreError(
                f"evaluate: {folder} must be a folder of the run's own; it is a symbolic link"
            )
        return folder / name

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


def _writable(path: Path) -> sqlite3.Connection:
    # Transactions are begun by hand; another worker's may take as long as the disk does.
    db = sqlite3.connect(path, timeout=600, isolation_level=None)
    try:
        _distrust(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def _readable(path: Path) -> sqlite3.Connection:
    """Without a trace: neither the journal's mode nor a file beside it is changed."""
    place = f"file:{quote(str(path.resolve()))}"
    log = path.with_name(path.name + "-wal")
    # A write-ahead log wants a file of its own beside it even from a reader, unless there is nothing in it.
    idle = not log.exists() or log.stat().st_size == 0
    db = sqlite3.connect(f"{place}?{'immutable=1' if idle else 'mode=ro'}", uri=True, isolation_level=None)
    try:
        _distrust(db)
    except BaseException:
        db.close()
        raise
    return db


def _distrust(db: sqlite3.Connection) -> None:
    """Whoever made the database may mean ill."""
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes were about to write when they ended."""
    for path in _regular_files(folder):
        if _DRAFTS.fullmatch(path.name):
            path.unlink()


def refuse_foreign(out: Path, kind: str = "run") -> None:
    """Raise RunStoreError if a run, or another ``kind``, is to begin in a folder that is not empty.

    What a process left that was killed before it wrote ``run.json`` does not count.
    """
    with _explained(out):
        found = sorted(name for name in os.listdir(out) if name != "run.lock" and not _DRAFTS.fullmatch(name))
    if found:
        some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise RunStoreError(
            f"evaluate: out must be a new or empty folder, or hold a {kind}; got {out}, which holds {some}"
        )


def _regular_files(folder: Path) -> Iterator[Path]:
    """A folder's own files: no links, no folders."""
    for entry in list(os.scandir(folder)):
        if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield Path(entry.path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    with _explained(path):
        write_whole(path, (text + "\n").encode())


def read_run_json(out: str | Path) -> RunJson:
    """What a run was begun with.

    Args:
        out: the run's folder.

    Raises:
        RunStoreError: there is no run, one of another format, or one whose values are not of their kind.
    """
    path = Path(out) / "run.json"
    try:
        found = parse_json(read_regular(path, follow=False), RunJson)
    except OSError as error:
        raise RunStoreError(
            f"evaluate: {out} must be a folder with a run in it; {path}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise RunStoreError(f"evaluate: {path} must be a run of format {FORMAT}; {error}") from None
    bounds, batch = found["fingerprint"]["bounds"], found["fingerprint"]["fixed batch"]
    if found["format"] != FORMAT or not found["sets"] or len(bounds) != 2 or not 1 <= batch < 2**31:
        raise RunStoreError(
            f"evaluate: {path} must be a run of format {FORMAT}, with a data set, two bounds and batches of "
            f"at least one sample; got format {found['format']}, {len(found['sets'])} data sets, the bounds "
            f"{bounds} and batches of {batch}"
        )
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
def _explained(path: Path, *, readonly: bool = False) -> Iterator[None]:
    """A disk that is full, read-only or gone is one sentence."""
    text = _READ if readonly else _KEPT
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise
        raise RunStoreError(text.format(path=path, reason=error)) from error
    except RunStoreError:
        raise
    except OSError as error:
        raise RunStoreError(text.format(path=path, reason=error.strerror or error)) from error


_READ = "evaluate: {path} must be readable; got: {reason}"
_KEPT = (
    "evaluate: {path} must be readable and writable; got: {reason} (what is finished is kept, and the same "
    "command goes on from there)"
)
