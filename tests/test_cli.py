"""The command line: true facts, results on stdout, and one sentence for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import brittle.numpy
import numpy as np
import pytest
import torch
from brittle import demo, environment
from brittle.cli import app
from brittle.evaluation import Curve
from typer.testing import CliRunner, Result

EXTRAS = ("PIL", "jinja2", "matplotlib", "rich", "safetensors", "sklearn", "torchmetrics", "typer")


def brittle_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "200"})


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def command_without(blocked: tuple[str, ...], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command in a Python that cannot import the blocked packages."""
    return python(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"sys.argv = ['brittle', *{arguments!r}]\n"
        "from brittle.__main__ import main\n"
        "main()"
    )


def curve(attack: str, right: list[int]) -> Curve:
    """Of ten samples at epsilon 0 and 0.25, so many right."""
    correct = torch.arange(10) < torch.tensor(right).unsqueeze(1)
    return Curve(attack, (0.0, 0.25), correct, torch.arange(10), 0, 0)


def test_facts_are_true() -> None:
    facts, build = environment.facts(), brittle.numpy.build_facts()
    assert facts["brittle"] == brittle.__version__
    assert facts["python"].split()[0] == ".".join(map(str, sys.version_info[:3]))
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == np.__version__
    assert facts["torch_threads"] == str(torch.get_num_threads())
    assert facts["torch_cuda"] == (torch.version.cuda or "none")
    assert facts["cuda_available"] == ("yes" if torch.cuda.is_available() else "no")
    assert (facts["cuda_devices"] == "none") is not torch.cuda.is_available()
    assert facts["kernel_compiler"] == build["compiler"]
    assert facts["kernel_cuda"] == (build["cuda_compiler"] if build["cuda"] else "not built")
    assert facts["kernel_cuda_architectures"] == (build["cuda_architectures"] or "none")
    assert facts["kernel_simd_in_use"] == build["simd_in_use"]
    assert facts["kernel_simd_best"] == build["simd_best"]
    assert facts["kernel_threads"] == str(build["threads"])
    assert facts["kernel_torch_abi"].startswith(build["torch_target"])
    assert facts["torch_operators"] == "loaded"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert facts["cpu"] in cpuinfo.read_text()


def test_simd_in_use_is_the_one_forced(simd_level: str) -> None:
    assert environment.facts()["kernel_simd_in_use"] == simd_level


def test_a_library_that_does_not_load_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brittle.numpy", "brittle.ops"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(brittle, "numpy")
    facts = environment.facts()
    assert facts["kernels"].startswith("not loaded: ")
    assert facts["torch_operators"].startswith("not loaded: ")
    assert facts["torch"] == torch.__version__


def test_env_prints_the_facts_aligned() -> None:
    outcome = brittle_command("env")
    facts = environment.facts()
    lines = outcome.stdout.splitlines()
    assert outcome.exit_code == 0
    assert not outcome.stderr
    assert len(lines) == len(facts)
    column = max(map(len, facts)) + 2
    for line, (name, fact) in zip(lines, facts.items(), strict=True):
        assert line[:column].rstrip() == name.replace("_", " ")
        assert line[column:] == fact


def test_env_as_json() -> None:
    assert json.loads(brittle_command("env", "--json").stdout) == environment.facts()


def test_version() -> None:
    assert brittle_command("--version").stdout == f"brittle {brittle.__version__}\n"


def test_help_names_the_commands_and_does_not_load_torch() -> None:
    listed = brittle_command("--help").stdout
    assert "demo" in listed
    assert "env" in listed
    assert python("import sys, brittle.cli; sys.exit('torch' in sys.modules)").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["paint"], "paint"),
        (["demo", "--eps", "-0.1"], "-0.1"),
        (["demo", "--eps", "nan"], "nan"),
        (["demo", "--eps", "8"], "[0, 1]"),
        (["demo", "--eps", "0"], "above 0"),
        (["demo", "--eps", "large"], "--eps"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--out", "{file}"], "is a file"),
        (["demo", "--out", "{file}/below"], "cannot write"),
    ],
)
def test_mistakes_get_a_sentence(arguments: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = brittle_command(*(word.format(file=tmp_path / "file") for word in arguments))
    assert outcome.exit_code == 2
    assert expected in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout


def test_demo_prints_results_on_stdout_and_progress_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def run(out: Path, seed: int, epsilons: list[float], progress: demo.Progress) -> demo.Result:
        given.append((out, seed, epsilons))
        progress("training", 1, 2)
        progress("training", 2, 2)
        return demo.Result(curve("fgsm", [9, 4]), curve("pgd", [9, 2]), (), out / "report.html")

    monkeypatch.setattr(demo, "run", run)
    out = tmp_path / "[bold]of a name that is rather long" / "and deep"
    outcome = brittle_command("demo", "--out", str(out), "--seed", "7", "--eps", "0.25", "--eps", "0.5")
    assert outcome.exit_code == 0
    assert given == [(out, 7, [0.25, 0.5])]
    assert out.is_dir()
    lines = outcome.stdout.splitlines()
    assert lines[0] == "clean accuracy: 90.0 % of 10 test digits"
    assert lines[-1] == f"report: {out / 'report.html'}"
    rows = [line.replace("│", " ").split() for line in lines if "%" in line][1:]
    assert rows == [["0", "90.0", "%", "90.0", "%"], ["0.25", "40.0", "%", "20.0", "%"]]
    assert "training" in outcome.stderr
    assert "2/2" in outcome.stderr
    assert "training" not in outcome.stdout


def test_minimal_install_has_env_and_version() -> None:
    shown = command_without(EXTRAS, "env")
    assert shown.returncode == 0, shown.stderr
    assert f"brittle                    {brittle.__version__}\n" in shown.stdout
    as_json = json.loads(command_without(EXTRAS, "env", "--json").stdout)
    assert as_json["torch"] == torch.__version__
    assert command_without(EXTRAS, "--version").stdout == f"brittle {brittle.__version__}\n"


@pytest.mark.parametrize("blocked", [EXTRAS, ("typer",), ("rich",), ("matplotlib",), ("sklearn",)])
def test_minimal_install_says_what_to_install(blocked: tuple[str, ...], tmp_path: Path) -> None:
    refused = command_without(blocked, "demo", "--out", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert not refused.stdout
    assert refused.stderr.count("\n") == 1
    assert "pip install '.[eval]'" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_attacks_and_curves_need_no_extra() -> None:
    shown = python(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({(*EXTRAS, 'scipy', 'pydantic', 'threadpoolctl')!r}))\n"
        "import torch, brittle\n"
        "model, x = torch.nn.Linear(4, 3), torch.rand(8, 4)\n"
        "y = model(x).argmax(1)\n"
        "brittle.pgd(model, x, y, 0.1)\n"
        "print(brittle.evaluation.accuracy_vs_epsilon(model, (x, y), [0.0]).accuracy)"
    )
    assert (shown.returncode, shown.stdout) == (0, "[1.0]\n"), shown.stderr


def test_a_missing_package_that_is_no_extra_is_not_hidden() -> None:
    broken = command_without(("numpy",), "env")
    assert broken.returncode == 3
    assert "ModuleNotFoundError" in broken.stderr
    assert "[eval]" not in broken.stderr


def test_python_m_brittle() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "brittle", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"brittle {brittle.__version__}\n"
