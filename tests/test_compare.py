"""Two runs sample by sample, what stands between them, and reports that somebody has damaged."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brittle.evaluation import compare, evaluate
from brittle.evaluation.compare import Measure, _row
from brittle.evaluation.paired import Paired, paired
from brittle.report import compare_page
from torch import nn

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(300, 1, 6, 6, generator=GENERATOR)
SETTINGS: dict[str, Any] = {
    "norms": ["linf"],
    "epsilons": [0.02, 0.1],
    "steps": 3,
    "restarts": 1,
    "attacks": ["pgd", "minimal"],
    "views": ["classification", "calibration", "robustness", "shift", "ood"],
}


class Model(nn.Module):
    """A linear model; of dark images a fragile one gives random answers."""

    def __init__(self, fragile: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(36, 3)
        self.fragile = fragile

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        logits = self.layer(x - 0.5)
        if self.fragile:  # where contrast is low
            flat = (x.std(1) < 0.12).unsqueeze(1)
            logits = torch.where(flat, logits.roll(1, 1) + 0 * logits, logits)
        return logits


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    y = Model(False)(X).argmax(1)
    for name in ("a", "b"):
        evaluate(Model(name == "b"), (X, y), folder / name, **SETTINGS, title="How far it can be trusted")
    return folder / "a", folder / "b"


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


class TestSampleBySample:
    def test_the_worst_regression_comes_first_at_every_level(self, runs: tuple[Path, Path]) -> None:
        comparison = compare(*runs)
        rows = comparison.summary["rows"]
        worse = [row for row in rows if row["change"] == "worse"]
        assert rows[: len(worse)] == worse
        assert worse[0]["measure"].startswith("accuracy under contrast")
        assert all(
            row["test"] == "paired" and row["p"] < 0.05 for row in worse if "accuracy" in row["measure"]
        )
        lines = comparison.table().splitlines()
        first = next(k for k, line in enumerate(lines) if line.startswith("measure")) + 1
        assert "worse (p = " in lines[first]
        # Levels that are not the middle one are compared, too.
        measured = {row["measure"] for row in rows}
        assert {f"accuracy under contrast {level}" for level in range(1, 6)} <= measured
        page = compare_page(comparison.a, comparison.b, comparison.summary)
        assert page.index(worse[0]["measure"]) < page.index("accuracy, data")

    def test_what_chance_does_is_neither_better_nor_worse(self, runs: tuple[Path, Path]) -> None:
        rows = {row["measure"]: row for row in compare(*runs).summary["rows"]}
        assert rows["accuracy, data"]["change"] == "same"
        undecided = [row for row in rows.values() if row["change"] == "within chance"]
        assert all(row["p"] is None or row["p"] >= 0.05 for row in undecided)
        assert not [
            row for row in rows.values() if row["change"] in ("better", "worse") and row["test"] is None
        ]

    def test_a_run_and_itself(self, runs: tuple[Path, Path]) -> None:
        summary = compare(runs[0], runs[0]).summary
        assert {row["change"] for row in summary["rows"]} <= {"same", None}
        assert summary["notes"] == []

    def test_which_is_which(self, runs: tuple[Path, Path]) -> None:
        comparison = compare(*runs)
        lines = comparison.table().splitlines()
        for side, run, line in zip("ab", runs, lines, strict=False):
            weights = report_of(run)["provenance"]["weights"]
            assert line == f"{side}: How far it can be trusted (folder {run}, weights {weights})"
        page = compare_page(comparison.a, comparison.b, comparison.summary)
        assert all(f"folder {run}" in page for run in runs)

    def test_rows_that_cannot_be_read_are_said_and_intervals_take_over(
        self, runs: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "report.json").write_bytes((runs[1] / "report.json").read_bytes())
        summary = compare(runs[0], tmp_path / "run").summary
        assert any("Run b cannot be compared sample by sample" in note for note in summary["notes"])
        assert {row["test"] for row in summary["rows"]} == {"intervals", None}

    def test_p_values_by_hand(self) -> None:
        ids = np.arange(60)
        right, some = np.ones(60), (ids >= 6).astype(float)
        found = paired({"x": (ids, right), "y": (ids, right)}, {"x": (ids, some), "y": (ids, right)})
        # Six lost and none gained: 2 / 2^6, times two measures.
        assert found == {"x": Paired(pytest.approx(2 * 2 / 2**6), 0, 6), "y": Paired(1.0, 0, 0)}
        assert paired({"x": (ids, right)}, {"x": (ids + 1, right)}) == {}

    @pytest.mark.parametrize(("rose", "fell", "word"), [(180, 20, "worse"), (20, 180, "mixed")])
    def test_a_mean_that_moves_against_most_samples_is_no_verdict(
        self, rose: int, fell: int, word: str
    ) -> None:
        a, b = Measure("log loss, test", 0.2, False), Measure("log loss, test", 0.3, False)
        assert _row("log loss, test", a, b, Paired(1e-9, rose, fell))["change"] == word


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"mean": [0.5], "std": [0.25]}, "mean (none in a, 0.5 in b)"),
            ({"limit": 200}, "samples at most (all in a, 200 of each set in b)"),
            ({"fixed_batch": 50}, "samples per call (32 in a, 50 in b)"),
            ({"steps": 4}, "steps (3 in a, 4 in b)"),
            ({"bounds": (0.0, 2.0)}, "bounds (0 1 in a, 0 2 in b)"),
            ({"seed": 5}, "seed (0 in a, 5 in b)"),
        ],
    )
    def test_every_difference_is_named(
        self, runs: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        y = Model(False)(X).argmax(1)
        evaluate(Model(False), (X, y), tmp_path / "c", **{**SETTINGS, "views": ["classification"], **change})
        (note,) = [n for n in compare(runs[0], tmp_path / "c").summary["notes"] if "differ in settings" in n]
        assert said in note

    def test_runs_without_a_common_measure(self, runs: tuple[Path, Path]) -> None:
        a = report_of(runs[0])
        b = copy.deepcopy(a)
        a["views"] = {"classification": a["views"]["classification"]}
        b["views"] = {"shift": b["views"]["shift"]}
        with pytest.raises(ValueError, match=r"^compare: the two runs must have a measure in common"):
            compare(a, b)


# ---- reports of strangers ----

BAD: tuple[Any, ...] = (None, True, "text", [])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*at, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


def refusal(a: Any, b: Any) -> str | None:
    try:
        compare(a, b)
    except ValueError as error:
        return str(error)
    return None


class TestDamagedReports:
    def test_any_value_replaced_is_one_sentence_or_a_page(self, runs: tuple[Path, Path]) -> None:
        good = report_of(runs[0])
        tried = 0
        for at in list(places(good)):
            for bad in BAD:
                damaged = copy.deepcopy(good)
                inner = damaged
                for key in at[:-1]:
                    inner = inner[key]
                inner[at[-1]] = bad
                tried += 1
                refused = refusal(good, damaged)
                if refused is None and tried % 41 == 0:  # drawing takes long
                    comparison = compare(good, damaged)
                    compare_page(comparison.a, comparison.b, comparison.summary)
                assert refused is None or (refused.startswith("compare: ") and "\n" not in refused), (at, bad)
        assert tried > 500

    @pytest.mark.parametrize(
        "text", ["{", "[]", "NaN", '{"format": 1, "views": NaN}', "[" * 100_000, "null", '"x"']
    )
    def test_what_is_no_report(self, runs: tuple[Path, Path], tmp_path: Path, text: str) -> None:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"^compare: run_b must be a "):
            compare(runs[0], tmp_path)

    def test_numbers_that_are_none(self, runs: tuple[Path, Path]) -> None:
        damaged = report_of(runs[0])
        damaged["views"]["classification"]["sets"][0]["accuracy"] = float("nan")
        with pytest.raises(ValueError, match=r"^compare: run_b must be .*Out of range"):
            compare(runs[0], damaged)

    def test_half_a_character_is_replaced(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        damaged = report_of(runs[0]) | {"title": "half \ud800"}
        (tmp_path / "report.json").write_text(json.dumps(damaged))
        comparison = compare(runs[0], tmp_path)
        assert comparison.summary["b"] == "half ?"
        json.dumps(comparison.summary, ensure_ascii=False).encode()
        compare_page(comparison.a, comparison.b, comparison.summary).encode()

    @pytest.mark.timeout(30)
    def test_what_is_no_file(self, runs: tuple[Path, Path], tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "report.json")
        with pytest.raises(ValueError, match=r"^compare: run_b must be .* it is a named pipe"):
            compare(runs[0], tmp_path)
