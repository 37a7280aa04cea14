"""Interleaved ratios: every line of `make bench` is ours against something else, timed alternately.

A time is worth nothing alone, because machines are shared. The `versus` fixture runs A, B, C, A, B, C, ...
in one process and reports the ratio of the medians; pytest-benchmark times ours, its setup hook the others.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brittle
import brittle.environment
import pytest
import torch

# The tests' models and peers are benchmarked too. At the end of the path: both folders have a conftest.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

RESULTS = Path(__file__).parent / "results"
ROUNDS = 15

_lines: list[dict[str, Any]] = []


class Versus:
    """Times `ours` against `others`, round by round, and records a line for each ratio."""

    def __init__(self, benchmark: Any, room: str, device: torch.device) -> None:
        self.benchmark = benchmark
        self.room = room
        self.device = device

    def __call__(
        self,
        title: str,
        ours: Callable[[], object],
        others: dict[str, Callable[[], object]],
        targets: dict[str, str] | None = None,
        rounds: int = ROUNDS,
        notes: dict[str, str] | None = None,
        warm_up: int = 3,
        settle: float = 0.0,
    ) -> dict[str, float]:
        """`targets[name]` is the ratio ``time of name / time of ours`` to reach, e.g. ``">= 3"``.

        `settle`: seconds of untimed calls right before each timed one. Where the sides have thread pools of
        their own, one that has just finished spins on for a while, and one that sleeps takes milliseconds to
        wake.
        """
        times: dict[str, list[float]] = {name: [] for name in others}
        for function in (ours, *others.values()):
            for _ in range(warm_up):  # allocate, compile, fill caches
                self.timed(function)

        def run_the_others() -> None:
            for name, function in others.items():
                self.settle(function, settle)
                times[name].append(self.timed(function))
            self.settle(ours, settle)

        def ours_to_the_end() -> None:
            ours()
            self.synchronize()

        self.benchmark.group = self.room
        self.benchmark.pedantic(ours_to_the_end, setup=run_the_others, rounds=rounds)
        mine = self.benchmark.stats.stats.median
        ratios = {}
        for name, measured in times.items():
            ratios[name] = statistics.median(measured) / mine
            _lines.append(
                {
                    "room": self.room,
                    "benchmark": title,
                    "device": self.device.type,
                    "ours_ms": round(mine * 1e3, 4),
                    "versus": name,
                    "versus_ms": round(statistics.median(measured) * 1e3, 4),
                    "ratio": round(ratios[name], 3),
                    "target": (targets or {}).get(name, ""),
                    "note": (notes or {}).get(name, ""),
                }
            )
        self.benchmark.extra_info.update({f"{name} / ours": ratio for name, ratio in ratios.items()})
        return ratios

    def settle(self, function: Callable[[], object], seconds: float) -> None:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            self.timed(function)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, function: Callable[[], object]) -> float:
        self.synchronize()
        begin = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - begin


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def versus(benchmark: Any, device: torch.device, request: pytest.FixtureRequest) -> Versus:
    return Versus(benchmark, request.path.stem.removeprefix("bench_"), device)


def met(line: dict[str, Any]) -> str:
    """yes, no, or nothing where no target is set."""
    if not line["target"]:
        return ""
    relation, value = line["target"].split()
    reached = line["ratio"] >= float(value) if relation == ">=" else line["ratio"] <= float(value)
    return "yes" if reached else "NO"


def device_name(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else brittle.environment.facts()["cpu"]
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return slug or platform.machine()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for room in dict.fromkeys(line["room"] for line in _lines):
        terminalreporter.section(f"{room}: time of the other / time of ours")
        lines = [line for line in _lines if line["room"] == room]
        width = max(len(line["versus"]) for line in lines)
        for title in dict.fromkeys((line["device"], line["benchmark"]) for line in lines):
            chosen = [line for line in lines if (line["device"], line["benchmark"]) == title]
            terminalreporter.write_line(f"{title[1]} [{title[0]}]  ours {chosen[0]['ours_ms']:.3f} ms")
            for line in chosen:
                terminalreporter.write_line(
                    f"    {line['versus']:<{width}}  {line['versus_ms']:10.3f} ms  {line['ratio']:8.2f}x"
                    f"  {line['target']:>8} {met(line):<4}{line['note']}"
                )
    for device in dict.fromkeys(line["device"] for line in _lines):
        save(device, [line for line in _lines if line["device"] == device], terminalreporter)


def save(device: str, lines: list[dict[str, Any]], terminalreporter: Any) -> None:
    """Replace the lines of what was run, keep those of what was not."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device_name(device)}-{brittle.__version__}.json"
    run = {(line["room"], line["benchmark"]) for line in lines}
    old = json.loads(path.read_text())["lines"] if path.exists() else []
    kept = [line for line in old if (line["room"], line["benchmark"]) not in run]
    facts = brittle.environment.facts()
    path.write_text(json.dumps({"environment": facts, "lines": kept + lines}, indent=1) + "\n")
    terminalreporter.write_line(f"written: {path.relative_to(Path(__file__).parent.parent)}")
