"""A run survives whatever stops it, and goes on as if nothing had happened."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import brittle.report
import interrupted_runs
import pytest
import torch
from brittle.evaluation.run import answers, attacked
from brittle.evaluation.run.evaluate import evaluate
from brittle.evaluation.run.fingerprint import RunMismatch
from brittle.evaluation.run.store import RunStore, RunStoreError, lock
from run_folders import contents

MODEL = interrupted_runs.model()
DATA = interrupted_runs.data(MODEL)
SETTINGS: dict[str, Any] = {
    "fixed_batch": 8, "steps": 3, "restarts": 2, "norms": ["linf"], "epsilons": [0.05, 0.2],
    "views": ["classification", "robustness", "landscape", "ood"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brittle.report, "evaluation_page", interrupted_runs.quick_page)
    monkeypatch.setattr(answers, "LANDSCAPE_SIDE", 5)


def run(out: Path, **changes: Any) -> None:
    evaluate(changes.pop("model", MODEL), changes.pop("data", DATA), out, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brittle.report, "evaluation_page", interrupted_runs.quick_page)
        patch.setattr(answers, "LANDSCAPE_SIDE", 5)
        run(out)
    return out


def assert_same_run(a: Path, b: Path) -> None:
    assert contents(a) == contents(b)
    for name in ("report.json", "report.html"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


class Interruption(Exception):
    pass


def at_stage(name: str, action: Callable[[], None]) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == name and done:
            action()

    return progress


def stop() -> None:
    raise Interruption


@pytest.mark.timeout(600)
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    script = Path(interrupted_runs.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "50"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *found, summary = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 50
    for one in found:
        expected = {"killed": True, "finished": True, "rows": True, "report.json": True, "report.html": True}
        assert one == {**one, **expected, "left over": []}
    assert {one["workers"] for one in found} == {1, 2}
    assert summary["page"]
    assert all(count > 150 for count in summary["events"].values())
    assert all(count for name, count in summary["tables"].items() if name != "skipped")


@pytest.mark.parametrize(("batch_size", "stage"), [(1, "clean other"), (7, "pgd linf"), (100, "random linf")])
def test_another_batch_size_goes_on(tmp_path: Path, undisturbed: Path, batch_size: int, stage: str) -> None:
    with pytest.raises(Interruption):
        run(tmp_path / "run", batch_size=5, progress=at_stage(stage, stop))
    before = len(contents(tmp_path / "run")["done"])
    assert 0 < before < len(contents(undisturbed)["done"])
    run(tmp_path / "run", batch_size=batch_size)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_finished_run_is_reported_again_without_work(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    calls: list[str] = []
    run(tmp_path / "run", progress=lambda stage, done, total: calls.append(stage))
    assert set(calls) == {"report"}
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_store_cut_off_at_any_byte_of_its_last_record_opens(tmp_path: Path, undisturbed: Path) -> None:
    snapshot = tmp_path / "snapshot"

    def copy() -> None:
        # What a killed process leaves: nothing has been moved from the log into the database yet.
        shutil.rmtree(snapshot, ignore_errors=True)
        shutil.copytree(tmp_path / "run", snapshot)
        raise Interruption

    with pytest.raises(Interruption):
        run(tmp_path / "run", batch_size=9, progress=at_stage("fgsm linf", copy))
    log = (snapshot / "run.sqlite-wal").read_bytes()
    page = int.from_bytes(log[8:12], "big")
    frame = 24 + page
    assert len(log) > 32 + frame
    assert (len(log) - 32) % frame == 0
    cut = tmp_path / "cut"
    cut.mkdir()
    counts = set()
    # Every byte of the record's head and end, and enough of its middle, whose bytes SQLite treats alike.
    kept = sorted({*range(70), *range(70, frame - 30, 17), *range(frame - 30, frame + 1)})
    for length in (len(log) - frame + part for part in kept):
        (cut / "run.sqlite-shm").unlink(missing_ok=True)
        shutil.copy(snapshot / "run.sqlite", cut / "run.sqlite")
        (cut / "run.sqlite-wal").write_bytes(log[:length])
        store = RunStore(cut)
        ((done,),) = store.rows("SELECT count(*) FROM done WHERE stage = 'fgsm linf'")
        ((rows,),) = store.rows("SELECT count(*) FROM attacks WHERE attack = 'fgsm'")
        assert done == rows
        counts.add(done)
        if length % 10 == 0:
            assert store.rows("PRAGMA integrity_check") == [("ok",)]
        store.close()
    assert counts == {0, 9}
    shutil.copytree(snapshot, tmp_path / "resumed")
    (tmp_path / "resumed" / "run.sqlite-wal").write_bytes(log[:-1])
    (tmp_path / "resumed" / "run.sqlite-shm").unlink(missing_ok=True)
    run(tmp_path / "resumed", batch_size=4)
    assert_same_run(tmp_path / "resumed", undisturbed)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file can grow beyond ``size``: what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [500, 30_000, 80_000, 110_000])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    tmp_path: Path, undisturbed: Path, size: int
) -> None:
    out = tmp_path / "run"
    with (
        file_limit(size),
        pytest.raises(RunStoreError, match=r"must be (readable and )?writable; got") as error,
    ):
        run(out, batch_size=5)
    assert "\n" not in str(error.value)
    if (out / "run.sqlite").exists() and size > 500:
        db = sqlite3.connect(out / "run.sqlite")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
    run(out)
    assert_same_run(out, undisturbed)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunStoreError, match="out must be a folder that can be made"):
        run(tmp_path / "file" / "run")
    with pytest.raises(RunStoreError, match="out must be a folder that can be made"):
        run(Path("/proc/brittle"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 4}, r"steps \(3 then, 4 now\)"),
        ({"epsilons": [0.05, 0.3]}, "epsilons"),
        ({"seed": 1}, r"seed \(0 then, 1 now\)"),
        ({"limit": 5}, r"limit \(absent then, 5 now\)"),
        ({"fixed_batch": 4}, r"fixed batch \(8 then, 4 now\)"),
        ({"data": {**DATA, "other": (DATA["other"][0] / 2, DATA["other"][1])}}, "data other"),
        ({"data": {"main": DATA["main"]}}, "data other"),
        ({"data": dict(reversed(DATA.items()))}, r"sets \(\['main', 'other'\] then, \['other', "),
        ({"mean": [0.1], "std": [1.0]}, "mean"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(
    tmp_path: Path, undisturbed: Path, changes: dict[str, Any], named: str
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(RunMismatch, match=named) as error:
        run(tmp_path / "run", **changes)
    assert "--fresh" in str(error.value)
    assert_same_run(tmp_path / "run", undisturbed)


def test_other_weights_are_refused_and_so_is_other_code_with_the_same_weights(
    tmp_path: Path, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    other = interrupted_runs.model()
    with torch.no_grad():
        other[1].bias[0] += 1e-6
    with pytest.raises(RunMismatch, match="weights"):
        run(tmp_path / "run", model=other)
    rewritten = interrupted_runs.model()
    rewritten[2] = torch.nn.ReLU()
    with pytest.raises(RunMismatch, match="another the model's answers to the first samples"):
        run(tmp_path / "run", model=rewritten)


def test_a_fresh_run_takes_a_folder_beside_it(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    for number in (2, 3):
        report = evaluate(MODEL, DATA, tmp_path / "run", fresh=True, **{**SETTINGS, "seed": number})
        assert report.out == tmp_path / f"run-{number}"
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_fresh_run_beside_the_working_folder(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert evaluate(MODEL, DATA, ".", fresh=True, **{**SETTINGS, "limit": 4}).out == tmp_path / "run-2"


def test_views_can_be_added_to_a_finished_run(tmp_path: Path, undisturbed: Path) -> None:
    run(tmp_path / "run", views=["classification"])
    stages_done = {row[0] for row in contents(tmp_path / "run")["done"]}
    assert stages_done == {"clean"}
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


def test_two_commands_do_not_work_on_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with lock(out), pytest.raises(RunStoreError, match="another process is at work"):
        run(out)
    run(out, views=["classification"])


def test_files_that_a_killed_process_left_go(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    left = [
        tmp_path / "run" / "adversarial" / "main-pgd-linf-0-000000099.safetensors",
        tmp_path / "run" / "adversarial" / ".main-pgd-linf-0-000000099.safetensors.17",
        tmp_path / "run" / ".report.html.17",
    ]
    for path in left:
        path.write_bytes(b"half")
    run(tmp_path / "run")
    assert not any(path.exists() for path in left)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_damaged_store_is_one_sentence(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "run.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(RunStoreError, match="not a database"):
        run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunStoreError, match="no JSON that can be read"):
        run(tmp_path / "run")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interruption])
@pytest.mark.parametrize(
    ("owner", "name"), [(RunStore, "save_points"), (attacked.Attacked, "rows"), (RunStore, "mark")]
)
def test_an_interruption_between_any_two_steps_keeps_samples_whole(
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    owner: type,
    name: str,
) -> None:
    """Where a sample's points are there and its rows not yet, and where rows are and the commit not yet."""
    calls = 0
    plain = getattr(owner, name)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        found = plain(*arguments, **named)
        if calls == 4:
            raise kind
        return found

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(kind):
        run(tmp_path / "run", batch_size=5)
    monkeypatch.undo()
    monkeypatch.setattr(brittle.report, "evaluation_page", interrupted_runs.quick_page)
    monkeypatch.setattr(answers, "LANDSCAPE_SIDE", 5)
    run(tmp_path / "run", batch_size=7)
    assert_same_run(tmp_path / "run", undisturbed)


def test_an_interruption_right_after_a_commit_does_not_commit_twice(
    tmp_path: Path, undisturbed: Path
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", batch_size=5, progress=interrupt)
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


def test_workers_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "import interrupted_runs\n"
        "from brittle.evaluation import evaluate\n"
        "def wait(stage, done, total):\n"
        "    Path(sys.argv[1], 'pid ' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "    time.sleep(300)\n"
        "net = interrupted_runs.model()\n"
        "evaluate(net, interrupted_runs.data(net), Path(sys.argv[1], 'run'), progress=wait)\n"
    )
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    launcher = subprocess.Popen(
        [*start, str(script), str(tmp_path)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    files = [tmp_path / f"pid {rank}" for rank in range(2)]
    try:
        assert within(120, lambda: all(path.exists() and path.read_text() for path in files))
    finally:
        launcher.kill()
        launcher.wait()
    pids = [int(path.read_text()) for path in files]
    assert within(20, lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
