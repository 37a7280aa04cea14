"""What a run comes to: one rule for the printed verdict, the page and the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle._radius import radius
from brittle.evaluation.curve import NORM_NAMES
from brittle.evaluation.requirements import (
    Requirement,
    check_requirements,
    parse_requirement,
    radius_among,
)
from brittle.evaluation.statistics import percents

__all__ = ["Judged", "Requirement", "Verdict", "check_requirements", "judge", "parse_requirement"]

BROKEN = 0.5  # of the clean accuracy: an attack that surely takes more than half of it breaks the model
ATTACKS = {
    "fgsm": "a single step",
    "pgd": "PGD",
    "minimal": "the search for the nearest point",
    "random": "random search",
}


@dataclass(frozen=True)
class Judged:
    """A requirement and what became of it.

    Attributes:
        text: of the requirement.
        got: the number; None where it was not measured.
        held: whether it keeps the bound.
    """

    text: str
    got: float | None
    held: bool


@dataclass(frozen=True)
class Verdict:
    """What a run comes to.

    Attributes:
        held: all requirements do; None where there were none.
        headline: what breaks the model, at what radius, how sure that is.
        sentences: what else to know first.
        requirements: each with its number.
    """

    held: bool | None
    headline: str
    sentences: tuple[str, ...]
    requirements: tuple[Judged, ...]

    def text(self) -> str:
        """The verdict as lines to print."""
        lines = [self.headline, *self.sentences]
        for one in self.requirements:
            got = "not measured" if one.got is None else f"{one.got:.4g}"
            lines.append(f"{'held' if one.held else 'MISSED':<7} {one.text} (got {got})")
        return "\n".join(lines)


def judge(
    views: Mapping[str, Any],
    requirements: Sequence[Requirement] = (),
    *,
    partial: Mapping[str, int] | None = None,
) -> Verdict:
    """The verdict on the numbers of a report.

    Args:
        views: as in ``report.json``.
        requirements: what must hold.
        partial: ``{"used": 100, "of": 500}`` where only some samples were evaluated.

    Returns:
        The verdict.

    Example:
        >>> from brittle.evaluation.verdict import judge, parse_requirement
        >>> one = {"set": "test", "samples": 100, "accuracy": 0.93, "interval": [0.863, 0.966]}
        >>> verdict = judge({"classification": {"sets": [one]}}, [parse_requirement("accuracy=0.95")])
        >>> print(verdict.text())
        Right on 93.0 % of 100 samples as they are (95 % interval 86.3-96.6 %)
        The model was not attacked.
        MISSED  accuracy=0.95 (got 0.93)
    """
    judged = []
    for one in requirements:
        got = measure(views, one)
        judged.append(Judged(one.text, got, one.holds(got)))
    sentences = []
    if partial:
        sentences.append(
            f"Partial: {partial['used']} of {partial['of']} samples were evaluated, so every number is "
            "provisional."
        )
    return Verdict(
        held=all(one.held for one in judged) if judged else None,
        headline=_headline(views),
        sentences=(*sentences, *_sentences(views)),
        requirements=tuple(judged),
    )


def measure(views: Mapping[str, Any], requirement: Requirement) -> float | None:
    """The number that a requirement is about, of the main set; None where it was not measured.

    The AUROC is that of the score that tells best, against the set that is told worst.
    """
    name = requirement.measure
    if name == "robust":
        return _robust(views, requirement)
    if name == "auroc":
        best = [
            max((s["auroc"] for s in one["scores"] if s["auroc"] is not None), default=None)
            for one in views.get("ood", {}).get("against", [])
        ]
        return None if not best or None in best else min(b for b in best if b is not None)
    view = {"worst_group": "segments", "ece": "calibration"}.get(name, "classification")
    of_sets = views.get(view, {}).get("sets", [])
    if not of_sets:
        return None
    main = of_sets[0]
    if name == "worst_group":
        accuracies = [g["accuracy"] for g in main["groups"] if g["accuracy"] is not None]
        return min(accuracies, default=None)
    number: float | None = main["conditions"][0]["ece"] if name == "ece" else main[name]
    return number


def _robust(views: Mapping[str, Any], requirement: Requirement) -> float | None:
    norms = views.get("robustness", {}).get("norms", [])
    for one in norms:
        if requirement.norm in (None, one["norm"]) and requirement.epsilon is not None:
            at = radius_among(requirement.epsilon, one["epsilons"])
            found: float | None = None if at is None else one["robust_accuracy"][at]
            return found
    return None


def _headline(views: Mapping[str, Any]) -> str:
    robustness = views.get("robustness")
    clean = _clean(views)
    if robustness is None:
        return clean or "Neither accuracy nor robustness was asked for: see what was"
    samples, limit = robustness["samples"], BROKEN * robustness["clean_accuracy"]
    for one in robustness["norms"]:
        for at, bounds in enumerate(one["interval"]):
            if at and bounds[1] < limit:
                return f"Breaks at epsilon {_left(one, at, samples)}"
    if not robustness["clean_accuracy"]:
        return f"Nothing to attack: right on none of {samples} samples"
    for one in robustness["norms"]:
        if one["interval"][-1][0] < limit:
            return f"Too few samples to tell: at epsilon {_left(one, -1, samples)}"
    masked = [one["norm"] for one in robustness["norms"] if one["masking"]["signs"]]
    left = _left(robustness["norms"][0], -1, samples)
    if masked:
        norms = ", ".join(NORM_NAMES.get(norm, norm) for norm in masked)
        return f"Signs of gradient masking ({norms}), so robustness is unknown: at epsilon {left}"
    return f"Keeps more than half of its accuracy up to epsilon {left}"


def _left(one: Mapping[str, Any], at: int, samples: int) -> str:
    """``"8/255 (Linf): PGD leaves 12.4 % of 500 samples right (95 % interval 9.8-15.6 %)"``."""
    left, norm = one["robust_accuracy"][at], NORM_NAMES.get(one["norm"], one["norm"])
    alone = [
        curve["attack"]
        for curve in one["curves"]
        if curve["accuracy"][at] is not None and curve["accuracy"][at] <= left
    ]
    # Of attacks that leave as little, PGD is the one that everybody knows.
    best = "pgd" if "pgd" in alone else next(iter(alone), None)
    who = f"{ATTACKS.get(best, best)} leaves" if best is not None else "all attacks together leave"
    return (
        f"{radius(one['epsilons'][at])} ({norm}): {who} {100 * left:.1f} % of {samples} samples right "
        f"(95 % interval {percents(one['interval'][at])})"
    )


def _clean(views: Mapping[str, Any]) -> str | None:
    """How often the model is right without an attack; None where no view says so."""
    robustness, sets = views.get("robustness"), views.get("classification", {}).get("sets", [])
    if sets:
        accuracy, bounds, samples = sets[0]["accuracy"], sets[0]["interval"], sets[0]["samples"]
    elif robustness is not None:
        accuracy, bounds = robustness["clean_accuracy"], robustness["clean_interval"]
        samples = robustness["samples"]
    elif "sets" in views:
        main = views["sets"]["rows"][0]
        accuracy, bounds, samples = main["accuracy"], main["interval"], main["samples"]
    else:
        return None
    return (
        f"Right on {100 * accuracy:.1f} % of {samples} samples as they are (95 % interval {percents(bounds)})"
    )


def _single_steps(views: Mapping[str, Any]) -> bool:
    conditions = [c for one in views.get("calibration", {}).get("sets", []) for c in one["conditions"]]
    return any(condition.get("name", "").split(" ")[0] in ATTACKS for condition in conditions)


def _sentences(views: Mapping[str, Any]) -> list[str]:
    found = []
    clean = _clean(views)
    robustness = views.get("robustness")
    if robustness is None:
        found.append(
            "The model was attacked by single steps alone, for its calibration."
            if _single_steps(views)
            else "The model was not attacked."
        )
    elif clean:
        found.append(f"{clean}.")
    for one in robustness["norms"] if robustness else ():
        half = (one["minimal_epsilon"] or {}).get("median")
        norm = NORM_NAMES.get(one["norm"], one["norm"])
        if half:  # 0 where they are wrong as they are
            found.append(f"Half of the samples are wrong within epsilon {radius(half)} ({norm}).")
        if one["masking"]["signs"]:
            found.append(
                f"There are signs of gradient masking ({norm}), so robustness may be less than it seems."
            )
    for one in views.get("segments", {}).get("sets", [])[:1]:
        low = min(one["groups"], key=lambda g: g["group"] != one["worst"])
        found.append(
            f"Worst group {low['group']}: right on {100 * low['accuracy']:.1f} % of {low['samples']} samples "
            f"(95 % interval {percents(low['interval'])})."
        )
    for one in views.get("calibration", {}).get("sets", [])[:1]:
        first = one["conditions"][0]
        if first["ece"] is not None:
            found.append(
                f"Confidence {100 * first['confidence']:.1f} % on average, expected calibration error "
                f"{first['ece']:.3f}."
            )
    return found
