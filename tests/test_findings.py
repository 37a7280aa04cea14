"""Findings and signs of masking: there for rows made to show them, absent for fair ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import run_rows
import torch
from brittle.evaluation.rows import AttackRows, Duplicates, Landscape, RunRows, SetRows
from brittle.evaluation.views import VIEWS, summarise
from torch import Tensor

LINF = run_rows.EPSILONS["linf"]


def findings(view: str, *sets: SetRows, **settings: Any) -> list[tuple[str, str]]:
    """Severity and title of each."""
    numbers = VIEWS[view].numbers(RunRows(sets, {**run_rows.SETTINGS, **settings}))
    return [] if numbers is None else [(f.severity, f.title) for f in VIEWS[view].findings(numbers)]


@pytest.fixture(scope="module")
def rows() -> SetRows:
    return run_rows.make_set(samples=300)


def robustness(rows: SetRows, *attacks: AttackRows, **settings: Any) -> dict[str, Any]:
    run = RunRows((replace(rows, attacks=attacks),), {**run_rows.SETTINGS, **settings})
    numbers = VIEWS["robustness"].numbers(run)
    assert numbers is not None
    (norm,) = numbers["norms"]
    return norm  # type: ignore[no-any-return]


def evenly(rows: SetRows, least: float, most: float) -> Tensor:
    return torch.linspace(least, most, len(rows), dtype=torch.float64)


class TestRobustAccuracy:
    def test_a_point_settles_every_larger_radius(self, rows: SetRows) -> None:
        single = run_rows.make_attack(rows, "fgsm")
        fooled = torch.zeros_like(single.fooled)
        fooled[1, :150] = True  # at the second radius alone
        distance = torch.where(torch.arange(300) < 150, LINF[1], torch.inf)
        norm = robustness(rows, replace(single, fooled=fooled, distance=distance.double()))
        right = rows.answers.correct
        share = int(right.sum()) / 300
        left = int((right & (torch.arange(300) >= 150)).sum()) / 300
        assert norm["curves"][0]["accuracy"] == [share, share, left, share, share]
        assert norm["robust_accuracy"] == [share, share, left, left, left]

    def test_a_nearer_point_of_another_attack_counts(self, rows: SetRows) -> None:
        far = run_rows.make_attack(rows, "pgd", distance=torch.full((300,), LINF[2]))
        near = run_rows.make_attack(rows, "minimal", distance=torch.full((300,), LINF[1] * 0.9))
        norm = robustness(rows, far, near)
        share = int(rows.answers.correct.sum()) / 300
        assert norm["robust_accuracy"] == [share, share, 0, 0, 0]
        assert norm["interval"][2][0] == 0
        assert norm["cost"] == {"forwards": 2 * 300 * 20, "backwards": 2 * 300 * 20}

    def test_minimal_epsilon_by_hand(self) -> None:
        logits, label = torch.eye(2)[[0] * 20] * 3, torch.tensor([0] * 18 + [1] * 2)
        ten = run_rows.make_set(samples=20, classes=2, logits=logits, label=label, features=None)
        distance = torch.tensor([*[0.01] * 4, *(0.02 + 0.001 * k for k in range(8)), *[torch.inf] * 8])
        search = run_rows.make_attack(ten, "minimal", distance=distance)
        unknown = replace(search, distance=distance.double())  # also of those that are wrong anyway
        norm = robustness(ten, unknown)
        minimal = norm["minimal_epsilon"]
        # Two are wrong as they are (0), four at 0.01, eight from 0.02 on, six never.
        assert {q["share"]: q["epsilon"] for q in minimal["quantiles"]} == {
            0.05: 0.0,
            0.25: pytest.approx(0.01),
            0.5: pytest.approx(0.023),
            0.75: None,
            0.95: None,
        }
        assert (minimal["median"], minimal["never_fooled"]) == (pytest.approx(0.023), 6)
        assert minimal["upper"] == LINF[-1]
        assert minimal["curve"]["epsilon"][:2] == [0.0, pytest.approx(0.01)]
        assert minimal["curve"]["fooled"][:2] == [0.1, 0.3]
        assert minimal["curve"]["fooled"][-1] == 0.7

    def test_other_seeds_are_not_in_it(self, rows: SetRows) -> None:
        other = run_rows.make_attack(rows, distance=torch.zeros(300), seed=1)
        own = run_rows.make_attack(rows, distance=torch.full((300,), torch.inf))
        assert robustness(rows, own, other)["robust_accuracy"][-1] > 0.8
        numbers = VIEWS["repeat"].numbers(
            RunRows((replace(rows, attacks=(own, other)),), dict(run_rows.SETTINGS))
        )
        assert numbers is not None
        share = int(rows.answers.correct.sum()) / 300
        assert numbers["measures"][0]["values"] == [share, 0.0]
        assert numbers["measures"][0]["spread"] == share


class TestMasking:
    def signs(self, rows: SetRows, *attacks: AttackRows, **settings: Any) -> list[str]:
        found = robustness(rows, *attacks, **settings)["masking"]["signs"]
        assert isinstance(found, list)
        return found

    def test_an_honest_model_shows_none(self, rows: SetRows) -> None:
        distance = evenly(rows, 0.001, 0.07)
        attacks = [
            run_rows.make_attack(rows, "fgsm", distance=1.3 * distance),
            run_rows.make_attack(rows, "pgd", distance=distance),
            run_rows.make_attack(rows, "minimal", distance=distance),
            run_rows.make_attack(rows, "random", distance=6 * distance),
        ]
        assert self.signs(rows, *attacks) == []

    def test_a_robust_model_shows_none(self, rows: SetRows) -> None:
        """A curve that has not begun to fall is no flat one."""
        assert self.signs(rows, run_rows.make_attack(rows, distance=torch.full((300,), torch.inf))) == []

    @pytest.mark.parametrize(
        ("flag", "words"), [("zero_gradient", "exactly zero"), ("nonfinite_gradient", "not finite")]
    )
    def test_no_gradient(self, rows: SetRows, flag: str, words: str) -> None:
        safe = torch.full((300,), torch.inf)
        blind = run_rows.make_attack(rows, distance=safe, **{flag: torch.ones(300, dtype=torch.bool)})
        (sign,) = self.signs(rows, blind)
        attacked = int(rows.answers.correct.sum())
        assert f"of {attacked} of {attacked} samples was {words}" in sign
        # Another attack's gradient led somewhere; random search needs none.
        other = run_rows.make_attack(rows, "minimal", distance=torch.full((300,), 0.05))
        assert robustness(rows, blind, other)["masking"][flag] == 0
        lucky = run_rows.make_attack(rows, "random", distance=torch.full((300,), 0.05))
        assert robustness(rows, blind, lucky)["masking"][flag] == attacked

    @pytest.mark.parametrize(
        ("attack", "key", "words"),
        [
            ("random", "random_beats_gradient", "Random search fooled"),
            ("fgsm", "single_step_beats_iterative", "A single step fooled"),
        ],
    )
    def test_a_weaker_attack_wins(self, rows: SetRows, attack: str, key: str, words: str) -> None:
        strong = run_rows.make_attack(rows, "pgd", distance=torch.full((300,), torch.inf))
        right = rows.answers.correct.nonzero().squeeze(1)

        def beating(count: int) -> AttackRows:
            distance = torch.full((300,), torch.inf)
            distance[right[:count]] = LINF[0]
            return run_rows.make_attack(rows, attack, distance=distance)

        assert robustness(rows, strong, beating(12))["masking"][key] == 12
        (sign,) = self.signs(rows, strong, beating(12))
        assert sign.startswith(f"{words} 12 of {len(right)} samples")
        assert self.signs(rows, strong, beating(2)) == []

    def test_pgd_that_was_right_at_a_smaller_radius_is_not_beaten(self, rows: SetRows) -> None:
        first, second = torch.zeros(4, 300, dtype=torch.bool), torch.zeros(4, 300, dtype=torch.bool)
        first[0], second[1] = True, True
        strong = replace(run_rows.make_attack(rows, "pgd"), fooled=first)
        weak = replace(run_rows.make_attack(rows, "fgsm"), fooled=second)
        assert robustness(rows, strong, weak)["masking"]["single_step_beats_iterative"] == 0

    def test_a_curve_that_stops_falling(self, rows: SetRows) -> None:
        distance = torch.where(torch.arange(300) < 100, 0.01, torch.inf)
        (sign,) = self.signs(rows, run_rows.make_attack(rows, distance=distance))
        assert sign.startswith("The accuracy stops falling")

    def test_right_where_all_inputs_can_be_the_same(self, rows: SetRows) -> None:
        safe, radii = torch.full((300,), torch.inf), (0.1, 0.5)
        (sign,) = self.signs(rows, run_rows.make_attack(rows, distance=safe, epsilons=radii))
        assert sign.startswith("At radius 0.5, where every input can be made the same")
        wide = run_rows.make_attack(rows, distance=safe, epsilons=radii)
        assert self.signs(rows, wide, bounds=[-2.0, 2.0]) == []

    def test_the_finding(self, rows: SetRows) -> None:
        blind = run_rows.make_attack(
            rows, distance=torch.full((300,), torch.inf), zero_gradient=torch.ones(300, dtype=torch.bool)
        )
        found = findings("robustness", replace(rows, attacks=(blind,)))
        assert found == [("serious", "Signs of gradient masking (Linf)")]


def test_attacks_that_break_the_model(rows: SetRows) -> None:
    at_once = run_rows.make_attack(rows, distance=torch.full((300,), 0.001))
    assert findings("robustness", replace(rows, attacks=(at_once,))) == [
        ("critical", "Attacks break the model at epsilon 2/255 (Linf)")
    ]
    mostly = run_rows.make_attack(rows, distance=torch.where(torch.arange(300) % 10 < 7, 0.001, torch.inf))
    assert findings("robustness", replace(rows, attacks=(mostly,)))[0][0] == "serious"
    later = run_rows.make_attack(rows, distance=torch.full((300,), 0.05))
    assert findings("robustness", replace(rows, attacks=(later,))) == [
        ("note", "Attacks break the model at epsilon 16/255 (Linf), beyond the 8/255 that is asked about")
    ]
    for share, expected in (
        (3, [("moderate", "Attacks weaken the model at epsilon 8/255 (Linf)")]),
        (1, []),
    ):
        some = run_rows.make_attack(
            rows, distance=torch.where(torch.arange(300) % 10 < share, 0.001, torch.inf)
        )
        found = findings("robustness", replace(rows, attacks=(some,)))
        assert [one for one in found if "masking" not in one[1]] == expected


def constant(samples: int, classes: int = 2) -> SetRows:
    logits = torch.zeros(samples, classes)
    logits[:, 1] = 2
    return run_rows.make_set(
        samples=samples, classes=classes, logits=logits, label=torch.arange(samples) % classes, groups=None
    )


def test_classification_findings() -> None:
    assert findings("classification", constant(40)) == [("critical", "The model gives one answer on test")]
    assert findings("classification", constant(4)) == []
    good = run_rows.make_set(samples=400, classes=4, sharpness=9.0)
    swapped = replace(good, label=(good.label + 1) % 4)
    assert findings("classification", swapped) == [
        ("critical", "The model is worse than a constant answer on test")
    ]
    # Of one class alone: no answer beats the constant one.
    alike = good.label == 1
    kept = good.logits.clone()
    kept[alike.nonzero()[:5, 0], 3] += 30
    single = replace(
        run_rows.make_set(samples=int(alike.sum()), classes=4), logits=kept[alike], label=good.label[alike]
    )
    assert findings("classification", single) == []
    # All of a rare class are recognised, for which some of the frequent one are taken for it.
    rare = torch.tensor([1] * 4 + [0] * 396)
    alarmed = replace(
        run_rows.make_set(samples=400, classes=2),
        logits=9 * torch.eye(2)[rare | (torch.arange(400) < 24)],
        label=rare,
    )
    assert findings("classification", alarmed) == [
        ("moderate", "The model is worse than a constant answer on test")
    ]
    lost = replace(good, label=torch.where(good.logits.argmax(1) == 2, 3, good.label))
    assert [s for s, _ in findings("classification", lost)] == ["moderate"]
    logits = good.logits.clone()
    logits[good.label == 1, 2] += 30
    assert findings("classification", replace(good, logits=logits)) == [
        ("serious", "Class class 1 is recognised less often than others on test")
    ]


def test_segments_findings() -> None:
    rows = run_rows.make_set(samples=400, sharpness=9.0, groups=("a", "b", "c", "d"))
    assert findings("segments", rows) == []
    label = rows.label.clone()
    served_worse = torch.tensor([g == "c" for g in rows.groups or ()])
    label[served_worse] = (label[served_worse] + torch.arange(int(served_worse.sum())) % 2) % 10
    assert findings("segments", replace(rows, label=label)) == [
        ("serious", "Group c of test is served worse")
    ]


def test_calibration_findings() -> None:
    rows = run_rows.make_set(samples=600, sharpness=3.0)
    assert findings("calibration", rows) == []
    assert findings("calibration", replace(rows, logits=8 * rows.logits)) == [
        ("serious", "The model is too sure of itself on test")
    ]
    assert findings("calibration", replace(rows, logits=rows.logits / 3)) == [
        ("serious", "The model is not sure enough of itself on test")
    ]
    answers = run_rows.make_condition(rows, "gaussian", 3, 0.18)
    sure = replace(answers, confidence=torch.full((600,), 0.99, dtype=torch.float64))
    found = findings("calibration", replace(rows, conditions=(sure,)))
    assert found == [("moderate", "The model stays sure of itself under noise (gaussian 3)")]


def test_ood_findings(rows: SetRows) -> None:
    plain = replace(rows, features=None)
    passing = run_rows.make_set("uniform noise", 300, labelled=False, seed=3)
    blind = ("serious", "The model's answers do not tell uniform noise from test")
    assert findings("ood", plain, replace(passing, features=None)) == [blind]
    strange = run_rows.make_set("uniform noise", 300, labelled=False, sharpness=0.0)
    assert findings("ood", rows, strange) == []
    elsewhere = run_rows.make_set("elsewhere", 300, sharpness=2.0, seed=4)
    assert findings("ood", rows, elsewhere) == [("note", "elsewhere looks unlike test to the model")]


def test_other_findings(rows: SetRows) -> None:
    noisy = [run_rows.make_condition(rows, "gaussian", k, 0.1 * k) for k in (1, 4, 5)]
    assert findings("shift", replace(rows, conditions=tuple(noisy))) == [
        ("serious", "Accuracy falls under gaussian at severity 4")
    ]
    many = run_rows.make_set(samples=4000)
    said = run_rows.make_condition(many, "gaussian", 1, 0.1)
    turned = torch.where(torch.arange(4000) % 20 == 0, (many.label + 1) % 10, said.predicted)
    few = replace(many, conditions=(replace(said, predicted=turned),))
    assert findings("shift", few) == []  # sure, and small
    weak = run_rows.make_set("weak", 300, sharpness=3.5, seed=8)
    assert findings("sets", rows, weak) == [("serious", "The model is worse on weak than on test")]
    alphas = (-0.1, 0.0, 0.1)
    along, across = torch.zeros(12, 3, 3), torch.zeros(12, 3, 3)
    along[:, 2, :], across[:, :, 2] = 1.0, 1.0
    honest = replace(rows, landscape=Landscape(torch.arange(12), along, alphas))
    assert findings("landscape", honest) == []
    masked = replace(rows, landscape=Landscape(torch.arange(12), across, alphas))
    assert [s for s, _ in findings("landscape", masked)] == ["moderate"]
    run = RunRows(
        (rows,), run_rows.SETTINGS, (Duplicates("train", "test", 1, 300, 0.9, ((0, 1, 1.0, 0.0),)),)
    )
    found = [f for f in summarise(run)["findings"] if f["view"] == "duplicates"]
    assert [f["severity"] for f in found] == ["moderate"]
    assert "1 of 300 samples (0.3 %)" in found[0]["evidence"]


def test_fair_models_are_seldom_accused() -> None:
    """Calibrated models whose groups, classes and sets differ by chance alone."""
    accused = dict.fromkeys(("classification", "segments", "calibration", "sets"), 0)
    critical = 0
    for seed in range(100):
        groups = ("a", "b", "c", "d", "e", "f")
        rows = run_rows.make_set(
            samples=150, classes=4, sharpness=4.0, groups=groups, seed=seed, features=None
        )
        other = run_rows.make_set("other", 80, 4, sharpness=4.0, groups=None, seed=1000 + seed, features=None)
        for view in accused:
            found = findings(view, rows, other)
            accused[view] += bool(found)
            critical += any(severity == "critical" for severity, _ in found)
    assert critical == 0
    assert max(accused.values()) <= 5, accused
