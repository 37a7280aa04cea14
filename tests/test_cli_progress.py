"""Progress: bars where there is a terminal, a line now and then where there is none."""

import io
import re

import pytest
from brittle.cli import progress
from brittle.cli.progress import progress_on_stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time as the test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_line_at_each_stages_end_and_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress_on_stderr() as tick:
        for second in range(25):
            clock.now = 100 + second
            tick("pgd [l2]", second, 30)
        tick("pgd [l2]", 30, 30)
        tick("report", 1, 2)
        tick("report", 2, 2)
    expected = [
        (10, "pgd [l2]: 10/30"),
        (20, "pgd [l2]: 20/30"),
        (24, "pgd [l2]: 30/30"),
        (24, "report: 2/2"),
    ]
    captured = capsys.readouterr()
    assert captured.err == "".join(f"{seconds:6.0f} s  {text}\n" for seconds, text in expected)
    assert not captured.out


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_on_stderr() as tick:
        tick("pgd [l2]", 0, 30)
        tick("pgd [l2]", 30, 30)
        tick("random", 7, 9)
        tick("random", 7, 9)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").strip()
    assert re.search(r"^ +\d s  pgd \[l2\]: 30/30$", shown, re.MULTILINE), "finished: a line of its own"
    last = shown.splitlines()[-1]
    assert last.startswith("random ")
    assert "7/9" in last


def test_other_processes_than_the_first_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with progress_on_stderr() as tick:
            tick("pgd", 3, 3)
        assert capsys.readouterr().err.count("\n") == lines
