"""``brittle verify``, ``compare``, ``reference`` and ``drift``."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from brittle.evaluation import evaluate
from cli_runs import FEW, command, evaluated, prepare


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and data that it is right about."""
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


class TestVerify:
    @pytest.fixture
    def run(self, here: Path) -> str:
        attacks = ("--views", "robustness", "--norm", "linf", "--attacks", "fgsm", "--epsilons", "0.2")
        assert evaluated(*attacks, "--out", "run").exit_code == 0
        return "run"

    def test_model_and_data_of_a_trusted_run_are_found_again(
        self, run: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at = Path(run).resolve()
        monkeypatch.chdir("/")
        outcome = command("verify", str(at), "--trust-run")
        assert outcome.exit_code == 0, outcome.stderr
        header, line, covered = outcome.stdout.splitlines()
        points = dict(zip(header.split(), line.replace("fgsm linf", "fgsm-linf").split(), strict=False))
        assert int(points["points"]) > 0
        assert points["points"] == points["fooling"] == points["inside"]
        assert covered == "40 of 40 samples were attacked"

    def test_code_that_a_run_names_is_not_run(self, run: str) -> None:
        Path("net.py").write_text(Path("net.py").read_text() + "\nPath('PWNED').touch()\n")
        for given in ([], ["--model", "net.py:build"], ["--data", "data.npz"]):
            outcome = command("verify", run, *given)
            assert outcome.exit_code == 2
            assert outcome.stderr.startswith("verify: --model and --data must be given")
            assert (
                f"--model {Path('net.py').resolve()}:build --data {Path('data.npz').resolve()}"
                in (outcome.stderr)
                or f"--data data={Path('data.npz').resolve()}" in outcome.stderr
            )
        assert not Path("PWNED").exists()

    def test_what_a_run_says_cannot_write_to_the_terminal_or_end_a_word(self, run: str) -> None:
        begun = json.loads(Path(run, "run.json").read_text())
        begun["arguments"]["model"] = "x.py:f; rm -rf ~\x1b[2J'"
        Path(run, "run.json").write_text(json.dumps(begun))
        outcome = command("verify", run)
        assert outcome.exit_code == 2
        assert "\x1b" not in outcome.stderr
        assert shlex.split(outcome.stderr.rpartition("yourself: ")[2])[4] == "x.py:f; rm -rf ~?[2J'"

    def test_options_take_their_place(self, run: str) -> None:
        Path("net.py").rename("moved.py")
        assert command("verify", run, "--trust-run").exit_code == 2
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
        outcome = command("verify", run, "--trust-run")
        assert outcome.exit_code == 1
        assert "not as their rows say" in outcome.stdout

    def test_a_run_begun_from_python(self, here: Path) -> None:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
        x = torch.rand(8, 1, 6, 6)
        evaluate(model, (x, torch.zeros(8, dtype=torch.int64)), "python", views=["classification"])
        for given in ([], ["--trust-run"]):
            outcome = command("verify", "python", *given)
            assert outcome.exit_code == 2
            assert "--model and --data must be given" in outcome.stderr
            assert "begun from Python" in outcome.stderr


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
