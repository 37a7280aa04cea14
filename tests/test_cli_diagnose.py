"""``brittle diagnose``: what it finds, what it writes, and how it ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brittle.diagnosis.flaws.result import KINDS
from cli_runs import command
from html_pages import Page
from safetensors.torch import save_file
from test_report import harmless
from typer.testing import Result

CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3))

class Hostile(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("<script>alert(1)</script>", nn.Linear(36, 24))
        self.add_module("$\\\\frac{", nn.Linear(24, 3))

    def forward(self, x):
        first, second = self.children()
        return second(first(x.flatten(1)).relu())

def hostile():
    return Hostile()

def two_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2))

def no_layers():
    return nn.Flatten()

def normalised():
    class Normalised(nn.Sequential):
        def forward(self, x):
            assert x.min() < -0.05, x.min()
            return super().forward(x)
    return Normalised(*build())
"""


def flawed() -> dict[str, torch.Tensor]:
    """Trained on nothing, and 20 of its 24 hidden units never answer."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "1.weight": torch.randn(24, 36, generator=generator) / 6,
        "1.bias": torch.zeros(24),
        "3.weight": torch.randn(3, 24, generator=generator) / 5,
        "3.bias": torch.zeros(3),
    }
    state["1.bias"][:20] = -100
    return state


def prepare() -> None:
    """``net.py``, flawed weights ``w.safetensors``, and data that three patterns of light tell apart."""
    Path("net.py").write_text(CODE)
    save_file(flawed(), "w.safetensors")
    generator = np.random.default_rng(0)
    patterns = np.random.default_rng(1).random((3, 1, 6, 6))
    for name, samples in (("train", 240), ("validation", 120), ("test", 120)):
        y = np.arange(samples) % 3
        x = (patterns[y] + 0.15 * generator.standard_normal((samples, 1, 6, 6))).clip(0, 1)
        np.savez(f"{name}.npz", x=x.astype(np.float32), y=y)


DATA = ("--data", "train=train.npz", "--data", "validation=validation.npz")


def diagnosed(*arguments: str, model: str = "net.py:build") -> Result:
    return command("diagnose", "--model", model, *DATA, *arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


def test_the_table_names_the_flaw(here: Path) -> None:
    outcome = diagnosed("--weights", "w.safetensors")
    assert outcome.exit_code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].split() == ["layer", "is", *KINDS]
    assert lines[1].split()[:6] == ["1", "Linear", "36", "->", "24", "SEVERE"]
    assert any(line.startswith("severe dead, 1: ") for line in lines)
    assert {path.name for path in here.iterdir()} == {"net.py", "w.safetensors", *(f"{n}.npz" for n in NAMES)}


NAMES = ("train", "validation", "test")


def test_json_is_all_there_is_on_stdout(here: Path) -> None:
    found = json.loads(diagnosed("--weights", "w.safetensors", "--json").stdout)
    assert found["layers"] == ["1", "3"]
    assert found["samples"] == {"train": 240, "validation": 120}
    [dead] = [f for f in found["findings"] if (f["layer"], f["kind"]) == ("1", "dead")]
    assert dead["channels"][:20] == list(range(20))


def test_out_holds_page_and_json(here: Path) -> None:
    outcome = diagnosed("--weights", "w.safetensors", "--out", "a/b", "--title", "A <model>")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "report: a/b/report.html"
    text = Path("a/b/report.html").read_text()
    page = harmless(text)
    assert "A <model>" in page.text
    page.shows("run", ("validation", "120", page.rows("run")[2][2]))
    assert "net.py:build with w.safetensors" in page.text  # what it takes to get the same numbers
    assert json.loads(Path("a/b/diagnosis.json").read_text()) == json.loads(
        diagnosed("--weights", "w.safetensors", "--json").stdout
    )


def test_hostile_names_do_no_harm(here: Path) -> None:
    outcome = diagnosed("--out", "d", model="net.py:hostile")
    assert outcome.exit_code == 0, outcome.stderr
    page = harmless(Path("d/report.html").read_text())
    assert page.rows("layers")[1][0].startswith("<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("level", "weights", "code"), [("severe", True, 1), ("mild", True, 1), (None, True, 0)]
)
def test_fail_on(here: Path, level: str | None, weights: bool, code: int) -> None:
    options = ("--fail-on", level) if level else ()
    assert diagnosed("--weights", "w.safetensors", *options).exit_code == code


def test_before_training_is_the_function_without_weights(here: Path) -> None:
    """Movement is from what FUNCTION returns; from the weights themselves there is none."""

    def moved(*arguments: str) -> list[Any]:
        outcome = diagnosed("--weights", "w.safetensors", "--json", *arguments)
        assert outcome.exit_code == 0, outcome.stderr
        measures = json.loads(outcome.stdout)["measures"]
        return list(measures.get("movement", []))

    assert all(value == 0 for value in moved("--untrained-weights", "w.safetensors"))
    assert moved("--untrained", "net.py:build") == moved()


def test_layers_samples_and_seed_are_handed_on(here: Path) -> None:
    outcome = diagnosed("--layers", "3", "--samples", "60", "--json", "--weights", "w.safetensors")
    found = json.loads(outcome.stdout)
    assert found["layers"] == ["3"]
    assert found["samples"]["train"] == 60


def test_inputs_are_normalised_first(here: Path) -> None:
    options = ("--mean", "0.5", "--std", "0.5")
    outcome = diagnosed("--weights", "w.safetensors", *options, model="net.py:normalised")
    assert outcome.exit_code == 0, outcome.stderr


def test_digits_alone_are_both_sets(here: Path) -> None:
    Path("digits_net.py").write_text(CODE.replace("36", "64").replace("24, 3", "24, 10"))
    arguments = ("--model", "digits_net.py:build", "--data", "digits", "--json", "--samples", "200")
    outcome = command("diagnose", *arguments)
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["samples"] == {"train": 200, "validation": 200}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "train=train.npz"], "--data must be train=PLACE and validation=PLACE, or 'digits' alone"),
        (["--data", "train.npz", "--data", "digits"], "--data must be train=PLACE and validation=PLACE"),
        ([*DATA, "--data", "test=test.npz"], "got train, validation, test"),
        ([*DATA[:3], "validation=nowhere"], "nowhere does not exist"),
        ([*DATA, "--fail-on", "broken"], "--fail-on must be one of mild, severe; got 'broken'"),
        ([*DATA, "--layers", "9"], "layers must be names"),
        ([*DATA, "--eps", "small"], "--eps must be numbers"),
        ([*DATA, "--eps", "0.1,0.2"], "--eps must be one number"),
        ([*DATA, "--eps", "-1"], "eps must be finite and >= 0"),
        ([*DATA, "--bounds", "0"], "--bounds must be two numbers"),
        ([*DATA, "--bounds", "1,0"], "bounds must be (lo, hi)"),
        ([*DATA, "--mean", "0.5"], "--mean and --std must be given together"),
        ([*DATA, "--mean", "0.5", "--std", "0"], "std > 0"),
        ([*DATA, "--weights", "nowhere.safetensors"], "weights must be a file"),
        ([*DATA, "--untrained", "net.py:absent"], "net.py must define absent"),
        ([*DATA, "--out", "net.py/below"], "--out must be a folder that can be written"),
        ([*DATA, "--model", "net.py:two_classes"], "y must be in [0, 2)"),
        ([*DATA, "--model", "net.py:no_layers"], "model must have layers with weights"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(here: Path, arguments: list[str], expected: str) -> None:
    model = () if "--model" in arguments else ("--model", "net.py:build")
    outcome = command("diagnose", *model, *arguments)
    assert outcome.exit_code == 2, outcome.stderr + outcome.stdout
    assert expected in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout
    assert len([line for line in outcome.stderr.splitlines() if not line.startswith("warning")]) == 1


def test_a_damaged_sample_is_left_out_and_named(here: Path) -> None:
    from PIL import Image

    for name, count in (("train", 30), ("validation", 12)):
        for k in range(count):
            place = Path(name, "abc"[k % 3], f"{k:02}.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(place)
    Path("train", "a", "00.png").write_bytes(b"nothing")
    folders = ("--model", "net.py:build", "--data", "train=train", "--data", "validation=validation")
    torn = command("diagnose", *folders)
    assert torn.exit_code == 2
    assert "a/00.png" in torn.stderr
    outcome = command("diagnose", *folders, "--skip-bad", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert "left out: a/00.png" in outcome.stderr
    assert json.loads(outcome.stdout)["samples"]["train"] == 29


def test_help_answers_at_once(here: Path) -> None:
    for name in ("diagnose", "mend"):
        outcome = command(name, "--help")
        assert outcome.exit_code == 0
        assert "--untrained-weights" in outcome.stdout


def test_page_is_the_same_from_the_same_command(here: Path) -> None:
    pages = []
    for out in ("one", "two"):
        assert diagnosed("--weights", "w.safetensors", "--out", out).exit_code == 0
        pages.append(Path(out, "report.html").read_text())
    assert pages[0] == pages[1]
    assert Page(pages[0])
