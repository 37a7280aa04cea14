"""``brittle evaluate`` as a pipeline meets it: exit codes, stdout, interruption, agreement with Python."""

import inspect
import json
import signal
import time
from pathlib import Path
from typing import Any

import brittle.evaluation
import pytest
import torch
import typer.main
from brittle.cli import app, exits
from brittle.evaluation import evaluate, load_report
from brittle.sources import open_source
from cli_runs import FEW, command, evaluated, prepare, process
from PIL import Image


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and data that it is right about."""
    monkeypatch.chdir(tmp_path)
    prepare()
    return tmp_path


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
            "evaluate: out of memory; take a smaller --batch-size or --fixed-batch; the same command goes on "
            "from there\n"
        )
        assert outcome.stderr == expected

    def test_ctrl_c_and_the_same_command_again(self, here: Path) -> None:
        given = ["evaluate", "--model", "net.py:waits", "--data", "data.npz", "--views", "robustness"]
        given += ["--steps", "3", "--attacks", "fgsm,pgd", "--norm", "linf"]
        Path("wait").touch()
        running = process(*given)
        while not Path("waiting").exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
        assert running.returncode == 3
        assert err.splitlines()[-1] == "evaluate: interrupted; the same command goes on from there"
        assert not out
        Path("wait").unlink()
        again = process(*given)
        out, err = again.communicate()
        assert again.returncode == 0, err
        assert "report: " in out

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
        from brittle.evaluation.run.settings import ATTACKS, NORMS
        from brittle.evaluation.views import VIEWS

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
