"""Imports descend: cli -> evaluation -> report -> attacks -> engine -> noise -> target -> ops -> _library."""

import ast
from pathlib import Path

import brittle
import pytest

PACKAGE = Path(brittle.__file__).parent
CSRC = PACKAGE.parent.parent / "csrc"

# Lowest first. A module may import from its own level's own package and from lower levels.
LEVELS = [
    ["_extras", "_files", "_library", "_radius"],
    ["triton"],
    ["ops"],
    ["_folding", "losses", "progress"],
    ["target"],
    ["_checks", "result"],
    ["loading", "noise", "sources"],
    ["data"],
    ["similarity"],
    ["engine"],
    ["attacks"],
    ["report"],
    ["diagnosis"],
    ["evaluation"],
    ["repair"],
    ["environment"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LEVELS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> list[str]:
    """Every brittle module that a file imports, whenever it does, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from brittle import engine` names a module; `from brittle.engine import run` does not.
            found += [f"brittle.{a.name}" for a in node.names] if module == "brittle" else [module]
    return [name for name in found if name.split(".")[0] == "brittle"]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_descend(path: Path) -> None:
    part = part_of(path)
    imports = {name.split(".")[1] for name in imported_modules(path) if "." in name}
    imports.discard("__version__")
    if part == "__init__":
        return  # the lazy table of public names
    if part == "reference":
        assert imports <= {"reference"}, "reference/ imports torch alone"
        return
    if part == "numpy":
        assert not imports, "brittle.numpy needs no torch, so nothing of brittle"
        return
    assert "reference" not in imports, "the library never imports reference/"
    assert part in RANK, f"{part} has no level: add it to LEVELS"
    for name in imports - {part, "numpy"}:
        assert RANK[name] < RANK[part], f"{part} imports {name}, which is not below it"


def test_numpy_and_reference_import_nothing_but_theirs() -> None:
    for path in MODULES:
        if part_of(path) not in ("reference", "numpy"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not {"torch"} & set(names) or part_of(path) == "reference"
            assert "numpy" not in names or part_of(path) == "numpy"


def test_rooms_include_only_common_and_themselves() -> None:
    rooms = {path.name for path in CSRC.iterdir() if path.is_dir()}
    for path in CSRC.rglob("*.*"):
        room = path.relative_to(CSRC).parts[0]
        for line in path.read_text().splitlines():
            if not line.startswith('#include "'):
                continue
            included = line.split('"')[1].split("/")[0]
            if path.parent == CSRC:
                assert included in rooms | {"self_test.h", "domain_hash.h"}
            elif room == "common":
                assert included == "common", f"{path} includes {line}"
            else:
                assert included in {"common", room}, f"{path} includes {line}"


def test_every_room_keeps_its_name_everywhere() -> None:
    rooms = {p.name for p in CSRC.iterdir() if p.is_dir()} - {"common"}
    for room in rooms:
        for place in ("python/brittle/ops", "python/brittle/reference", "tests", "benchmarks"):
            found = list((PACKAGE.parent.parent / place).glob(f"*{room}.py"))
            assert found, f"{place} has no module for room {room}"
