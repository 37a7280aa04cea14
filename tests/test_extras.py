"""Packages that are missing, or there and of no use, are named before any work is done."""

import subprocess
import sys
from pathlib import Path

import pytest
from brittle import _extras
from cli_runs import prepare


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that fail in several ways."""
    texts = {
        "raises": "raise RuntimeError('operator torchvision::nms does not exist\\nmore')",
        "says_nothing": "raise AssertionError",
        "needs_another": "import a_module_that_is_not_there",
        "exits": "class A:\n    x = 1 / 0",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            "raises",
            r"cannot be imported \(RuntimeError: operator torchvision::nms does not exist\)",
        ),
        ("says_nothing", r"installed but cannot be imported \(AssertionError: no reason given\)"),
        ("needs_another", r"cannot be imported \(ModuleNotFoundError: No module named 'a_module_that"),
        ("exits", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("not_there.part", r"needs not_there, which is not installed; `pip install"),
    ],
)
def test_what_is_wrong_is_one_sentence(broken: Path, module: str, words: str) -> None:
    with pytest.raises(_extras.UnusablePackage, match=rf"^op: .*{words}") as error:
        _extras.require("op", "json", module)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["evaluate", "mend", "diagnose", "demo", "verify", "compare", "drift"])
def test_commands_and_functions_say_it_before_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare()
    package = {
        "diagnose": "sklearn",
        "demo": "sklearn",
        "verify": "safetensors",
        "compare": "jinja2",
        "drift": "scipy",
    }.get(command, "torchmetrics")
    (tmp_path / "other" / package).mkdir(parents=True)
    (tmp_path / "other" / package / "__init__.py").write_text("raise RuntimeError('unfit')")
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text() + "\nPath('built').touch()\n")
    (tmp_path / "empty").mkdir()
    arguments = {
        "evaluate": ["--model", "net.py:build", "--data", "data.npz", "--out", "out"],
        "mend": ["--model", "net.py:build", "--data", "digits", "--out", "out"],
        "diagnose": ["--model", "net.py:build", "--data", "digits", "--out", "out"],
        "demo": ["--out", "out"],
        "compare": ["empty", "empty", "--out", "out"],
        "drift": ["empty", "--model", "net.py:build", "--data", "data.npz"],
        "verify": ["empty", "--model", "net.py:build", "--data", "data.npz"],
    }[command]
    code = (
        "import runpy, sys; sys.path.insert(0, 'other'); sys.argv[0] = 'brittle';"
        "runpy.run_module('brittle', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    name = {"sklearn": "scikit-learn"}.get(package, package)
    if command != "verify":  # where there is no run, that is said first
        assert (
            f"{command}: needs {name}, which is installed but cannot be imported (RuntimeError: unfit)"
            in done.stderr
        )
    assert not Path("out").exists()
    assert not Path("built").exists()
