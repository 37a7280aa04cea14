"""``brittle mend``: repairs that are kept, files that fit, and how it ends."""

import json
from pathlib import Path

import brittle
import numpy as np
import pytest
import torch
from brittle.loading import load_model
from cli_runs import command
from html_pages import Page
from interrupted_runs import quick_page
from safetensors.torch import load_file
from test_cli_diagnose import DATA, prepare
from typer.testing import Result

QUICK = ("--epochs", "12", "--batch-size", "40")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(brittle.report, "evaluation_page", quick_page)
    prepare()
    return tmp_path


def mended(*arguments: str, model: str = "net.py:build", weights: str = "w.safetensors") -> Result:
    return command("mend", "--model", model, "--weights", weights, *DATA, *QUICK, *arguments)


def accuracy(weights: str, data: str) -> float:
    model = load_model("net.py:build", Path(weights))
    arrays = np.load(data)
    with torch.no_grad():
        found = model(torch.from_numpy(arrays["x"])).argmax(1) == torch.from_numpy(arrays["y"])
    return found.double().mean().item()


def test_flaws_are_mended_and_everything_is_in_the_folder(here: Path) -> None:
    before = Path("w.safetensors").read_bytes()
    outcome = mended("--data", "test=test.npz", "--out", "m", "--title", "A <model>")
    assert outcome.exit_code == 0, outcome.stderr
    assert "recycle layer 1: kept. It helps (" in outcome.stdout
    assert "dead severe -> none in 1" in outcome.stdout
    assert outcome.stdout.splitlines()[-2:] == ["weights: m/mended.safetensors", "report: m/mend.html"]
    assert Path("w.safetensors").read_bytes() == before
    [line] = [line for line in outcome.stdout.splitlines() if line.startswith("test accuracy  ")]
    assert line.split()[2:] == [
        f"{accuracy('w.safetensors', 'test.npz'):.4f}",
        f"{accuracy('m/mended.safetensors', 'test.npz'):.4f}",
        "better",
    ]
    page = Page(Path("m/mend.html").read_text())
    assert "A <model>" in page.text
    assert "1 repair kept" in page.text
    for link in (a["href"] or "" for a in page.every("a")):
        assert link.startswith("#") or (here / "m" / link).exists(), link
    summary = json.loads(Path("m/mend.json").read_text())
    assert summary["judged_on"] == "test"
    assert summary["scores"]["after"]["accuracy"] == accuracy("m/mended.safetensors", "test.npz")

    # The same command finds everything done; with --json it prints what it kept.
    again = mended("--data", "test=test.npz", "--out", "m", "--title", "A <model>", "--json")
    assert json.loads(again.stdout) == summary
    assert "repair 1" not in again.stderr
    # Its evaluations are ordinary runs.
    compared = command("compare", "m/before", "m/after", "--json", "--out", "c.html")
    rows = {row["measure"]: row for row in json.loads(compared.stdout)["rows"]}
    assert rows["accuracy, data"]["b"] == pytest.approx(summary["scores"]["after"]["accuracy"])
    # Another mending in the same folder would mix the two.
    other = mended("--data", "test=test.npz", "--out", "m", "--seed", "1")
    assert other.exit_code == 2
    assert "another seed (0 then, 1 now)" in other.stderr


def test_what_does_not_help_is_rolled_back_and_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("compare_page", "diagnosis_page"):
        monkeypatch.setattr(f"brittle.repair.mending_folder.{page}", lambda *_: "a page")
    outcome = mended("--out", "m", "--epochs", "1", "--batch-size", "240", "--fail-on", "mild")
    assert outcome.exit_code == 1, outcome.stdout
    assert "1. recycle layer 1: rolled back. " in outcome.stdout
    kept = load_file("m/mended.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in load_file("w.safetensors").items())
    # Without test data the numbers are of those that the repairs were chosen by.
    assert "note: The repairs were chosen by the same validation data" in outcome.stdout
    page = Page(Path("m/mend.html").read_text())
    assert "▲ The repairs were chosen" in " ".join(page.text.split())
    assert "No repair helped: the model is as it was." in page.text


def test_dry_run_only_says_what_it_would_try(here: Path) -> None:
    outcome = mended("--dry-run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "1. recycle layer 1: start the dead units anew and train them" in outcome.stdout
    assert not (here / "brittle-mend").exists()
    found = json.loads(mended("--dry-run", "--json").stdout)
    assert found["suggestions"][0]["action"] == "recycle"
    assert found["diagnosis"]["layers"] == ["1", "3"]


def test_inputs_are_normalised_first(here: Path) -> None:
    outcome = mended("--mean", "0.5", "--std", "0.5", "--dry-run", model="net.py:normalised")
    assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "more=test.npz"], "--data must be train=PLACE and validation=PLACE and, if wanted, test"),
        (["--fail-on", "none"], "--fail-on must be one of mild, severe; got 'none'"),
        (["--eps", "far"], "--eps must be numbers"),
        (["--bounds", "1,0"], "bounds must be (lo, hi)"),
        (["--out", "net.py/below"], "out must be a folder that can be made; got net.py/below"),
        (["--std", "1"], "--mean and --std must be given together"),
        (["--epochs", "0"], "--epochs"),
        (["--tolerance", "-1"], "--tolerance"),
        (["--seed", str(2**80)], "seed must be an integer of 64 bits"),
    ],
)
def test_bad_input_is_one_sentence(here: Path, arguments: list[str], expected: str) -> None:
    outcome = mended(*arguments)
    assert outcome.exit_code == 2, outcome.stderr + outcome.stdout
    assert expected in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout
