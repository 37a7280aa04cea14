"""What brittle's commands say about bad input: one sentence, exit code 2, no traceback."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import FEW, command, evaluated, prepare
from PIL import Image


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and data that it is right about."""
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


def damaged_image(folder: Path) -> None:
    path = folder / "images" / "a" / sorted(os.listdir(folder / "images" / "a"))[0]
    path.write_bytes(path.read_bytes()[:60])


def late_damaged_image(folder: Path) -> None:
    path = folder / "images" / "c" / sorted(os.listdir(folder / "images" / "c"))[-1]
    path.write_bytes(b"")


def empty_class(folder: Path) -> None:
    (folder / "images" / "d").mkdir()


def another_size(folder: Path) -> None:
    Image.new("L", (7, 9)).save(folder / "images" / "a" / "x.png")


def another_class(folder: Path) -> None:
    (folder / "images" / "d").mkdir()
    Image.new("L", (6, 6)).save(folder / "images" / "d" / "x.png")


def pickled_weights(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "w.safetensors")


def normalised_images(folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1, 6, 6)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.zeros(40, np.int64))


def a_file(folder: Path) -> None:
    (folder / "file").touch()


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "changes", "expected"),
    [
        (damaged_image, {"data": "images"}, "in 'images' (skip_bad=True or --skip-bad"),
        (late_damaged_image, {"data": "images"}, "is not an image"),
        (empty_class, {"data": "images"}, "every class folder must hold images; got none in images/d"),
        (another_size, {"data": "images"}, "got 6 x 6 (a/"),
        (another_class, {"data": "images"}, "in [0, 3) for a model of 3 classes; got 3 for d/x.png"),
        (nothing, {"model": "net.py:two_classes"}, "labels must be in [0, 2) for a model of 2 classes"),
        (pickled_weights, {"--weights": "w.safetensors"}, "neither a torch checkpoint nor an"),
        (normalised_images, {}, "x must lie inside bounds (0.0, 1.0)"),
        (nothing, {"model": "net.py:probabilities"}, "must return logits; got probabilities"),
        (nothing, {"model": "net.py:nan"}, "the model gave NaN logits"),
        (nothing, {"model": "net.py:infinite"}, "must give finite logits"),
        (nothing, {"model": "net.py:random"}, "the same logits for the same samples"),
        (nothing, {"model": "net.py:elsewhere"}, "must take float32 samples of shape [1, 6, 6]"),
        (nothing, {"model": "net.py:wide"}, "must take float32 samples of shape [1, 6, 6]"),
        (nothing, {"model": "net.py:confused"}, "must return a tensor of logits; got list"),
        (nothing, {"--device": "cuda:77"}, "device must be one of this machine; got 'cuda:77'"),
        (a_file, {"--out": "file/below"}, "out must be a folder that can be made; got file/below"),
        (nothing, {"--out": "/proc/run"}, "out must be a folder that can be made; got /proc/run"),
        (nothing, {"model": "net.py:absent"}, "net.py must define absent"),
        (nothing, {"data": "elsewhere"}, "elsewhere does not exist"),
        (nothing, {"--groups": "g.csv"}, "groups must be a CSV file"),
        (nothing, {"--size": "6,6"}, "size is for folders of images"),
        (nothing, {"--views": "colour"}, "views must be one of 'classification'"),
        (nothing, {"--norm": "l3"}, "norms must be one of 'linf', 'l2', 'l1'; got 'l3'"),
        (nothing, {"--attacks": "luck"}, "attacks must be one of"),
        (nothing, {"--epsilons": "small"}, "must be numbers or fractions such as 8/255; got 'small'"),
        (nothing, {"--epsilons": "-1"}, "epsilons must hold at least one value, finite and > 0"),
        (nothing, {"--reported": "0.1,0.2"}, "--reported must be one radius for each norm"),
        (nothing, {"--reported": "0.123"}, "reported must be one of the epsilons"),
        (nothing, {"--bounds": "0"}, "--bounds must be two numbers; got '0'"),
        (nothing, {"--bounds": "1,0"}, "bounds must be (lo, hi) with lo < hi"),
        (nothing, {"--mean": "0.5"}, "mean and std must be given together"),
        (nothing, {"--precision": "float8"}, "precision must be one of"),
        (nothing, {"--fail-under": "luck=1"}, "fail_under must be MEASURE=VALUE"),
        (nothing, {"--fail-under": "robust=0.5@0.123"}, "at a radius that is evaluated"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(here: Path, spoil: Any, changes: dict[str, str], expected: str) -> None:
    spoil(here)
    named = dict(changes)
    model, data = named.pop("model", "net.py:build"), named.pop("data", "data.npz")
    usual = () if named.keys() & {"--views", "--norm"} else FEW
    usual = ("--views", "robustness") if "--fail-under" in named else usual
    outcome = evaluated(*usual, *(word for pair in named.items() for word in pair), model=model, data=data)
    assert outcome.exit_code == 2, outcome.stderr
    assert expected in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout
    # The recipe for converting a checkpoint has two more lines.
    said = [line for line in outcome.stderr.splitlines() if not line.startswith(" ")]
    assert len(said) == 1
    assert not said[0].startswith("warning")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "--data", "digits"], "--model"),
        (["evaluate", "--model", "net.py:build"], "--data"),
        (["evaluate", "--model", "a", "--data", "digits", "--limit", "0"], "--limit"),
        (["evaluate", "--model", "a", "--data", "digits", "--steps", "many"], "--steps"),
        (["evaluate", "--model", "a", "--data", "digits", "--colour", "red"], "--colour"),
        (["verify", "nowhere"], "nowhere must be a folder with a run in it"),
        (["compare", "nowhere", "there"], "run_a must be a folder with the report.json of a finished run"),
        (["reference", "--model", "net.py:build", "--data", "data.npz"], "at least 50 samples; got 40"),
        (["drift", "nowhere", "--model", "net.py:build", "--data", "data.npz"], "nowhere"),
    ],
)
def test_other_mistakes(here: Path, arguments: list[str], expected: str) -> None:
    outcome = command(*arguments)
    assert outcome.exit_code == 2
    assert expected in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout
