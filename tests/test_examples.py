"""The scripts of ``examples/views``: each one's view says what was put into its data."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import brittle
import pytest
import torch
from brittle.evaluation.views import VIEWS
from interrupted_runs import quick_page

FOLDER = Path(__file__).parent.parent / "examples" / "views"


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    """The scripts find what they share as they do when they are run, so one network is trained for all."""
    sys.path.append(str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    sys.modules.pop("digits_model", None)


def script(view: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_of_{view}", FOLDER / f"{view}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def printed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the script prints that the test is named after."""
    monkeypatch.setattr(brittle.report, "evaluation_page", quick_page)
    view = request.node.name.removeprefix("test_")
    report = script(view).look(tmp_path / view)
    assert list(report.summary["views"]) == [view]
    return capsys.readouterr().out


def numbers_after(name: str, text: str) -> list[float]:
    """Those in the line that begins with ``name``."""
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return [float(word) for word in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", line.removeprefix(name))]


def test_there_is_one_for_every_view() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*VIEWS, "digits_model"}
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 45
        assert path.stem == "digits_model" or f"python examples/views/{path.name}" in path.read_text()


def test_a_script_writes_its_report_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["samples.py", str(tmp_path / "run")])
    samples = script("samples")
    samples.run(samples.look, samples.__doc__)
    torch.set_num_threads(threads)
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run" / "report.html").read_text().count("<img") >= 24


def test_classification(printed: str) -> None:
    assert "missed most: 8," in printed
    recalls = {line.split()[0]: float(line.split()[3]) for line in printed.splitlines()[2:12]}
    assert recalls["8"] < 0.6
    assert min(recall for digit, recall in recalls.items() if digit != "8") > 0.85


def test_segments(printed: str) -> None:
    assert "worst: dry pen," in printed
    accuracy, count, *_ = numbers_after("dry pen", printed)
    assert count == 167
    assert accuracy < 0.92
    assert numbers_after("black pen", printed)[0] > 0.95
    assert numbers_after("worst: dry pen", printed)[-1] < 0.01


def test_calibration(printed: str) -> None:
    _, clean_confidence, clean_error = numbers_after("clean", printed)
    _, accuracy, confidence, error = numbers_after("contrast", printed)
    assert clean_error < 0.03 < 0.05 < error
    assert abs(confidence - accuracy) <= error + 0.001
    assert clean_confidence > 0.97


def test_ood(printed: str) -> None:
    assert "best against inverted: feature distance" in printed
    assert numbers_after("inverted       feature distance", printed)[0] > 0.98
    area, share = numbers_after("uniform noise  max softmax", printed)
    assert 0.85 < area < 1
    assert 0 < share < 0.5


def test_robustness(printed: str) -> None:
    assert "signs of gradient masking: none" in printed
    assert "Breaks at epsilon" in printed
    alone = [numbers_after(name, printed) for name in ("fgsm", "pgd", "minimal", "random")]
    everything = numbers_after("all  ", printed)
    assert all(curve[0] == everything[0] > 0.95 for curve in alone)
    assert all(both <= min(each) for both, *each in zip(everything, *alone, strict=True))
    assert everything[-1] < 0.1 < 0.8 < alone[3][-1]


def test_shift(printed: str) -> None:
    assert "worst at severity 3: contrast" in printed
    clean = numbers_after("as they are", printed)[0]
    for kind in ("gaussian", "shot", "blur", "contrast"):
        levels = numbers_after(kind, printed)
        assert len(levels) == 5
        assert levels == sorted(levels, reverse=True)
        assert levels[-1] < clean - 0.1


def test_sets(printed: str) -> None:
    assert "The model is worse on other-hospital than on digits." in printed
    assert numbers_after("other-hospital", printed)[0] < numbers_after("digits ", printed)[0] - 0.04


def test_landscape(printed: str) -> None:
    rows = [[float(word) for word in line.split()] for line in printed.splitlines()[1:]]
    assert [row[0] for row in rows] == [-0.2, -0.1, 0, 0.1, 0.2]
    along, across = [row[1] for row in rows], [row[2] for row in rows]
    assert along[2:] == sorted(along[2:])
    assert along[2] == across[2] < 0.5
    assert along[-1] > 5 > 4 * max(across)


def test_samples(printed: str) -> None:
    lines = printed.splitlines()
    assert "6 of 6 wrong labels are among the 24 highest losses" in lines
    assert sum(line.endswith("mislabelled") for line in lines[:10]) == 6
    losses = [float(line.split("log-loss")[1].split()[0]) for line in lines[:10]]
    assert losses == sorted(losses, reverse=True)


def test_repeat(printed: str) -> None:
    *values, spread = numbers_after("robust accuracy, linf 0.1", printed)
    assert len(values) == 3
    assert spread == pytest.approx(max(values) - min(values), abs=0.0011)
    assert 0.4 < min(values) <= max(values) < 0.7
    *values, spread = numbers_after("accuracy, gaussian 3", printed)
    assert len(set(values)) > 1
    assert spread < 0.05


def test_duplicates(printed: str) -> None:
    planted = [line for line in printed.splitlines() if line.endswith("planted")]
    assert [line.split()[1] for line in sorted(planted, key=lambda line: int(line.split()[1]))] == [
        "5", "60", "125", "250", "300", "444",
    ]  # fmt: skip
    assert "6 of 500 test digits have a near-duplicate in the training set" in printed
