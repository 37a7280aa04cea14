"""A run's folder that others have had a hand in: nothing foreign is deleted, nothing in it is believed."""

import copy
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from brittle.evaluation import evaluate, verify
from brittle.evaluation.run.store import _COLUMNS, RunStore, RunStoreError
from torch import nn

SETTINGS: dict[str, Any] = {
    "views": ["robustness"],
    "norms": ["linf"],
    "epsilons": [0.1, 0.3],
    "steps": 2,
    "restarts": 1,
    "attacks": ["pgd"],
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


MODEL = network()
X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = MODEL(X).argmax(1)
Y[0] = (Y[0] + 1) % 4  # one that the model is wrong about


def run(out: Path, **changes: Any) -> None:
    evaluate(MODEL, (X, Y), out, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once") / "run"
    run(out)
    return out


@pytest.fixture
def finished(once: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", once, tmp_path / "run"], check=True)
    return tmp_path / "run"


def sql(out: Path, *statements: str) -> None:
    with closing(sqlite3.connect(out / "run.sqlite")) as db, db:
        for statement in statements:
            db.execute(statement)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- files that are not the run's own ----


class TestFilesOfOthers:
    @pytest.mark.parametrize(
        "name",
        [
            "adversarial/notes.txt",
            ".settings.json.bak",
            ".report.html.mine",
            ".run.json.backup",
            "report.html",
            "report.json",
            "run.sqlite",
            "README",
            "before/run.json",
        ],
    )
    def test_a_folder_with_something_in_it_is_no_place_for_a_new_run(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("thesis")
        with pytest.raises(
            RunStoreError, match=r"out must be a new or empty folder, or hold a run; got .*holds"
        ):
            run(tmp_path)
        assert contents(tmp_path) == {name: b"thesis"}

    def test_what_a_process_left_that_was_killed_before_it_began_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / ".run.json.123").write_text("half")
        (tmp_path / "run.lock").touch()
        run(tmp_path, views=["classification"])
        assert not (tmp_path / ".run.json.123").exists()

    def test_a_run_that_goes_on_leaves_the_files_of_others_alone(self, finished: Path) -> None:
        folder = finished / "adversarial"
        elsewhere = finished.parent / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "data-pgd-linf-0-000000099.safetensors").write_text("elsewhere")
        others = {
            "adversarial/notes.txt": "notes",
            "adversarial/mine.safetensors": "mine",
            "adversarial/.hidden": "hidden",
            ".settings.json.bak": "settings",
            ".report.html.mine": "page",
            ".run.json.backup": "backup",
        }
        for name, text in others.items():
            (finished / name).write_text(text)
        # As a killed process leaves them.
        for name in (
            ".report.html.7",
            ".report.json.7",
            "adversarial/.data-pgd-linf-0-000000007.safetensors.7",
        ):
            (finished / name).write_text("draft")
        (folder / "data-pgd-linf-0-000000099.safetensors").write_text("no row names it")
        (folder / "data-pgd-linf-0-000000098.safetensors").symlink_to(
            elsewhere / "data-pgd-linf-0-000000099.safetensors"
        )
        (folder / "data-pgd-linf-0-000000097.safetensors").mkdir()
        before = set(contents(finished)) - {
            ".report.html.7",
            ".report.json.7",
            "adversarial/.data-pgd-linf-0-000000007.safetensors.7",
            "adversarial/data-pgd-linf-0-000000099.safetensors",
        }
        run(finished)
        assert set(contents(finished)) == before
        assert {name: (finished / name).read_text() for name in others} == others
        assert contents(elsewhere)

    def test_points_behind_a_link_are_not_deleted(self, finished: Path) -> None:
        (finished / "adversarial").rename(finished.parent / "elsewhere")
        (finished / "adversarial").symlink_to(finished.parent / "elsewhere")
        (finished.parent / "elsewhere" / "data-pgd-linf-0-000000099.safetensors").write_text(
            "somebody else's"
        )
        before = contents(finished.parent / "elsewhere")
        run(finished, views=["classification"])
        assert contents(finished.parent / "elsewhere") == before

    @pytest.mark.parametrize("replaced", [False, True])
    def test_a_store_that_is_taken_away_while_the_run_works_is_told(
        self, tmp_path: Path, replaced: bool
    ) -> None:
        def take_away(stage: str, done: int, total: int) -> None:
            if stage.startswith("pgd") and done == total:
                (tmp_path / "run.sqlite").unlink()
                if replaced:
                    (tmp_path / "run.sqlite").write_bytes(b"")

        with pytest.raises(RunStoreError, match="must stay where it is while a run is at work"):
            run(tmp_path, progress=take_away)
        assert not (tmp_path / "report.json").exists()


# ---- reading without writing ----


class TestReadingAlone:
    def test_verification_changes_nothing_in_the_folder(self, finished: Path) -> None:
        before = {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in finished.rglob("*")}
        assert verify(finished, MODEL, (X, Y)).ok
        after = {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in finished.rglob("*")}
        assert after == before

    def test_a_readonly_store_refuses_to_write(self, finished: Path) -> None:
        with closing(RunStore(finished, readonly=True)) as store:
            with pytest.raises(RunStoreError, match="readonly"):
                store.skip("data", 3, "x", "y")
            assert len(store.rows("SELECT * FROM samples")) == 24

    def test_rows_that_are_still_in_the_write_ahead_log_are_read(self, finished: Path) -> None:
        with closing(RunStore(finished)) as writer:
            writer.skip("data", 99, "name", "reason")
            assert (finished / "run.sqlite-wal").stat().st_size > 0
            with closing(RunStore(finished, readonly=True)) as store:
                assert store.rows("SELECT id FROM skipped") == [(99,)]

    def test_a_folder_that_may_only_be_read(self, once: Path) -> None:
        """In another process, which gives its rights up if it has too many to be refused anything."""
        with tempfile.TemporaryDirectory() as folder:  # everybody may enter it, unlike pytest's
            os.chmod(folder, 0o755)
            subprocess.run(["cp", "-r", once, Path(folder, "run")], check=True)
            self.read_alone(Path(folder, "run"))

    def read_alone(self, finished: Path) -> None:
        script = """
            import os, sys
            from pathlib import Path
            out = Path(sys.argv[1])
            os.chdir(out)
            from brittle.evaluation.run.store import RunStore
            RunStore(Path(), readonly=True).close()  # imports what it needs
            for path in (out, *out.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            assert not os.access(".", os.W_OK)
            print(RunStore(Path(), readonly=True).rows("SELECT count(*) FROM samples"))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), finished], capture_output=True, text=True
        )
        for path in (finished, *finished.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert done.stdout == "[(24,)]\n", done.stderr


# ---- success that nothing backs ----


class TestVacuousSuccess:
    def refused(self, out: Path) -> list[str]:
        result = verify(out, MODEL, (X, Y))
        assert not result.ok
        assert all(f"missing: {sentence}" in result.table() for sentence in result.missing)
        return list(result.missing)

    def test_rows_of_an_attack_that_were_deleted(self, finished: Path) -> None:
        sql(finished, "DELETE FROM attacks", "DELETE FROM points")
        missing = self.refused(finished)
        assert "pgd linf 0 has results of 0 of 24 samples" in missing

    def test_all_rows_deleted(self, finished: Path) -> None:
        sql(finished, "DELETE FROM attacks", "DELETE FROM points", "DELETE FROM verdicts", "DELETE FROM done")
        assert self.refused(finished) == ["pgd linf 0 has results of 0 of 24 samples"]

    def test_one_sample_without_a_result_and_one_without_a_verdict(self, finished: Path) -> None:
        sql(
            finished,
            "DELETE FROM attacks WHERE id = 5",
            "DELETE FROM verdicts WHERE id = 7 AND epsilon > 0.2",
        )
        assert self.refused(finished) == [
            "pgd linf 0 has results of 23 of 24 samples",
            "pgd linf 0 has no verdict at every epsilon for 7",
            "pgd linf 0 has verdicts or points, but no results, of 5",
        ]

    def test_a_run_without_attacks(self, tmp_path: Path) -> None:
        run(tmp_path, views=["classification"])
        assert self.refused(tmp_path) == ["there is no attack in the run, so there is nothing to verify"]

    @pytest.mark.parametrize("stage", ["clean", "pgd"])
    def test_a_run_that_was_interrupted(self, tmp_path: Path, stage: str) -> None:
        def interrupt(name: str, done: int, total: int) -> None:
            if name.startswith(stage) and done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=interrupt, batch_size=8)
        (sentence,) = self.refused(tmp_path)
        assert sentence.startswith("pgd linf 0 has results of ")
        assert sentence != "pgd linf 0 has results of 24 of 24 samples"

    def test_predictions_of_the_store_are_not_believed(self, finished: Path) -> None:
        """That a sample needs no point because the model is wrong about it is for the model to say."""
        sql(finished, "UPDATE samples SET prediction = label + 1", "DELETE FROM points")
        result = verify(finished, MODEL, (X, Y))
        claimed = {
            sample
            for (sample,) in sqlite3.connect(finished / "run.sqlite").execute(
                "SELECT DISTINCT id FROM verdicts WHERE success"
            )
        }
        assert 0 in claimed
        assert set(result.attacks[0].failed) == claimed - {0}
        assert len(claimed) > 3

    def test_data_that_are_too_few(self, finished: Path) -> None:
        with pytest.raises(ValueError, match="data must be the 24 samples that the run is about; got 20"):
            verify(finished, MODEL, (X[:20], Y[:20]))

    def test_how_many_samples_it_speaks_of(self, finished: Path, tmp_path: Path) -> None:
        assert verify(finished, MODEL, (X, Y)).table().splitlines()[-1] == "24 of 24 samples were attacked"
        run(tmp_path / "part", limit=9)
        result = verify(tmp_path / "part", MODEL, (X, Y))
        assert (result.ok, result.samples, result.of) == (True, 9, 24)
        assert result.table().splitlines()[-1] == "9 of 24 samples were attacked"


# ---- a folder that means ill ----


class TestIllWill:
    @pytest.mark.timeout(60)
    @pytest.mark.parametrize(
        "statements",
        [
            (
                "DROP TABLE done",
                "CREATE VIEW done AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
                "SELECT count(*) FROM c",
            ),
            ("CREATE VIEW more AS SELECT 1",),
            ("CREATE TRIGGER t AFTER INSERT ON skipped BEGIN DELETE FROM samples; END",),
            ("CREATE INDEX i ON samples (name)",),
            ("CREATE TABLE other (x)",),
            ("DROP TABLE landscapes",),
            ("ALTER TABLE attacks ADD COLUMN x INTEGER",),
            ("DROP TABLE skipped", "CREATE VIRTUAL TABLE skipped USING fts5(data_set, id, name, reason)"),
        ],
    )
    def test_a_database_that_is_not_ours_to_the_letter(
        self, finished: Path, statements: tuple[str, ...]
    ) -> None:
        sql(finished, *statements)
        for use in (lambda: verify(finished, MODEL, (X, Y)), lambda: run(finished)):
            with pytest.raises(RunStoreError, match="must hold the tables of a run and nothing else"):
                use()

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("name", ["run.json", "run.sqlite", "adversarial/*"])
    @pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder"])
    def test_what_is_no_regular_file(self, finished: Path, name: str, kind: str) -> None:
        (path,) = finished.glob(name)
        copied = finished.parent / "copy"
        path.rename(copied)
        {
            "pipe": lambda: os.mkfifo(path),
            "device": lambda: path.symlink_to("/dev/zero"),
            "link": lambda: path.symlink_to(copied),
            "folder": path.mkdir,
        }[kind]()
        with pytest.raises(RunStoreError, match="must be a regular file"):
            verify(finished, MODEL, (X, Y))

    def test_the_folder_of_points_is_a_link(self, finished: Path) -> None:
        (finished / "adversarial").rename(finished.parent / "elsewhere")
        (finished / "adversarial").symlink_to(finished.parent / "elsewhere")
        with pytest.raises(RunStoreError, match="must be a folder of the run's own; it is a symbolic link"):
            verify(finished, MODEL, (X, Y))

    @pytest.mark.parametrize(
        "name", ["/tmp/x-000000000.safetensors", "../{}", "", "..", "x.pt", 7, b"x", None]
    )
    def test_points_outside_the_folder_are_not_opened(self, finished: Path, name: Any) -> None:
        (path,) = (finished / "adversarial").glob("*")
        (finished / path.name).write_bytes(path.read_bytes())
        value = name.format(path.name) if isinstance(name, str) else name
        with closing(sqlite3.connect(finished / "run.sqlite")) as db, db:
            db.execute("UPDATE points SET file = ?", (value,))
        with pytest.raises(RunStoreError, match="must name files of points"):
            verify(finished, MODEL, (X, Y))


BAD: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "text", [], {}, [[]])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside one of JSON."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*at, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


def replaced(value: Any, at: tuple[Any, ...], bad: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = bad
    return changed


def of_one_sentence(use: Callable[[], Any]) -> bool:
    """Whether it was refused, and then by one sentence."""
    try:
        result = use()
    except (RunStoreError, ValueError) as error:
        text = str(error)
        assert text.startswith(("evaluate: ", "verify: ", "Target: ")), text
        assert "\n" not in text
        return True
    return result is not None and not result.ok


class TestEveryValue:
    def test_of_run_json(self, finished: Path) -> None:
        good = json.loads((finished / "run.json").read_text())
        good["arguments"] = {}
        read = [at for at in places(good) if at[0] in ("format", "settings", "sets", "fingerprint")]
        assert len(read) > 30
        for at in read:
            for bad in BAD:
                (finished / "run.json").write_text(json.dumps(replaced(good, at, bad)))
                refused = of_one_sentence(lambda: verify(finished, MODEL, (X, Y)))
                # What makes the proof another one may not pass.
                about_samples = at[0] == "sets" and "classes" not in at
                if about_samples or at in (("settings", "epsilons"), ("fingerprint", "weights")):
                    assert refused or replaced(good, at, bad) == good, (at, bad)

    @pytest.mark.parametrize("table", ["attacks", "verdicts", "points", "samples", "skipped", "done"])
    def test_of_the_tables(self, finished: Path, table: str) -> None:
        (path,) = finished.glob("run.sqlite")
        good = path.read_bytes()
        for column in _COLUMNS[table]:
            for bad in (None, -100, 2**62, 1.5, -1e308, "text", "l7", b"bytes", ""):
                path.write_bytes(good)
                try:
                    with closing(sqlite3.connect(path)) as db, db:
                        db.execute(
                            f"UPDATE {table} SET {column} = ? WHERE id = (SELECT max(id) FROM {table})",
                            (bad,),
                        )
                except sqlite3.IntegrityError:
                    continue  # such a row cannot be
                of_one_sentence(lambda: verify(finished, MODEL, (X, Y)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: {**t, "adversarial": t["adversarial"].to(torch.complex64)},
            lambda t: {**t, "adversarial": t["adversarial"].to(torch.float8_e4m3fn)},
            lambda t: {**t, "adversarial": torch.tensor(0.5)},
            lambda t: {**t, "adversarial": (255 * t["adversarial"]).to(torch.uint8)},
            lambda t: {**t, "ids": t["ids"].flip(0).contiguous()},
            lambda t: {**t, "ids": t["ids"].to(torch.int32)},
            lambda t: {**t, "ids": t["ids"][:-1].contiguous()},
            lambda t: {"adversarial": t["adversarial"]},
            lambda t: {},
        ],
    )
    def test_of_the_points(self, finished: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        from safetensors.torch import load_file, save_file

        (path,) = (finished / "adversarial").glob("*")
        save_file(change(load_file(path)), path)
        with pytest.raises(RunStoreError, match="must hold the points that rows name"):
            verify(finished, MODEL, (X, Y))
