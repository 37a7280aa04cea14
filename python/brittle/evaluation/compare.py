"""Two runs side by side, such as before and after a fix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brittle._files import check_shape, parse_json, read_regular
from brittle._radius import radius
from brittle.evaluation.paired import Contributions, Paired, contributions, paired
from brittle.evaluation.run.store import RunStoreError
from brittle.evaluation.schema import ReportJson, check_lengths

FORMAT = 1
_NOTHING = 5e-5  # what the four digits of the table do not show
_ALPHA = 0.05


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
        summary: ``{"a": title, "b": title, "runs": {"a": {..}, "b": {..}}, "same_data": bool or None,
            "notes": [..], "rows": [{"measure", "a", "b", "difference", "change", "sure", "test", "p"}],
            "findings": {"gone": [..], "new": [..], "kept": [..]}}``. What got worse beyond chance comes
            first, the largest differences foremost. ``"change"`` of b against a is ``"better"`` or
            ``"worse"``, beyond chance; ``"mixed"`` where most samples moved one way and their mean or
            median the other; ``"within chance"``; ``"same"``; ``"not tested"``; or None where neither is
            better. ``"test"`` is ``"paired"`` (the same samples in both, with the p-value after
            Holm's correction) or ``"intervals"`` (95 %, apart or not). A number that one run lacks is None.
        a, b: the two ``report.json``.
    """

    summary: dict[str, Any]
    a: dict[str, Any]
    b: dict[str, Any]

    def table(self) -> str:
        """The numbers as text, a line for each, what got worse beyond chance first."""
        rows = self.summary["rows"]
        width = max([len(row["measure"]) for row in rows] + [7])
        lines = [f"{side}: {_described(self.summary['runs'][side])}" for side in "ab"]
        lines += [*self.summary["notes"], "", f"{'measure':<{width}} {'a':>9} {'b':>9} {'b - a':>9}"]
        for row in rows:
            a, b, difference = (_digits(row[key]) for key in ("a", "b", "difference"))
            word = row["change"] if row["change"] not in (None, "same") else ""
            if row["p"] is not None and row["change"] in ("better", "worse"):
                word += f" (p = {row['p']:.2g})"
            lines.append(f"{row['measure']:<{width}} {a:>9} {b:>9} {difference:>9}  {word}".rstrip())
        if any(row["test"] == "paired" for row in rows):
            lines.append("p: exact sign test on the samples that differ, after Holm's correction")
        if any(row["test"] == "intervals" for row in rows):
            lines.append("without p: beyond chance where the 95 % intervals lie apart")
        return "\n".join(lines)


def compare(run_a: str | Path | Mapping[str, Any], run_b: str | Path | Mapping[str, Any]) -> Comparison:
    """The numbers of two evaluations side by side: accuracy, calibration, robustness, segments, shift.

    Args:
        run_a, run_b: folders of runs, or the contents of their ``report.json``.

    Where both are folders of runs on the same data, numbers are compared sample by sample, which tells
    differences that the two intervals hide.

    Returns:
        The numbers that at least one of them has. Notes say where the two are of different data or settings,
        or of a part of the data only.

    Raises:
        ValueError: a folder holds no report, or one of another format or with other values than a report's;
            or the two have no measure in common.

    Example:
        >>> from brittle.evaluation.compare import compare
        >>> def report(accuracy):
        ...     one = {"set": "test", "accuracy": accuracy, "interval": [accuracy - 0.02, accuracy + 0.02]}
        ...     return {"format": 1, "title": "a model", "views": {"classification": {"sets": [one]}}}
        >>> row = compare(report(0.9), report(0.95)).summary["rows"][0]
        >>> row["measure"], row["change"], row["test"]
        ('accuracy, test', 'better', 'intervals')
    """
    a, b = _load("run_a", run_a), _load("run_b", run_b)
    sides = {"a": (run_a, a), "b": (run_b, b)}
    ours, theirs = ({m.name: m for m in _measures(report["views"])} for report in (a, b))
    if not ours.keys() & theirs.keys():
        raise ValueError(
            f"compare: the two runs must have a measure in common; got {_known(ours)} and {_known(theirs)}"
        )
    notes, same_data = _notes(a, b)
    tests: dict[str, Paired] = {}
    if same_data:
        ones, others = (_samples(side, *of, notes) for side, of in sides.items())
        tests = paired(ones, others)
    # In the order of a; what b alone has comes last.
    names = dict.fromkeys([*ours, *theirs])
    rows = [_row(name, ours.get(name), theirs.get(name), tests.get(name)) for name in names]
    rows.sort(key=_urgency)
    titles = [{finding["title"] for finding in report.get("findings", [])} for report in (a, b)]
    summary = {
        "a": a["title"],
        "b": b["title"],
        "runs": {side: _about(*of) for side, of in sides.items()},
        "same_data": same_data,
        "notes": notes,
        "rows": rows,
        "findings": {
            "gone": sorted(titles[0] - titles[1]),
            "new": sorted(titles[1] - titles[0]),
            "kept": sorted(titles[0] & titles[1]),
        },
    }
    return Comparison(summary, a, b)


def _urgency(row: Mapping[str, Any]) -> tuple[int, float]:
    """What got worse first, then what got better, the largest differences foremost."""
    first = ("worse", "better")
    return (first.index(row["change"]), -abs(row["difference"])) if row["change"] in first else (2, 0.0)


def _known(measures: Mapping[str, Measure]) -> str:
    names = list(measures)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


