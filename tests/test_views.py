"""What a report shows, against scikit-learn, definitions written out by hand and known distributions."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import run_rows
import torch
from brittle.evaluation.rows import RunRows, SetRows
from brittle.evaluation.scores import BINS, calibration_bins, expected_calibration_error
from brittle.evaluation.statistics import auroc_interval, differ_by_chance, percents, wilson
from brittle.evaluation.views import VIEWS
from brittle.evaluation.views.common import thin
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics
from sklearn.preprocessing import label_binarize
from torch import Tensor

SIX_DIGITS = 2e-6


def alone(rows: SetRows, *others: SetRows, **changes: Any) -> RunRows:
    return RunRows((rows, *others), {**run_rows.SETTINGS, **changes})


def view(name: str, run: RunRows) -> dict[str, Any]:
    numbers = VIEWS[name].numbers(run)
    assert numbers is not None
    return numbers


@pytest.mark.parametrize("kept", [range(10), (2,), (2, 3, 7)], ids=["all classes", "one", "three"])
@pytest.mark.parametrize("samples", [300, 3])
def test_classification_is_scikit_learns(kept: tuple[int, ...], samples: int) -> None:
    rows = run_rows.make_set(samples=samples, sharpness=2.0)
    rows = replace(rows, label=torch.tensor([kept[y % len(kept)] for y in rows.label.tolist()]))
    (found,) = view("classification", alone(rows))["sets"]
    y, logits = rows.label.numpy(), rows.logits.double().numpy()
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    predicted, classes = probabilities.argmax(1), list(range(10))
    assert found["accuracy"] == metrics.accuracy_score(y, predicted)
    assert found["confusion"] == metrics.confusion_matrix(y, predicted, labels=classes).tolist()
    assert found["log_loss"] == pytest.approx(metrics.log_loss(y, probabilities, labels=classes), rel=1e-9)
    assert found["hamming"] == pytest.approx(metrics.hamming_loss(y, predicted), abs=SIX_DIGITS)
    for name in ("precision", "recall", "f1"):
        score = getattr(metrics, f"{name}_score")
        macro = score(y, predicted, average="macro", zero_division=0)
        assert found[name] == pytest.approx(macro, abs=SIX_DIGITS)
        each = score(y, predicted, labels=classes, average=None, zero_division=0)
        for c, row in enumerate(found["per_class"]):
            undefined = {
                "precision": (predicted != c).all(),
                "recall": (y != c).all(),
                "f1": (predicted != c).all() and (y != c).all(),
            }[name]
            assert row[name] == (None if undefined else pytest.approx(each[c], abs=SIX_DIGITS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and do not occur
        balanced = metrics.balanced_accuracy_score(y, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced, abs=SIX_DIGITS)
    truth = label_binarize(y, classes=classes)
    ranked = []
    for c, row in enumerate(found["per_class"]):
        assert row["support"] == truth[:, c].sum()
        if not row["support"]:
            assert row["average_precision"] is None
            continue
        ranked.append(metrics.average_precision_score(truth[:, c], probabilities[:, c]))
        assert row["average_precision"] == pytest.approx(ranked[-1], abs=SIX_DIGITS)
    assert found["average_precision"] == pytest.approx(np.mean(ranked), abs=SIX_DIGITS)
    assert [curve["class"] for curve in found["curves"]] == [f"class {c}" for c in sorted(set(y.tolist()))]
    for curve in found["curves"]:
        c = int(curve["class"].split()[1])
        p, r, _ = metrics.precision_recall_curve(truth[:, c], probabilities[:, c])
        # scikit-learn leaves out what lies beyond full recall.
        whole = list(zip(p, r, strict=True))
        assert len(curve["recall"]) <= 101
        assert (curve["precision"][-1], curve["recall"][-1]) == (1.0, 0.0)
        assert curve["recall"][0] == 1.0
        for point in zip(curve["precision"], curve["recall"], strict=True):
            if point[1] < 1:
                assert min(abs(point[0] - q[0]) + abs(point[1] - q[1]) for q in whole) < 1e-5


def test_an_accuracy_that_meets_its_bound_to_the_last_digit() -> None:
    """In single precision 9 of 10 are 0.8999999762, which is no 0.9."""
    logits = torch.eye(2)[[0] * 10] * 3
    rows = run_rows.make_set(
        samples=10, classes=2, logits=logits, label=torch.tensor([0] * 9 + [1]), features=None
    )
    (found,) = view("classification", alone(rows))["sets"]
    assert found["accuracy"] == 0.9
    assert found["precision"] == 0.45
    assert found["hamming"] == 0.1


@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(0.01, 1.0), st.integers(1, 15).map(lambda k: k / 15), st.just(1.0)),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_calibration_error_is_the_definition(answers: list[tuple[float, bool]]) -> None:
    confidence = torch.tensor([c for c, _ in answers], dtype=torch.float64)
    correct = torch.tensor([right for _, right in answers])
    bins = calibration_bins(confidence).tolist()
    error, largest = 0.0, 0.0
    for k in range(BINS):
        members = [answer for answer, b in zip(answers, bins, strict=True) if b == k]
        for c, _ in members:
            assert k / BINS - 1e-12 < c < (k + 1) / BINS + 1e-12
        if members:
            share = sum(right for _, right in members) / len(members)
            gap = abs(share - sum(c for c, _ in members) / len(members))
            error, largest = error + gap * len(members) / len(answers), max(largest, gap)
    assert expected_calibration_error(confidence, correct) == pytest.approx(error, abs=1e-12)
    assert expected_calibration_error(confidence, correct, "max") == pytest.approx(largest, abs=1e-12)


def test_certain_answers_share_the_last_bin() -> None:
    confidence = torch.tensor([1.0, 0.95, 0.92], dtype=torch.float64)
    assert calibration_bins(confidence).tolist() == [14, 14, 13]
    assert expected_calibration_error(confidence[:2], torch.tensor([True, False])) == pytest.approx(0.475)


def test_calibration_under_noise_and_attack() -> None:
    run = run_rows.make_run()
    main, *others = view("calibration", run)["sets"]
    names = [condition["name"] for condition in main["conditions"]]
    assert names == ["clean", "gaussian 2", "blur 2", "fgsm 8/255"]
    assert [[c["name"] for c in other["conditions"]] for other in others] == [["clean"], ["clean"]]
    rows = run.main
    probabilities = rows.logits.double().softmax(1)
    truth = torch.nn.functional.one_hot(rows.label, 10)
    clean = main["conditions"][0]
    assert clean["brier"] == pytest.approx(float(((probabilities - truth) ** 2).sum(1).mean()))
    assert clean["over_confidence"] == pytest.approx(clean["confidence"] - clean["accuracy"])
    assert sum(b["samples"] for b in clean["bins"]) == 200
    error = sum(b["samples"] * abs(b["accuracy"] - b["confidence"]) for b in clean["bins"] if b["samples"])
    assert clean["ece"] == pytest.approx(error / 200, abs=1e-12)
    condition = next(c for c in rows.conditions if (c.kind, c.level, c.seed) == ("gaussian", 2, 0))
    correct = condition.predicted == rows.label
    assert main["conditions"][1]["accuracy"] == correct.double().mean()
    assert main["conditions"][1]["ece"] == expected_calibration_error(condition.confidence, correct)


def scored(inside: Tensor, outside: Tensor) -> RunRows:
    """Two classes whose second logit is the given value, so that the energy is about its negative."""

    def rows(name: str, values: Tensor, labelled: bool) -> SetRows:
        logits = torch.stack([torch.full_like(values, -1e4), values], 1)
        label = torch.ones(len(values)).long() if labelled else torch.full((len(values),), -1)
        return run_rows.make_set(name, len(values), 2, logits=logits, label=label, features=None, groups=None)

    return alone(rows("test", inside, True), rows("uniform noise", outside, False))


def test_auroc_of_two_gaussians_is_the_closed_form() -> None:
    g, d = run_rows.generator(0), 1.3
    inside, outside = torch.randn(40_000, generator=g) + 60, torch.randn(30_000, generator=g) + 60 - d
    (one,) = view("ood", scored(inside, outside))["against"]
    energy = next(score for score in one["scores"] if score["score"] == "energy")
    # A sigmoid in single precision would have made every one of these scores 1.
    expected = 0.5 * (1 + math.erf(d / 2))  # Phi(d / sqrt(2))
    assert energy["auroc"] == pytest.approx(expected, abs=0.004)
    assert energy["interval"][0] < expected < energy["interval"][1]
    # 95 % of the positive ones score above z - d; inside, so many do.
    z = 1.6448536269514722
    assert energy["fpr95"] == pytest.approx(0.5 * (1 + math.erf((z - d) / math.sqrt(2))), abs=0.01)


def test_ood_is_scikit_learns() -> None:
    g = run_rows.generator(1)
    inside, outside = torch.randn(70, generator=g), (torch.randn(45, generator=g) - 0.5).round(decimals=1)
    (one,) = view("ood", scored(inside, outside))["against"]
    energy = next(score for score in one["scores"] if score["score"] == "energy")
    truth, strange = np.repeat([0, 1], [70, 45]), -torch.cat([inside, outside]).double().numpy()
    assert energy["auroc"] == pytest.approx(metrics.roc_auc_score(truth, strange), abs=SIX_DIGITS)
    assert energy["aupr"] == pytest.approx(metrics.average_precision_score(truth, strange), abs=SIX_DIGITS)
    fpr, tpr, _ = metrics.roc_curve(truth, strange, drop_intermediate=False)
    assert energy["fpr95"] == pytest.approx(fpr[tpr >= 0.95][0], abs=SIX_DIGITS)
    rows = run_rows.make_set(samples=90), run_rows.make_set("strange", 60, sharpness=3.0, seed=2)
    (one,) = view("ood", alone(*rows))["against"]
    confidence = torch.cat([each.logits.double().softmax(1).max(1).values for each in rows]).numpy()
    entropy = torch.cat([torch.special.entr(each.logits.double().softmax(1)).sum(1) for each in rows])
    for name, score in (("max softmax", -confidence), ("entropy", entropy.numpy())):
        found = next(each for each in one["scores"] if each["score"] == name)
        expected = metrics.roc_auc_score(np.repeat([0, 1], [90, 60]), score)
        assert found["auroc"] == pytest.approx(expected, abs=SIX_DIGITS)
        assert expected > 0.7
    assert sum(energy["histogram"]["inside"]) == pytest.approx(1, abs=1e-4)
    assert len(energy["histogram"]["edges"]) == 31


def test_fpr95_counts_95_of_100() -> None:
    """95 of 100 are caught at the threshold 10, where 3 of the 10 inside are given up."""
    outside = torch.tensor([-10.0] * 95 + [10.0] * 5)
    inside = torch.tensor([-12.0, -11.0, -10.0, *[0.0] * 7])
    (one,) = view("ood", scored(inside, outside))["against"]
    assert next(s for s in one["scores"] if s["score"] == "energy")["fpr95"] == 0.3


@pytest.mark.parametrize("trained_on", ["itself", "train"])
def test_feature_distance_is_honest(trained_on: str) -> None:
    """As many features as samples: distances from the samples of a fit would be far too small."""
    # Of unlike widths, so that shrinkage towards equal ones is slight.
    widths = torch.logspace(0, 1, 100)

    def wide(name: str, samples: int, seed: int, moved: float = 0.0) -> SetRows:
        rows = run_rows.make_set(name, samples, 3, dimensions=100, groups=None, seed=seed, moved=moved)
        assert rows.features is not None
        return replace(rows, features=rows.features * widths)

    main, same, moved = wide("test", 240, 0), wide("same", 240, 5), wide("moved", 240, 6, moved=1.5)
    others = [wide("train", 120, 7)] if trained_on == "train" else []
    against = view("ood", alone(main, same, moved, *others))["against"]
    assert [one["set"] for one in against] == ["same", "moved"]
    distance = [next(s for s in one["scores"] if s["score"] == "feature distance") for one in against]
    assert distance[0]["auroc"] == pytest.approx(0.5, abs=0.08)
    assert distance[1]["auroc"] > 0.95
    assert distance[0]["samples"] == {"inside": 240 if others else 120, "outside": 240}


def test_segments_by_hand() -> None:
    names = ("a", "b", "c")
    logits = torch.eye(2)[[0] * 60] * 4
    label = torch.tensor([0] * 20 + [0] * 15 + [1] * 5 + [1] * 20)
    rows = run_rows.make_set(samples=60, classes=2, logits=logits, label=label, features=None)
    rows = replace(rows, groups=tuple(names[i // 20] for i in range(60)))
    (found,) = view("segments", alone(rows))["sets"]
    assert [g["accuracy"] for g in found["groups"]] == [1.0, 0.75, 0.0]
    assert [g["samples"] for g in found["groups"]] == [20, 20, 20]
    assert (found["worst"], found["best"], found["gap"]) == ("c", "a", 1.0)
    assert found["groups"][1]["f1"] == pytest.approx((2 * 15 / 35) / 2, abs=SIX_DIGITS)
    assert found["groups"][2]["log_loss"] == pytest.approx(4 + math.log1p(math.exp(-4)))
    # Class 0 is in a (20) and b (15, too few), class 1 in b (5) and c (20): no class in two of 20.
    assert found["recall_gap"] is None
    assert found["p_value"] < 0.001
    half = replace(rows, groups=tuple("ab"[i % 2] for i in range(60)))
    assert view("segments", alone(half))["sets"][0]["p_value"] > 0.5


def test_recall_gap_between_groups() -> None:
    label = torch.tensor([0, 1] * 40)
    predicted = label.clone()
    predicted[:40:2] = 1  # every class-0 sample of the first group
    rows = run_rows.make_set(samples=80, classes=2, logits=torch.eye(2)[predicted] * 3, label=label)
    rows = replace(rows, groups=("first",) * 40 + ("second",) * 40)
    assert view("segments", alone(rows))["sets"][0]["recall_gap"] == 1.0


def test_statistics() -> None:
    from scipy.stats import binomtest, fisher_exact

    for count, samples in ((0, 7), (62, 500), (500, 500), (1, 2)):
        expected = binomtest(count, samples).proportion_ci(method="wilson")
        assert wilson(count, samples) == pytest.approx((expected.low, expected.high))
    assert wilson(0, 0) is None
    for right, sizes in (((90, 50), (100, 100)), ((3, 9), (10, 10)), ((1, 1), (40, 20))):
        table = [[k, n - k] for k, n in zip(right, sizes, strict=True)]
        assert differ_by_chance(right, sizes) == pytest.approx(fisher_exact(table).pvalue, abs=0.02)
    assert differ_by_chance([100, 0], [100, 100]) == 1e-4  # of 9999 draws none: never quite 0
    assert differ_by_chance([3], [5]) is None
    assert differ_by_chance([3, 0], [5, 0]) is None
    assert differ_by_chance([5, 5], [5, 5]) == 1.0
    assert auroc_interval(0.8, 0, 5) is None
    assert auroc_interval(1.0, 5, 0) is None
    low, high = auroc_interval(0.8, 50, 50) or (0, 0)
    assert (round(low, 3), round(high, 3)) == (0.697, 0.871)


def test_intervals_in_words_are_points_only_where_they_are() -> None:
    assert percents(wilson(100_000, 100_000)) == ">99.9-100.0 %"
    assert percents(wilson(0, 100_000)) == "0.0-<0.1 %"
    assert percents((0.098, 0.156)) == "9.8-15.6 %"


@pytest.mark.parametrize("samples", [1, 2, 16, 500])
def test_no_interval_is_a_point_at_the_ends(samples: int) -> None:
    """All right, or all told apart, of finitely many samples is no certainty."""
    for low, high in (wilson(samples, samples), auroc_interval(1.0, samples, samples)):  # type: ignore[misc]
        assert high == 1.0
        assert low < 1 - 0.5 / samples
    for low, high in (wilson(0, samples), auroc_interval(0.0, samples, samples)):  # type: ignore[misc]
        assert low == 0.0
        assert high > 0.5 / samples


@pytest.mark.parametrize("distance", [0.0, 1.5, 3.5])
def test_auroc_intervals_hold_the_truth_as_often_as_they_say(distance: float) -> None:
    generator = np.random.default_rng(0)
    truth = float(norm.cdf(distance / math.sqrt(2)))
    held = 0
    for _ in range(400):
        ours, theirs = generator.normal(size=16), generator.normal(distance, 1, 16)
        low, high = auroc_interval(float((theirs[:, None] > ours).mean()), 16, 16) or (0, 0)
        held += low <= truth <= high
    assert held >= 0.92 * 400


def test_thin_keeps_the_ends() -> None:
    assert thin(range(5), 5) == [0, 1, 2, 3, 4]
    assert thin(range(1000), 3)[::2] == [0, 999]
    assert thin(range(1000), 101)[:2] == [0, 10]
