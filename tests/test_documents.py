"""What README and the documents show runs as it stands."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest
import torch
import typer
from brittle.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def commands(page: Path) -> list[list[str]]:
    """The indented lines that call ``brittle``, as a shell would split them."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:torchrun .* -m )?(brittle .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_readme_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["stack"].shape == (3, 32, 1, 8, 8)  # type: ignore[attr-defined]
    report = names["report"]
    assert report.held  # type: ignore[attr-defined]
    assert report.summary["views"]["robustness"]["samples"] == 32  # type: ignore[attr-defined]
    assert (tmp_path / "brittle-run-net" / "report.html").exists()


def test_pages_name_files_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for example in re.findall(r"examples/[\w/]+\.py", page.read_text()):
            assert (ROOT / example).exists(), f"{page.name} names {example}"


def test_commands_have_the_options_that_pages_give_them() -> None:
    group = typer.main.get_command(app)
    shown = [command for page in PAGES for command in commands(page)]
    assert {command[0] for command in shown} >= {"evaluate", "verify", "compare", "reference", "drift"}
    for name, *arguments in shown:
        command = group.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, list(arguments))


def test_the_model_of_the_commands_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from brittle.loading import load_model

    shown = [command for page in PAGES for command in commands(page)]
    specs = {command[command.index("--model") + 1] for command in shown if "--model" in command}
    assert len(specs) == 1
    monkeypatch.setattr("brittle.demo._EPOCHS", 1)
    assert load_model(str(ROOT / specs.pop()))(torch.rand(2, 1, 8, 8)).shape == (2, 10)