def _about(run: str | Path | Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, str]:
    """What tells one run from the other."""
    provenance = report.get("provenance", {})
    found = {"title": report["title"]}
    if not isinstance(run, Mapping):
        found["folder"] = str(run)
    return found | {name: provenance[name] for name in ("model", "weights") if name in provenance}


def _described(run: Mapping[str, str]) -> str:
    further = [f"{name} {text}" for name, text in run.items() if name != "title"]
    return run["title"] + (f" ({', '.join(further)})" if further else "")


def _samples(
    side: str, run: str | Path | Mapping[str, Any], report: dict[str, Any], notes: list[str]
) -> Contributions:
    if isinstance(run, Mapping) or not Path(run).is_dir():
        return {}
    try:
        return contributions(Path(run), report)
    except (RunStoreError, ValueError, KeyError) as error:
        notes.append(f"Run {side} cannot be compared sample by sample: {error}")
        return {}


def _load(argument: str, run: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    report: Any = run
    try:
        if isinstance(run, Mapping):
            # What JSON cannot hold is no report either.
            text: str | bytes = json.dumps(run, allow_nan=False)
        else:
            path = Path(run)
            text = read_regular(path / "report.json" if path.is_dir() else path)
        report = parse_json(text, dict[str, Any])
    except (OSError, ValueError, TypeError, RecursionError) as error:
        where = "a report" if isinstance(run, Mapping) else run
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"compare: {argument} must be a folder with the report.json of a finished run; got {where}: "
            f"{reason}"
        ) from None
    if report.get("format") != FORMAT or "views" not in report:
        raise ValueError(
            f"compare: {argument} must be a report of format {FORMAT}; got another in {run!s:.80}"
        )
    try:
        check_lengths(check_shape(report, ReportJson))
    except ValueError as error:
        raise ValueError(f"compare: {argument} must be a report as evaluate writes it; {error}") from None
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
        for level in one["levels"]:
            name = f"accuracy under {one['kind']} {level['severity']}"
            yield Measure(name, level["accuracy"], True, _pair(level.get("interval")))


def _robust(view: Mapping[str, Any] | None) -> Iterator[Measure]:
    for one in view["norms"] if view else ():
        if one.get("masking", {}).get("signs"):
            yield from _at_most(one)
            continue
        for eps, share, bounds in zip(one["epsilons"], one["robust_accuracy"], one["interval"], strict=True):
            if eps:
                yield Measure(f"robust accuracy, {one['norm']} {radius(eps)}", share, True, _pair(bounds))
        if one["minimal_epsilon"]:
            yield Measure(f"median epsilon, {one['norm']}", one["minimal_epsilon"]["median"], True)


def _at_most(one: Mapping[str, Any]) -> Iterator[Measure]:
    """Of a norm with signs of gradient masking, where attacks that fail prove nothing: not to be judged."""
    for eps, share in zip(one["epsilons"], one["robust_accuracy"], strict=True):
        if eps:
            yield Measure(f"robust accuracy, {one['norm']} {radius(eps)}", share, None)
    if one["minimal_epsilon"]:
        yield Measure(f"median epsilon, {one['norm']}", one["minimal_epsilon"]["median"], None)


def _pair(bounds: Any) -> tuple[float, float] | None:
    return None if bounds is None or None in bounds else (bounds[0], bounds[1])


def _row(name: str, a: Measure | None, b: Measure | None, samples: Paired | None) -> dict[str, Any]:
    known = [m for m in (a, b) if m is not None]
    higher = None if any(m.higher is None for m in known) else known[0].higher
    left, right = (None if m is None else m.value for m in (a, b))
    difference = None if left is None or right is None else right - left
    test, sure = None, False
    if difference is not None and samples is not None:
        test, sure = "paired", samples.p < _ALPHA
    elif difference is not None and a is not None and b is not None and a.interval and b.interval:
        test, sure = "intervals", a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]
    change = None
    if difference is not None and higher is not None:
        if test is None:
            change = "not tested"
        elif not sure:
            change = "within chance"
        elif samples is not None and not difference * (samples.rose - samples.fell) > 0:
            change = "mixed"
        else:
            change = "better" if (difference > 0) == higher else "worse"
        change = "same" if abs(difference) < _NOTHING and not sure else change
    row = {"measure": name, "a": left, "b": right, "difference": difference, "change": change}
    return row | {
        "sure": sure and higher is not None,
        "test": test,
        "p": samples.p if test == "paired" and samples else None,
    }


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
    apart = [
        f"{name} ({then} in a, {now} in b)"
        for name, then, now in _differences(_conditions(a), _conditions(b))
    ]
    if apart:
        notes.append(f"The two runs differ in settings: {'; '.join(apart)}.")
    return notes, same


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


# Which views are shown changes no number; model and data are told elsewhere; a command repeats it all.
_NO_CONDITIONS = ("views", "model", "data", "weights", "command")


def _conditions(report: Mapping[str, Any]) -> dict[str, str]:
    """Everything but model and data that the numbers depend on, as text."""
    found = {**report.get("provenance", {}), **report.get("settings", {})}
    return {
        name: _short(value)
        for name, value in found.items()
        if name not in _NO_CONDITIONS and not name.startswith("data ")
    }


def _differences(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    # What a report of before says nothing of is no difference.
    for name in dict.fromkeys([*a, *b]):
        if name in a and name in b and a[name] != b[name]:
            yield name, a[name], b[name]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_short, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
