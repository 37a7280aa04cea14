"""``brittle evaluate`` and its sisters as a pipeline meets them: exit codes, stdout, mistakes."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import brittle.evaluation
import numpy as np
import pytest
import torch
import typer.main
from brittle.cli import app, exits
from brittle.evaluation import evaluate, load_report
from brittle.sources import open_source
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, change=lambda logits: logits, mean=0.0, classes=3):
        super().__init__()
        torch.manual_seed(19)
        self.layer = nn.Linear(36, 16)
        self.head = nn.Linear(16, classes)
        self.change = change
        self.mean = mean

    def forward(self, x):
        return self.change(20 * self.head(torch.relu(self.layer(x.flatten(1) - 0.5 + self.mean))))

def build():
    return Net()

def normalised():
    return Net(mean=0.5)

def probabilities():
    return Net(lambda logits: logits.softmax(1))

def nan():
    return Net(lambda logits: logits * float("nan"))

def infinite():
    return Net(lambda logits: logits / 0)

def random():
    return Net(lambda logits: logits + torch.rand_like(logits))

def elsewhere():
    return Net(lambda logits: logits + torch.zeros(3, device="meta"))

def two_classes():
    return Net(classes=2)

def wide():
    return nn.Linear(5, 3)

def confused():
    return Net(lambda logits: [logits])

def raises():
    return Net(lambda logits: logits.absent)
"""

