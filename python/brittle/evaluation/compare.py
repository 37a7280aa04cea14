"""Two runs side by side, such as before and after a fix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
_NOTHING = 5e-5  # what the four digits of the table do not show


@dataclass(frozen=True)
class Measure:
    """One number of a run.

    Attributes:
        name: which says data set, norm and radius.
        value: None where it is undefined.
        higher: is better; None where neither is.
        interval: 95 %, where there is one.
    """

    name: str
    value: float | None
    higher: bool | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """The numbers of two runs, aligned.

    Attributes:
        summary: ``{"a": title, "b": title, "same_data": bool or None, "notes": [..], "rows": [{"measure",
            "a", "b", "difference", "change", "sure"}], "findings": {"gone": [..], "new": [..],
            "kept": [..]}}``. ``"change"`` is ``"better"``, ``"worse"``, ``"same"`` or None of b against a;
            ``"sure"`` says that the 95 % intervals lie apart. A number that one run lacks is None.
        a, b: the two ``report.json``.
    """

    summary: dict[str, Any]
    a: dict[str, Any]
    b: dict[str, Any]

    def table(self) -> str:
        """The numbers as text, a line for each; ``*`` where the 95 % intervals lie apart."""
        rows = self.summary["rows"]
        width = max([len(row["measure"]) for row in rows] + [7])
        lines = [f"a: {self.summary['a']}", f"b: {self.summary['b']}", *self.summary["notes"], ""]
        lines.append(f"{'measure':<{width}} {'a':>9} {'b':>9} {'b - a':>9}")
        for row in rows:
            a, b, difference = (_digits(row[key]) for key in ("a", "b", "difference"))
            word = row["change"] if row["change"] in ("better", "worse") else ""
            star = " *" if row["sure"] else ""
            lines.append(f"{row['measure']:<{width}} {a:>9} {b:>9} {difference:>9}  {word}{star}".rstrip())
        if any(row["sure"] for row in rows):
            lines.append("* the 95 % intervals lie apart: more than chance")
        return "\n".join(lines)


def compare(run_a: str | Path | Mapping[str, Any], run_b: str | Path | Mapping[str, Any]) -> Comparison:
    """The numbers of two evaluations side by side: accuracy, calibration, robustness, segments, shift.

    Args:
        run_a, run_b: folders of runs, or the contents of their ``report.json``.

    Returns:
        The numbers that at least one of them has. Notes say where the two are of different data or settings,
        or of a part of the data only.

    Raises:
        ValueError: a folder holds no report, or one of another format.

    Example:
        >>> from brittle.evaluation.compare import compare
        >>> def report(accuracy):
        ...     one = {"set": "test", "accuracy": accuracy, "interval": [accuracy - 0.02, accuracy + 0.02]}
        ...     return {"format": 1, "title": "a model", "views": {"classification": {"sets": [one]}}}
        >>> row = compare(report(0.9), report(0.95)).summary["rows"][0]
        >>> row["measure"], row["change"], row["sure"]
        ('accuracy, test', 'better', True)
    """
    a, b = _load("run_a", run_a), _load("run_b", run_b)
    ours, theirs = ({m.name: m for m in _measures(report["views"])} for report in (a, b))
    # In the order of a; what b alone has comes last.
    names = dict.fromkeys([*ours, *theirs])
    notes, same_data = _notes(a, b)
    titles = [{finding["title"] for finding in report.get("findings", [])} for report in (a, b)]
    summary = {
        "a": a["title"],
        "b": b["title"],
        "same_data": same_data,
        "notes": notes,
        "rows": [_row(name, ours.get(name), theirs.get(name)) for name in names],
        "findings": {
            "gone": sorted(titles[0] - titles[1]),
            "new": sorted(titles[1] - titles[0]),
            "kept": sorted(titles[0] & titles[1]),
        },
    }
    return Comparison(summary, a, b)


def _load(argument: str, run: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    report: Any = run
    if not isinstance(run, Mapping):
        path = Path(run)
        path = path / "report.json" if path.is_dir() else path
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(
                f"compare: {argument} must be a folder with the report.json of a finished run; got {run}"
            ) from None
    if not isinstance(report, Mapping) or report.get("format") != FORMAT or "views" not in report:
        raise ValueError(
            f"compare: {argument} must be a report of format {FORMAT}; got another in {run!s:.80}"
        )
    return dict(report)


def _measures(views: Mapping[str, Any]) -> Iterator[Measure]:
    """Every number to compare, the most quoted first."""
    for one in views.get("classification", {}).get("sets", []):
        for name, higher in (
            ("accuracy", True),
            ("balanced_accuracy", True),
            ("f1", True),
            ("log_loss", False),
        ):
            if name in one:
                bounds = one.get("interval") if name == "accuracy" else None
                yield Measure(f"{name.replace('_', ' ')}, {one['set']}", one[name], higher, _pair(bounds))
    yield from _robust(views.get("robustness"))
    for one in views.get("segments", {}).get("sets", []):
        worst = next(group for group in one["groups"] if group["group"] == one["worst"])
        bounds = _pair(worst["interval"])
        yield Measure(f"worst group, {one['set']}", worst["accuracy"], True, bounds)
        yield Measure(f"gap between groups, {one['set']}", one["gap"], False)
    for one in views.get("calibration", {}).get("sets", []):
        for condition in one["conditions"]:
            yield Measure(f"calibration error, {one['set']}, {condition['name']}", condition["ece"], False)
    for one in views.get("ood", {}).get("against", []):
        for score in one["scores"]:
            # Whether another named set should look different is not for a number to say.
            wanted = None if one.get("labelled") else True
            bounds = _pair(score.get("interval"))
            yield Measure(f"AUROC, {one['set']}, {score['score']}", score["auroc"], wanted, bounds)
    for one in views.get("shift", {}).get("kinds", []):
        level = one["levels"][len(one["levels"]) // 2]
        yield Measure(f"accuracy under {one['kind']} {level['severity']}", level["accuracy"], True)


def _robust(view: Mapping[str, Any] | None) -> Iterator[Measure]:
    for one in view["norms"] if view else ():
        if one.get("masking", {}).get("signs"):
            yield from _at_most(one)
            continue
        for eps, share, bounds in zip(one["epsilons"], one["robust_accuracy"], one["interval"], strict=True):
            if eps:
                yield Measure(f"robust accuracy, {one['norm']} {eps:.4g}", share, True, _pair(bounds))
        if one["minimal_epsilon"]:
            yield Measure(f"median epsilon, {one['norm']}", one["minimal_epsilon"]["median"], True)


def _at_most(one: Mapping[str, Any]) -> Iterator[Measure]:
    """Of a norm with signs of gradient masking, where attacks that fail prove nothing: not to be judged."""
    for eps, share in zip(one["epsilons"], one["robust_accuracy"], strict=True):
        if eps:
            yield Measure(f"robust accuracy, {one['norm']} {eps:.4g}", share, None)
    if one["minimal_epsilon"]:
        yield Measure(f"median epsilon, {one['norm']}", one["minimal_epsilon"]["median"], None)


def _pair(bounds: Any) -> tuple[float, float] | None:
    return None if bounds is None or None in bounds else (bounds[0], bounds[1])


def _row(name: str, a: Measure | None, b: Measure | None) -> dict[str, Any]:
    known = [m for m in (a, b) if m is not None]
    higher = None if any(m.higher is None for m in known) else known[0].higher
    left, right = (None if m is None else m.value for m in (a, b))
    difference = None if left is None or right is None else right - left
    change = None
    if difference is not None and higher is not None:
        change = "better" if (difference > 0) == higher else "worse"
        change = "same" if abs(difference) < _NOTHING else change
    sure = False
    if a is not None and b is not None and a.interval and b.interval:
        sure = a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]
    return {"measure": name, "a": left, "b": right, "difference": difference, "change": change, "sure": sure}


def _notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[str], bool | None]:
    """What stands between the numbers and a fair comparison; and whether the data are the same, if known."""
    notes = []
    prints = [
        {key: value for key, value in report.get("provenance", {}).items() if key.startswith("data")}
        for report in (a, b)
    ]
    sizes = [
        [(one["name"], one["samples"], one["classes"]) for one in report.get("sets", [])] for report in (a, b)
    ]
    same = True if prints[0] else None
    if sizes[0] != sizes[1] or prints[0] != prints[1]:
        same = False
        notes.append("The two runs are of different data: differences may be the data's.")
    for word, report in (("a", a), ("b", b)):
        if report.get("partial"):
            used, of = report["partial"]["used"], report["partial"]["of"]
            notes.append(f"Run {word} is partial: {used} of {of} samples.")
        norms = report["views"].get("robustness", {}).get("norms", [])
        masked = [one["norm"] for one in norms if one.get("masking", {}).get("signs")]
        if masked:
            notes.append(
                f"Run {word} has signs of gradient masking ({', '.join(masked)}): its robust accuracy is one "
                "at most, so no change of it is judged."
            )
    settings = [report.get("settings", {}) for report in (a, b)]
    other = [
        key
        for key in ("norms", "epsilons", "attacks", "steps", "restarts", "precision", "bounds", "seed")
        if settings[0].get(key) != settings[1].get(key)
    ]
    if other:
        notes.append(f"The two runs differ in settings: {', '.join(other)}.")
    return notes, same


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
