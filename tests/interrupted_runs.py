"""Runs that are killed, in processes of their own; a script, started by test_resume.py.

It imports what a run needs and starts no thread, so that each run is a fork of it. In a fork that is to be
killed every write, commit and rename counts as an event, before and after it, and SIGKILL comes at the event
of a given number: also in the middle of a file.

    python interrupted_runs.py FOLDER MOMENTS
"""

import builtins
import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import brittle.evaluation.run.finish
import brittle.report
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.covariance  # noqa: F401
import torch
import torch.distributed
import torchmetrics.functional  # noqa: F401
from brittle import _files
from brittle.evaluation.run import answers
from brittle.evaluation.run.evaluate import evaluate
from run_folders import contents

SAMPLES, CLASSES = 24, 3
BATCH_SIZES = 3, 10, 64


def model() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return net


def data(net: torch.nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(SAMPLES, 1, 6, 6, generator=generator)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::7] = (y[::7] + 1) % CLASSES
    return {"main": (x, y), "other": (x.flip(0) ** 2, y.flip(0))}


def run(out: Path, batch_size: int) -> None:
    net = model()
    evaluate(
        net, data(net), out, batch_size=batch_size, fixed_batch=8, steps=3, restarts=2, repeat_seeds=2,
        epsilons={"linf": [0.05, 0.2], "l2": [0.5]}, fail_under=["robust=0.1@0.05"],
    )  # fmt: skip


class Moments:
    """Counts events, and kills the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0
        self.halves = 0  # files that were stopped at in their middle

    def event(self) -> None:
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def install(self) -> None:
        """Let everything that reaches the disk be an event."""
        moments = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql.startswith("SELECT"):
                    return super().execute(sql, *parameters)
                moments.event()
                found = super().execute(sql, *parameters)
                moments.event()
                return found

            def executemany(self, *arguments: Any) -> sqlite3.Cursor:
                moments.event()
                return super().executemany(*arguments)

        class Halves:
            def __init__(self, file: Any) -> None:
                self._file = file

            def __enter__(self) -> "Halves":
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def write(self, content: bytes) -> None:
                half = len(content) // 2
                self._file.write(content[:half])
                self._file.flush()
                moments.event()
                moments.halves += 1
                self._file.write(content[half:])

        def opened(path: Any, mode: str = "r") -> Any:
            file = builtins.open(path, mode)  # noqa: SIM115
            return Halves(file) if mode == "wb" else file

        def replace(source: Any, target: Any, plain: Callable[..., None] = os.replace) -> None:
            moments.event()
            plain(source, target)
            moments.event()

        sqlite3.connect = partial(sqlite3.connect, factory=Connection)  # type: ignore[assignment]
        _files.open = opened  # type: ignore[attr-defined]
        os.replace = replace


def fork(work: Callable[[], None]) -> int:
    """Start ``work`` in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def ended(children: list[int]) -> list[int]:
    """Exit codes, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def quick_page(summary: Any, pictures: Any) -> str:
    """Whatever the page is made of, without the seconds that its figures take."""
    return json.dumps([summary, {key: picture.tolist() for key, picture in pictures.items()}])


def one_process(out: Path, batch_size: int, at: int | None = None) -> int:
    def work() -> None:
        moments = Moments(at)
        moments.install()
        run(out, batch_size)
        assert moments.halves > 5, "files must be interrupted in their middle, too"
        (out.parent / "events").write_text(str(moments.count))

    return ended([fork(work)])[0]


def several_processes(out: Path, batch_size: int, count: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        run(out, batch_size)

    return ended([fork(partial(work, rank)) for rank in range(count)])


def main(folder: Path, moments: int) -> None:
    page = brittle.report.evaluation_page
    brittle.report.evaluation_page = quick_page
    answers.LANDSCAPE_SIDE = 5
    events = {}
    for batch_size in BATCH_SIZES:
        assert one_process(folder / f"undisturbed {batch_size}", batch_size) == 0
        events[batch_size] = int((folder / "events").read_text())
    undisturbed = folder / f"undisturbed {BATCH_SIZES[0]}"
    wanted = contents(undisturbed)
    files = {name: (undisturbed / name).read_bytes() for name in ("report.json", "report.html")}
    for number in range(moments):
        out = folder / f"run {number}"
        batch_size = BATCH_SIZES[number % 3]
        at = number * (events[batch_size] - 1) // (moments - 1)
        code = one_process(out, batch_size, at)
        workers = 1 + number % 2
        codes = several_processes(out, (5, 64, 1)[number % 3], workers)
        found = {
            "at": at,
            "killed": code == -signal.SIGKILL,
            "workers": workers,
            "finished": codes == [0] * workers,
            "rows": contents(out) == wanted,
            **{name: (out / name).read_bytes() == content for name, content in files.items()},
            "left over": sorted(path.name for path in out.rglob(".*")),
        }
        print(json.dumps(found), flush=True)
        shutil.rmtree(out)
    # The page itself, once: of the run as it is, and of one that is finished by three.
    brittle.report.evaluation_page = page
    out = folder / "page"
    one_process(out, 10, events[10] // 2)
    codes = several_processes(out, 7, 3) + several_processes(undisturbed, 64, 1)
    same = (out / "report.html").read_bytes() == (undisturbed / "report.html").read_bytes()
    tables = {name: len(rows) for name, rows in wanted.items()}
    print(json.dumps({"events": events, "page": same and codes == [0] * 4, "tables": tables}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
