"""What README shows runs as it stands."""

import re
from pathlib import Path

import matplotlib

ROOT = Path(__file__).parent.parent


def test_readme_examples_run_in_order() -> None:
    matplotlib.use("agg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["stack"].shape == (3, 32, 1, 8, 8)  # type: ignore[attr-defined]


def test_readme_names_files_that_exist() -> None:
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name} links to {target}"
