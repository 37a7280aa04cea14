"""What ``report.json`` holds, as far as :func:`brittle.evaluation.compare` and its page read it."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import NotRequired, TypedDict

Bounds = list[float | None] | None


class OfSet(TypedDict):
    """Accuracy and its like of one data set."""

    set: str
    accuracy: NotRequired[float | None]
    balanced_accuracy: NotRequired[float | None]
    f1: NotRequired[float | None]
    log_loss: NotRequired[float | None]
    interval: NotRequired[Bounds]


class Classification(TypedDict):
    """The view of that name."""

    sets: list[OfSet]


class Masking(TypedDict):
    """Signs of gradient masking."""

    signs: list[str]


class Minimal(TypedDict):
    """How far the nearest adversarial points are."""

    median: float | None


class Norm(TypedDict):
    """Robustness in one norm."""

    norm: str
    epsilons: list[float]
    robust_accuracy: list[float]
    interval: list[Bounds]
    minimal_epsilon: Minimal | None
    masking: Masking


class Robustness(TypedDict):
    """The view of that name."""

    norms: list[Norm]


class Group(TypedDict):
    """A segment."""

    group: str
    accuracy: float | None
    interval: Bounds


class Segments(TypedDict):
    """The segments of one data set."""

    set: str
    groups: list[Group]
    worst: str
    gap: float | None


class SegmentsView(TypedDict):
    """The view of that name."""

    sets: list[Segments]


class Bin(TypedDict):
    """A bin of a reliability diagram."""

    low: float
    high: float
    samples: int
    accuracy: float | None
    confidence: float | None


class CalibrationCondition(TypedDict):
    """Calibration under one condition."""

    name: str
    ece: float | None
    accuracy: NotRequired[float | None]
    confidence: NotRequired[float | None]
    mce: NotRequired[float | None]
    samples: NotRequired[int]
    bins: NotRequired[list[Bin]]


class Calibration(TypedDict):
    """Calibration on one data set."""

    set: str
    conditions: list[CalibrationCondition]


class CalibrationView(TypedDict):
    """The view of that name."""

    sets: list[Calibration]


class Score(TypedDict):
    """How well one score tells two sets apart."""

    score: str
    auroc: float | None
    interval: NotRequired[Bounds]


class Against(TypedDict):
    """All scores against one set."""

    set: str
    labelled: NotRequired[bool]
    scores: list[Score]


class OodView(TypedDict):
    """The view of that name."""

    against: list[Against]


class Level(TypedDict):
    """One severity of a shift."""

    severity: int
    accuracy: float | None
    interval: NotRequired[Bounds]


class Kind(TypedDict):
    """A kind of shift."""

    kind: str
    levels: list[Level]


class ShiftView(TypedDict):
    """The view of that name."""

    kinds: list[Kind]


class Views(TypedDict):
    """The views that are compared."""

    classification: NotRequired[Classification]
    robustness: NotRequired[Robustness]
    segments: NotRequired[SegmentsView]
    calibration: NotRequired[CalibrationView]
    ood: NotRequired[OodView]
    shift: NotRequired[ShiftView]


class FindingJson(TypedDict):
    """A finding."""

    severity: NotRequired[str]
    view: NotRequired[str]
    title: str
    evidence: NotRequired[str]
    advice: NotRequired[str]


class RequirementJson(TypedDict):
    """A requirement and what became of it."""

    text: str
    got: float | None
    held: bool


class VerdictJson(TypedDict):
    """The verdict."""

    held: bool | None
    headline: str
    sentences: list[str]
    requirements: list[RequirementJson]


class DataSet(TypedDict):
    """A data set."""

    name: str
    samples: int
    classes: list[str]
    labelled: NotRequired[bool]


class Partial(TypedDict):
    """How many samples of how many."""

    used: int
    of: int


class Asked(TypedDict):
    """The settings that are read one by one."""

    attacks: NotRequired[list[str]]
    seed: NotRequired[int]
    epsilons: NotRequired[dict[str, list[float]]]


class ReportJson(TypedDict):
    """A report."""

    format: int
    title: str
    views: Views
    main: NotRequired[str]
    verdict: NotRequired[VerdictJson]
    findings: NotRequired[list[FindingJson]]
    settings: NotRequired[Asked]
    provenance: NotRequired[dict[str, str]]
    sets: NotRequired[list[DataSet]]
    partial: NotRequired[Partial | None]


def check_lengths(report: ReportJson) -> None:
    """Raise ValueError, a phrase, where lists that go together differ in length, or a name is of nothing."""
    for norm in report["views"].get("robustness", Robustness(norms=[]))["norms"]:
        count = len(norm["epsilons"])
        lengths = {len(norm["robust_accuracy"]), len(norm["interval"])}
        if lengths != {count}:
            raise ValueError(f"robustness in {norm['norm']} must have {count} numbers in each list")
        for bounds in norm["interval"]:
            _check_interval(bounds)
    for of_set in report["views"].get("classification", Classification(sets=[]))["sets"]:
        _check_interval(of_set.get("interval"))
    for one in report["views"].get("segments", SegmentsView(sets=[]))["sets"]:
        if one["worst"] not in [group["group"] for group in one["groups"]]:
            raise ValueError(
                f"the worst segment of {one['set']} must be one of its segments; got {one['worst']!r:.40}"
            )
        for group in one["groups"]:
            _check_interval(group["interval"])
    for other in report["views"].get("ood", OodView(against=[]))["against"]:
        for score in other["scores"]:
            _check_interval(score.get("interval"))
    for kind in report["views"].get("shift", ShiftView(kinds=[]))["kinds"]:
        for level in kind["levels"]:
            _check_interval(level.get("interval"))


def _check_interval(bounds: Sequence[float | None] | None) -> None:
    if bounds is not None and len(bounds) != 2:
        raise ValueError(f"an interval must have two bounds; got {len(bounds)}")