FEW = ("--views", "classification", "--norm", "linf")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and 40 grey images of 6 x 6 pixels that it is right about, as .npz and as files."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODE)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    y = answers(pixels)
    np.savez("data.npz", x=pixels, y=y)
    for row, (image, label) in enumerate(zip(pixels, y, strict=True)):
        place = Path("images", "abc"[label], f"{row:02}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    assert set(y) == {0, 1, 2}
    return tmp_path


def answers(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    names: dict[str, Any] = {}
    exec(CODE, names)
    with torch.no_grad():
        return names["build"]()(torch.from_numpy(pixels).float() / 255).argmax(1).numpy()


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"}, catch_exceptions=False)


def evaluated(*arguments: str, model: str = "net.py:build", data: str = "data.npz") -> Result:
    return command("evaluate", "--model", model, "--data", data, *arguments)


def process(*arguments: str) -> "subprocess.Popen[str]":
    """A real one, in the working directory."""
    python = [sys.executable, "-m", "brittle", *arguments]
    return subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class TestOutcome:
    def test_held_and_missed(self, here: Path) -> None:
        held = evaluated(*FEW, "--fail-under", "accuracy=0.99")
        assert held.exit_code == 0, held.stderr
        lines = held.stdout.splitlines()
        assert "held    accuracy=0.99 (got 1)" in lines
        assert lines[-1] == f"report: {Path('brittle-run', 'report.html')}"
        missed = evaluated(*FEW, "--fail-under", "accuracy=0.99,log_loss=0")
        assert missed.exit_code == 1
        assert "held    accuracy=0.99 (got 1)" in missed.stdout.splitlines()
        assert any(line.startswith("MISSED  log_loss=0 (got ") for line in missed.stdout.splitlines())
        verdict = load_report("brittle-run")["verdict"]
        assert verdict["held"] is False
        assert verdict["headline"] == lines[0]
        assert [one["held"] for one in verdict["requirements"]] == [True, False]
        assert evaluated(*FEW).exit_code == 0, "nothing was asked for"

    def test_json_and_nothing_else_on_stdout(self, here: Path) -> None:
        outcome = evaluated(*FEW, "--json", "--limit", "10", "--title", "<é>")
        report = json.loads(outcome.stdout)
        assert report == load_report("brittle-run")
        assert report["partial"] == {"used": 10, "of": 40}
        assert report["title"] == "<é>"
        assert "clean data: 10/10" in outcome.stderr

    def test_a_file_of_options_gives_the_same_run(self, here: Path) -> None:
        Path("run.toml").write_text(
            'model = "net.py:build"\nviews = ["classification", "robustness"]\nnorm = ["l2"]\nsteps = 3\n'
            'attacks = "fgsm"\nlimit = 9\n[epsilons]\nl2 = [0.5, "1/4"]\n'
            '[data]\none = "data.npz"\ntwo = "images"\n'
        )
        outcome = command("evaluate", "--config", "run.toml", "--limit", "8", "--seed", "3")
        assert outcome.exit_code == 0, outcome.stderr
        report = load_report("brittle-run")
        assert [(one["name"], one["samples"]) for one in report["sets"][:2]] == [("one", 8), ("two", 8)]
        expected = {
            "steps": 3,
            "seed": 3,
            "attacks": ["fgsm"],
            "norms": ["l2"],
            "epsilons": {"l2": [0.25, 0.5]},
        }
        assert report["settings"].items() >= expected.items()
        assert report["provenance"]["data"] == "one = data.npz, two = images"
        plain = evaluated(
            "--views", "classification,robustness", "--norm", "l2", "--steps", "3", "--attacks", "fgsm",
            "--limit", "8", "--epsilons", "0.5,1/4", "--data", "two=images", "--seed", "3", "--out", "other",
            data="one=data.npz",
        )  # fmt: skip
        assert plain.exit_code == 0, plain.stderr
        assert load_report("other") == report

    def test_groups_size_and_normalisation_reach_the_run(self, here: Path) -> None:
        rows = "".join(f"{row},{'even' if row % 2 == 0 else 'odd'}\n" for row in range(40))
        Path("groups.csv").write_text("row,parity\n" + rows)
        shared = ("--views", "classification,segments", "--mean", "0.5", "--std", "1")
        outcome = evaluated(*shared, "--groups", "groups.csv:parity", model="net.py:normalised")
        assert outcome.exit_code == 0, outcome.stderr
        views = load_report("brittle-run")["views"]
        assert views["classification"]["sets"][0]["accuracy"] == 1
        groups = views["segments"]["sets"][0]["groups"]
        assert {one["group"]: one["samples"] for one in groups} == {"even": 20, "odd": 20}
        for path in Path("images").rglob("*.png"):
            Image.open(path).resize((12, 12), Image.Resampling.NEAREST).save(path)
        resized = evaluated(*FEW, "--size", "6,6", "--out", "resized", data="images")
        assert resized.exit_code == 0, resized.stderr
        assert load_report("resized")["views"]["classification"]["sets"][0]["accuracy"] > 0.8

    def test_bad_samples_are_skipped_and_listed_where_that_is_wanted(self, here: Path) -> None:
        row = 20
        name = open_source("images").name_of(row)
        Path("images", name).write_bytes(b"no image")
        assert evaluated(*FEW, data="images").exit_code == 2
        outcome = evaluated(*FEW, "--skip-bad", "--fresh", data="images")
        assert outcome.exit_code == 0, outcome.stderr
        (skipped,) = load_report(outcome.stdout.splitlines()[-1][8:-12])["sets"][0]["skipped"]
        assert skipped["name"] == name
        assert "is not an image" in skipped["reason"]


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
        (nothing, {"model": "net.py:elsewhere"}, "must take samples of shape [1, 6, 6]"),
        (nothing, {"model": "net.py:wide"}, "must take samples of shape [1, 6, 6]"),
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


class TestInterruption:
    def test_an_internal_error_says_so_with_its_traceback(self, here: Path) -> None:
        outcome = evaluated(*FEW, model="net.py:raises")
        assert outcome.exit_code == 3
        assert "Traceback" in outcome.stderr
        assert "AttributeError: 'Tensor' object has no attribute 'absent'" in outcome.stderr
        last = outcome.stderr.splitlines()[-1]
        assert last.startswith("evaluate: an internal error; the same command goes on from there.")
        assert "report it" in last

    def test_other_peoples_value_errors_are_internal(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("brittle.cli.inputs.Inputs.open_data", lambda self: int("evaluate: not ours"))
        assert evaluated(*FEW).exit_code == 3

    def test_out_of_memory(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fill(*arguments: object, **settings: object) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(brittle.evaluation, "evaluate", fill)
        outcome = evaluated(*FEW)
        assert outcome.exit_code == 3
        expected = (
            "evaluate: out of memory; take a smaller --batch-size; the same command goes on from there\n"
        )
        assert outcome.stderr == expected

    def test_ctrl_c_and_the_same_command_again(self, here: Path) -> None:
        given = ["evaluate", "--model", "net.py:build", "--data", "data.npz", "--views", "robustness"]
        given += ["--steps", "400000", "--attacks", "fgsm,pgd", "--norm", "linf", "--restarts", "50"]
        given += ["--epsilons", "0.00001,0.00002"]
        running = process(*given)
        while "fgsm" not in running.stderr.readline():  # type: ignore[union-attr]
            assert running.poll() is None
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 3
        assert err.splitlines()[-1] == "evaluate: interrupted; the same command goes on from there"
        assert not out

    def test_nobody_reads_the_output(self, here: Path) -> None:
        running = process("evaluate", "--model", "net.py:build", "--data", "data.npz", *FEW, "--json")
        running.stdout.close()  # type: ignore[union-attr]
        err = running.stderr.read()  # type: ignore[union-attr]
        assert running.wait(60) == 3
        assert "Traceback" not in err


class TestSeveralProcesses:
    """What torchrun tells its processes by the environment."""

    @pytest.fixture
    def second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(exits, "_GRACE", 0.5)

    def test_the_second_prints_nothing(
        self, here: Path, second: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, Any] = {}

        def run(model: object, data: object, out: Path, **settings: Any) -> brittle.evaluation.Report:
            settings["progress"]("clean", 1, 1)
            given.update(settings)
            return brittle.evaluation.Report({"verdict": {"held": False}}, out, False)

        monkeypatch.setattr(brittle.evaluation, "evaluate", run)
        outcome = evaluated("--fail-under", "accuracy=1")
        assert given["fail_under"] == ["accuracy=1"]
        assert (outcome.exit_code, outcome.output) == (0, ""), "the first says it, and has the exit code"

    def test_the_second_leaves_the_first_time_to_speak(self, here: Path, second: None) -> None:
        begun = time.monotonic()
        outcome = evaluated(data="elsewhere")
        assert time.monotonic() - begun > 0.5
        assert outcome.exit_code == 2
        assert "does not exist" in outcome.stderr


class TestVerify:
    @pytest.fixture
    def run(self, here: Path) -> str:
        attacks = ("--views", "robustness", "--norm", "linf", "--attacks", "fgsm", "--epsilons", "0.2")
        assert evaluated(*attacks, "--out", "run").exit_code == 0
        return "run"

    def test_model_and_data_are_found_again(self, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
        at = Path(run).resolve()
        monkeypatch.chdir("/")
        outcome = command("verify", str(at))
        assert outcome.exit_code == 0, outcome.stderr
        header, line = outcome.stdout.splitlines()
        points = dict(zip(header.split(), line.replace("fgsm linf", "fgsm-linf").split(), strict=False))
        assert int(points["points"]) > 0
        assert points["points"] == points["fooling"] == points["inside"]

    def test_options_take_their_place(self, run: str) -> None:
        Path("net.py").rename("moved.py")
        assert command("verify", run).exit_code == 2
        outcome = command("verify", run, "--model", "moved.py:build", "--data", "data.npz")
        assert outcome.exit_code == 0, outcome.stderr
        changed = command("verify", run, "--model", "moved.py:two_classes", "--data", "data=data.npz")
        assert changed.exit_code == 2
        assert "weights" in changed.stderr

    def test_a_spoiled_example_is_told(self, run: str) -> None:
        from safetensors.torch import load_file, save_file

        for path in Path(run, "adversarial").glob("*.safetensors"):
            tensors = load_file(path)
            tensors["adversarial"] += 0.5
            save_file(tensors, path)
        outcome = command("verify", run)
        assert outcome.exit_code == 1
        assert "not as their rows say" in outcome.stdout

    def test_a_run_begun_from_python(self, here: Path) -> None:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
        x = torch.rand(8, 1, 6, 6)
        evaluate(model, (x, torch.zeros(8, dtype=torch.int64)), "python", views=["classification"])
        outcome = command("verify", "python")
        assert outcome.exit_code == 2
        assert "--model and --data must be given" in outcome.stderr


def test_compare(here: Path) -> None:
    for limit in ("20", "40"):
        assert evaluated(*FEW, "--limit", limit, "--out", f"run{limit}").exit_code == 0
    outcome = command("compare", "run20", "run40", "--out", "pages/both.html")
    assert outcome.exit_code == 0, outcome.stderr
    assert any(line.startswith("accuracy, data") for line in outcome.stdout.splitlines())
    assert outcome.stdout.splitlines()[-1] == "page: pages/both.html"
    assert Path("pages", "both.html").read_text().startswith("<!DOCTYPE html>")
    rows = json.loads(command("compare", "run20", "run40", "--json").stdout)["rows"]
    assert {"measure": "accuracy, data", "a": 1.0, "b": 1.0}.items() <= rows[0].items()
    assert command("compare", "run20", "run40", "--out", "/proc/x.html").exit_code == 2


def test_reference_and_drift(here: Path) -> None:
    def saved(name: str, seed: int, scale: float) -> str:
        pixels = np.random.default_rng(seed).random((300, 1, 6, 6)).astype(np.float32) * scale
        np.savez(name, x=pixels, y=np.zeros(300, np.int64))
        return name

    made = command(
        "reference", "--model", "net.py:build", "--data", saved("before.npz", 1, 1), "--out", "r/ref"
    )
    assert made.exit_code == 0, made.stderr
    assert made.stdout == "300 samples; reference: r/ref\n"
    alike = command("drift", "r/ref", "--model", "net.py:build", "--data", saved("alike.npz", 2, 1))
    assert alike.exit_code == 0, alike.stdout + alike.stderr
    assert alike.stdout.splitlines()[-1].startswith("no drift")
    other = command(
        "drift", "r/ref", "--model", "net.py:build", "--data", saved("other.npz", 3, 0.5), "--json"
    )
    assert other.exit_code == 1
    assert json.loads(other.stdout)["drifted"] is True
    wrong = command("drift", "r/ref", "--model", "net.py:two_classes", "--data", "alike.npz")
    assert wrong.exit_code == 2
    assert "other weights or layers" in wrong.stderr
    Path("images", "a", "bad.png").write_text("no image")
    torn = command("drift", "r/ref", "--model", "net.py:build", "--data", "images")
    assert torn.exit_code == 2
    assert "drift: a/bad.png: is not an image" in torn.stderr
    mended = command("drift", "r/ref", "--model", "net.py:build", "--data", "images", "--skip-bad", "--json")
    assert mended.exit_code in (0, 1), mended.stderr
    assert json.loads(mended.stdout)["whole"]["samples"] == 40
    assert "left out: a/bad.png" in mended.stderr


OTHER_NAMES = {"norms": "norm"}
PYTHON_ONLY = {"provenance", "arguments", "progress"}
COMMAND_ONLY = {"weights", "trust-checkpoint", "device", "groups", "size", "config", "json", "help"}


class TestAgreement:
    """What Python and the command line call the same is the same."""

    def test_names_and_defaults(self) -> None:
        root = typer.main.get_command(app)
        options = {
            option.removeprefix("--"): parameter
            for parameter in root.commands["evaluate"].params  # type: ignore[attr-defined]
            for option in parameter.opts
        }
        arguments = inspect.signature(evaluate).parameters
        named = {
            OTHER_NAMES.get(name, name).replace("_", "-"): parameter.default
            for name, parameter in arguments.items()
            if name not in PYTHON_ONLY
        }
        assert named.keys() == options.keys() - COMMAND_ONLY
        for name, default in named.items():
            if default is inspect.Parameter.empty:
                continue
            written = options[name].default
            if name == "bounds":
                written = tuple(float(part) for part in written.split(","))
            if isinstance(default, tuple):
                written = tuple(written or ())
            assert written == default, name

    def test_what_the_help_lists_is_what_there_is(self) -> None:
        from brittle.evaluation.requirements import MEASURES
        from brittle.evaluation.settings import ATTACKS, NORMS, VIEWS

        root = typer.main.get_command(app)
        texts = {p.name: p.help or "" for p in root.commands["evaluate"].params}  # type: ignore[attr-defined]
        for name, known in {
            "views": VIEWS,
            "norms": NORMS,
            "attacks": ATTACKS,
            "fail_under": MEASURES,
        }.items():
            assert all(word in texts[name] for word in known), name
        for word in (*VIEWS, *ATTACKS, *NORMS):
            assert f'"{word}"' in (evaluate.__doc__ or ""), word
