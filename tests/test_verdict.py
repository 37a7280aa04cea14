"""Requirements, the verdict on a run, and two runs side by side."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_rows
import torch
from brittle.evaluation.compare import compare
from brittle.evaluation.rows import RunRows
from brittle.evaluation.verdict import (
    Requirement,
    check_requirements,
    judge,
    measure,
    parse_requirement,
)
from brittle.evaluation.views import summarise


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return summarise(run_rows.make_run(), title="a net")


def attacked(at: dict[float, int], samples: int = 500, **parts: Any) -> RunRows:
    """A model that is right on 480 of 500, of which attacks of each radius fool so many more."""
    label = torch.tensor([1] * (samples // 25) + [0] * (samples - samples // 25))
    logits = torch.eye(2)[[0] * samples] * 4
    rows = run_rows.make_set(samples=samples, classes=2, logits=logits, label=label, groups=None)
    distance = torch.full((samples,), torch.inf, dtype=torch.float64)
    first = samples // 25
    for eps, count in at.items():
        distance[first : first + count] = eps
        first += count
    attacks = tuple(
        run_rows.make_attack(rows, attack, distance=distance, **parts) for attack in ("pgd", "minimal")
    )
    return RunRows((replace(rows, attacks=attacks),), {**run_rows.SETTINGS, "norms": ["linf"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy=0.9", Requirement("accuracy=0.9", "accuracy", 0.9)),
        (" ece=1/20 ", Requirement("ece=1/20", "ece", 0.05)),
        ("log_loss=2", Requirement("log_loss=2", "log_loss", 2.0)),
        ("robust=0.5@8/255", Requirement("robust=0.5@8/255", "robust", 0.5, 8 / 255)),
        ("robust=0.4@0.5:l2", Requirement("robust=0.4@0.5:l2", "robust", 0.4, 0.5, "l2")),
    ],
)
def test_parse(text: str, expected: Requirement) -> None:
    assert parse_requirement(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "MEASURE=VALUE with a measure of accuracy, f1, robust, worst_group, auroc, ece, log_loss"),
        ("accuracy", "MEASURE=VALUE"),
        ("acuracy=0.9", "MEASURE=VALUE with a measure of accuracy"),
        ("accuracy=90", r"accuracy=VALUE with a value in \[0, 1\]"),
        ("accuracy=nan", r"accuracy=VALUE with a value in \[0, 1\]"),
        ("accuracy=1/0", r"accuracy=VALUE with a value in \[0, 1\]"),
        ("log_loss=-1", "log_loss=VALUE with a value >= 0"),
        ("accuracy=0.9@0.1", "accuracy=VALUE, without a radius"),
        ("robust=0.5", "robust=VALUE@EPSILON with a radius > 0"),
        ("robust=0.5@0", "robust=VALUE@EPSILON with a radius > 0"),
        ("robust=0.5@8/255:linfinity", "robust=VALUE@EPSILON:NORM with a norm of linf, l2, l1"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^evaluate: fail_under must be {message}.*; got '{text}'$"):
        parse_requirement(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robust=0.5@0.1", r"at a radius that is evaluated in linf \(2/255, 4/255, 8/255, 16/255\)"),
        ("robust=0.5@8/255:l2", r"at a radius that is evaluated in l2 \(0.1, 0.25, 0.5, 1\)"),
        ("robust=0.5@8/255:l1", r"in a norm that is evaluated \(linf, l2\)"),
        ("f1=0.5", r"of a view that is evaluated \(f1 is of 'classification'\)"),
        ("worst_group=0.5", "worst_group only where the main set has groups"),
        ("auroc=0.5", "auroc only where there is a second set"),
    ],
)
def test_what_the_run_will_not_measure_is_an_error_before_it(text: str, message: str) -> None:
    settings = {**run_rows.SETTINGS, "views": ["robustness", "segments", "ood"]}
    check_requirements([parse_requirement("robust=0.5@0.0314")], settings)
    with pytest.raises(ValueError, match=f"^evaluate: fail_under must be {message}; got '{text}'$"):
        check_requirements([parse_requirement(text)], settings, groups=False, sets=1)


def test_every_measure_is_read_from_the_main_set(report: dict[str, Any]) -> None:
    views = report["views"]
    main = views["classification"]["sets"][0]
    groups = views["segments"]["sets"][0]["groups"]
    best = [max(score["auroc"] for score in one["scores"]) for one in views["ood"]["against"]]
    expected = {
        "accuracy=0": main["accuracy"],
        "f1=0": main["f1"],
        "log_loss=0": main["log_loss"],
        "ece=0": views["calibration"]["sets"][0]["conditions"][0]["ece"],
        "worst_group=0": min(group["accuracy"] for group in groups),
        "auroc=0": min(best),
        "robust=0@8/255": views["robustness"]["norms"][0]["robust_accuracy"][3],
        "robust=0@0.5:l2": views["robustness"]["norms"][1]["robust_accuracy"][3],
    }
    for text, value in expected.items():
        assert measure(views, parse_requirement(text)) == value
    assert len(set(expected.values())) == len(expected)


def test_held_and_missed(report: dict[str, Any]) -> None:
    views = report["views"]
    accuracy, ece = (measure(views, parse_requirement(f"{name}=0")) for name in ("accuracy", "ece"))
    assert accuracy is not None
    assert ece is not None
    exact = [parse_requirement(f"accuracy={accuracy!r}"), parse_requirement(f"ece={ece!r}")]
    assert judge(views, exact).held is True
    assert judge(views).held is None
    tight = [parse_requirement(f"accuracy={accuracy + 1e-6!r}"), parse_requirement(f"ece={ece - 1e-6!r}")]
    verdict = judge(views, [*tight, exact[0]])
    assert (verdict.held, [one.held for one in verdict.requirements]) == (False, [False, False, True])
    lines = verdict.text().splitlines()
    assert lines[-3] == f"MISSED  {tight[0].text} (got {accuracy:.4g})"
    assert lines[-1].startswith("held    accuracy=")
    absent = judge({}, exact)
    assert (absent.held, absent.requirements[0].got) == (False, None)
    assert absent.text().endswith("(got not measured)")


def test_the_headline_says_what_breaks_the_model_and_how_sure_that_is() -> None:
    eps = run_rows.EPSILONS["linf"]
    verdict = summarise(attacked({eps[1]: 40, eps[2]: 378, eps[3]: 20}))["verdict"]
    assert verdict["headline"] == (
        "Breaks at epsilon 8/255 (Linf): PGD leaves 12.4 % of 500 samples right (95 % interval 9.8-15.6 %)"
    )
    assert verdict["sentences"] == (
        "Right on 96.0 % of 500 samples as they are (95 % interval 93.9-97.4 %).",
        "Half of the samples are wrong within epsilon 8/255 (Linf).",
        "Confidence 98.2 % on average, expected calibration error 0.022.",
    )


def test_the_smallest_radius_that_surely_breaks_it() -> None:
    eps = run_rows.EPSILONS["linf"]
    # 230 of 480 are left at the second radius: less than half, but not surely.
    headline = summarise(attacked({eps[1]: 250, eps[3]: 200}))["verdict"]["headline"]
    assert headline.startswith("Breaks at epsilon 16/255 (Linf): PGD leaves 6.0 % of 500")


def test_models_that_are_not_broken() -> None:
    eps = run_rows.EPSILONS["linf"]
    kept = summarise(attacked({eps[3]: 40}))["verdict"]["headline"]
    assert kept.startswith(
        "Keeps more than half of its accuracy up to epsilon 16/255 (Linf): PGD leaves 88.0 %"
    )
    blind = attacked({eps[2]: 10}, zero_gradient=torch.ones(500, dtype=torch.bool))
    verdict = summarise(blind)["verdict"]
    assert verdict["headline"].startswith(
        "Signs of gradient masking (Linf), so robustness is unknown: at epsilon 16/255 (Linf): PGD leaves "
    )
    assert any("signs of gradient masking (Linf)" in sentence for sentence in verdict["sentences"])
    few = summarise(attacked({eps[2]: 12}, samples=25))["verdict"]["headline"]
    assert few.startswith("Too few samples to tell: at epsilon 16/255 (Linf): PGD leaves 48.0 % of 25")


def test_no_attack_and_a_part_of_the_data(report: dict[str, Any]) -> None:
    views = {name: view for name, view in report["views"].items() if name != "robustness"}
    verdict = judge(views, partial={"used": 100, "of": 500})
    assert verdict.headline.startswith(
        "Right on 91.5 % of 200 samples as they are (95 % interval 86.8-94.6 %)"
    )
    assert verdict.sentences[:2] == (
        "Partial: 100 of 500 samples were evaluated, so every number is provisional.",
        "The model was attacked by single steps alone, for its calibration.",
    )
    del views["calibration"]
    assert judge(views).sentences[0] == "The model was not attacked."
    assert judge({}).headline == "Neither accuracy nor robustness was asked for: see what was"
    beside = {"sets": {"rows": [{"accuracy": 0.5, "interval": [0.4, 0.6], "samples": 90}]}}
    assert judge(beside).headline == "Right on 50.0 % of 90 samples as they are (95 % interval 40.0-60.0 %)"


class TestCompare:
    def test_numbers_and_findings(self, report: dict[str, Any], tmp_path: Path) -> None:
        fixed = copy.deepcopy(report)
        fixed["title"] = "a fixed net"
        norm = fixed["views"]["robustness"]["norms"][0]
        norm["robust_accuracy"][3] += 0.5
        norm["interval"][3] = [bound + 0.5 for bound in norm["interval"][3]]
        fixed["views"]["calibration"]["sets"][0]["conditions"][0]["ece"] += 0.1
        del fixed["views"]["segments"]
        gone = fixed["findings"].pop(0)["title"]
        for name, one in (("a", report), ("b", fixed)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "report.json").write_text(json.dumps(one))
        comparison = compare(tmp_path / "a", str(tmp_path / "b"))
        summary = comparison.summary
        rows = {row["measure"]: row for row in summary["rows"]}
        assert len(rows) == len(summary["rows"])
        changed = rows["robust accuracy, linf 8/255"]
        assert changed["difference"] == pytest.approx(0.5)
        assert (changed["change"], changed["sure"]) == ("better", True)
        error = rows["calibration error, test, clean"]
        assert (error["change"], error["sure"], error["test"]) == ("not tested", False, None)
        assert rows["accuracy, test"]["change"] == "same"
        assert (rows["worst group, test"]["b"], rows["worst group, test"]["difference"]) == (None, None)
        assert rows["AUROC, other-hospital, energy"]["change"] is None
        assert rows["AUROC, uniform noise, energy"]["change"] == "same"
        assert summary["findings"]["gone"] == [gone]
        assert summary["findings"]["new"] == []
        assert (summary["notes"], summary["same_data"]) == ([], None)
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary
        lines = comparison.table().splitlines()
        assert lines[:2] == [
            f"a: a net (folder {tmp_path / 'a'})",
            f"b: a fixed net (folder {tmp_path / 'b'})",
        ]
        (line,) = [line for line in lines if line.startswith("robust accuracy, linf 8/255")]
        a, b = changed["a"], changed["b"]
        assert lines[-1] == "without p: beyond chance where the 95 % intervals lie apart"
        assert line.split()[4:] == [f"{a:.4f}", f"{b:.4f}", "0.5000", "better"]
        assert summary["rows"][0] == changed, "what surely changed comes first"

    def test_what_stands_in_the_way(self, report: dict[str, Any]) -> None:
        other = copy.deepcopy(report)
        other["partial"] = {"used": 100, "of": 500}
        other["settings"]["steps"] = 10
        for one, data in ((report, "abc"), (other, "abd")):
            one["provenance"] = {"data test": data}
        found = compare(report, other).summary
        assert found["notes"] == [
            "The two runs are of different data: differences may be the data's.",
            "Run b is partial: 100 of 500 samples.",
            "The two runs differ in settings: steps (40 in a, 10 in b).",
        ]
        assert found["same_data"] is False
        assert compare(report, report).summary["same_data"] is True

    def test_robustness_by_masking_is_not_better(self) -> None:
        eps = run_rows.EPSILONS["linf"]
        weak = summarise(attacked({eps[0]: 60, eps[1]: 150, eps[2]: 150, eps[3]: 110}), title="weak")
        blind = torch.ones(500, dtype=torch.bool)
        masked = summarise(attacked({eps[2]: 10}, zero_gradient=blind), title="masked")
        for a, b, word in ((weak, masked, "b"), (masked, weak, "a")):
            found = compare(a, b).summary
            rows = {row["measure"]: row for row in found["rows"]}
            for name in ("robust accuracy, linf 8/255", "median epsilon, linf"):
                assert (rows[name]["change"], rows[name]["sure"]) == (None, False)
            assert abs(rows["robust accuracy, linf 8/255"]["difference"]) > 0.5
            assert found["notes"] == [
                f"Run {word} has signs of gradient masking (linf): its robust accuracy is one at most, so no "
                "change of it is judged."
            ]

    def test_errors(self, report: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"^compare: run_b must be a folder with the report.json of a fin"
        ):
            compare(report, tmp_path)
        with pytest.raises(ValueError, match=r"^compare: run_a must be a report of format 1; got"):
            compare({**report, "format": 2}, report)


def test_a_model_that_is_wrong_without_an_attack_is_not_said_to_fall_within_a_radius() -> None:
    run = attacked({})
    verdict = summarise(replace(run, sets=(replace(run.main, label=1 - run.main.label),)))["verdict"]
    assert verdict["sentences"][0].startswith("Right on 4.0 % of 500 samples as they are")
    assert not any("within epsilon" in sentence for sentence in verdict["sentences"])
