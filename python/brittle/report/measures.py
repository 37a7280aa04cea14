"""The numbers by which two runs are compared, each with the direction that is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.report.text import DASH, epsilon, missing, norm_name, number, percent

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number with what it takes to judge a change of it.

    Attributes:
        value: None where the run did not measure it.
        show: how it is written.
        more_is_better: the direction.
        interval: its 95 % interval, where it has one.
    """

    value: float | None
    show: Callable[[float | None], str]
    more_is_better: bool = True
    interval: Sequence[float] | None = None


def measures(summary: Json) -> dict[str, Measure]:
    """The key numbers of a run by what they are."""
    views = summary["views"]
    found: dict[str, Measure] = {}
    for each in views.get("classification", {}).get("sets", []):
        of = f", {each['set']}"
        found[f"accuracy{of}"] = Measure(each.get("accuracy"), percent, interval=each.get("interval"))
        found[f"balanced accuracy{of}"] = Measure(each.get("balanced_accuracy"), percent)
        found[f"F1 (macro){of}"] = Measure(each.get("f1"), percent)
        found[f"log-loss{of}"] = Measure(each.get("log_loss"), number, more_is_better=False)
    for norm in views.get("robustness", {}).get("norms", []):
        found |= _robust(norm)
    for each in views.get("segments", {}).get("sets", []):
        worst = [group for group in each["groups"] if group["group"] == each.get("worst")]
        for group in worst:
            share = Measure(group["accuracy"], percent, interval=group.get("interval"))
            found[f"worst segment, {each['set']}"] = share
        found[f"accuracy gap between segments, {each['set']}"] = Measure(each.get("gap"), percent, False)
    for each in views.get("calibration", {}).get("sets", []):
        for condition in each["conditions"]:
            name = f"ECE {condition['name']}, {each['set']}"
            found[name] = Measure(condition.get("ece"), percent, more_is_better=False)
    for against in views.get("ood", {}).get("against", []):
        for score in against["scores"]:
            found[f"AUROC of {score['score']}, {against['set']}"] = Measure(score.get("auroc"), percent)
    return found


def change(before: Measure, after: Measure) -> tuple[str, str]:
    """The difference with an arrow and a sign, and what it means in a word.

    Example:
        >>> change(Measure(0.41, percent), Measure(0.62, percent))
        ('↑ +21.0 points', 'better')
        >>> change(Measure(0.2, number, more_is_better=False), Measure(0.25, number, more_is_better=False))
        ('↑ +0.050', 'worse')
        >>> change(Measure(None, percent), Measure(0.5, percent))
        ('—', '—')
    """
    if before.value is None or after.value is None or missing(before.value) or missing(after.value):
        return DASH, DASH
    difference = after.value - before.value
    if before.show is percent:
        amount, unit = f"{abs(100 * difference):.1f}", " points"
    else:
        amount, unit = before.show(abs(difference)), ""
    if difference == 0:
        return f"0{unit}", "same"
    arrow, sign = ("↑", "+") if difference > 0 else ("↓", "\N{MINUS SIGN}")
    word = "better" if (difference > 0) == before.more_is_better else "worse"
    if before.interval and after.interval and _overlap(before.interval, after.interval):
        word += ", intervals overlap"
    return f"{arrow} {sign}{amount}{unit}", word


def _robust(norm: Json) -> dict[str, Measure]:
    name = norm_name(norm["norm"])
    found = {}
    for eps, share, ends in zip(norm["epsilons"], norm["robust_accuracy"], norm["interval"], strict=True):
        if eps > 0:
            label = f"robust accuracy, {name} {epsilon(eps)}"
            found[label] = Measure(share, percent, interval=ends)
    smallest = norm.get("minimal_epsilon") or {}
    found[f"median epsilon, {name}"] = Measure(smallest.get("median"), epsilon)
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
