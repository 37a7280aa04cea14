"""Parts of the data against each other: segments, sets, and the same set under natural shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brittle.report.blocks import Panel, Panels, Part, Section, Table
from brittle.report.figures.bars import bars_with_intervals
from brittle.report.figures.curves import shift_curves
from brittle.report.pictures import Pixels
from brittle.report.text import DASH, count, interval, number, percent

Json = Mapping[str, Any]
_DRAWN_GROUPS = 15


def segments(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Each set's segments, worst first, and the gap between the worst and the best."""
    sets = numbers["sets"]
    panels = [_segments_of(each, f", {each['set']}" if len(sets) > 1 else "") for each in sets]
    rows = [
        ("worst segment", *(each.get("worst") or DASH for each in sets)),
        ("best segment", *(each.get("best") or DASH for each in sets)),
        ("accuracy gap", *(percent(each.get("gap")) for each in sets)),
        ("recall gap", *(percent(each.get("recall_gap")) for each in sets)),
        ("p-value", *(number(each.get("p_value")) for each in sets)),
    ]
    table = Table(("measure", *(each["set"] for each in sets)), rows, "Gaps between segments")
    lead = (
        "The same model on different parts of the data. A small p-value says that chance alone hardly "
        "makes such a difference between segments."
    )
    return Section("segments", "Segments and fairness", lead, [Panels(panels, table=table)])


def _segments_of(each: Json, suffix: str) -> Panel:
    groups = sorted(each["groups"], key=lambda group: (_known(group["accuracy"]), group["group"]))
    rows = [
        (
            group["group"],
            count(group["samples"]),
            percent(group["accuracy"]),
            interval(group.get("interval")),
            number(group.get("log_loss")),
            percent(group.get("f1")),
        )
        for group in groups
    ]
    table = Table(("segment", "samples", "accuracy", "95 % interval", "log-loss", "F1"), rows)
    note = f"The {_DRAWN_GROUPS} worst of {len(groups)} segments." if len(groups) > _DRAWN_GROUPS else ""
    figure = bars_with_intervals(groups[:_DRAWN_GROUPS], "group", each.get("worst"))
    return Panel(f"Accuracy by segment{suffix}", figure, table, note)


def data_sets(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Several labelled sets side by side."""
    rows = numbers["rows"]
    accuracies = [
        (row["set"], count(row["samples"]), percent(row["accuracy"]), interval(row.get("interval")))
        for row in rows
    ]
    shown = Table(("set", "samples", "accuracy", "95 % interval"), accuracies)
    shares = {"precision": "precision", "recall": "recall", "f1": "F1", "ece": "ECE"}
    shares["confidence"] = "mean confidence"
    measures = [(name, *(percent(row.get(key)) for row in rows)) for key, name in shares.items()]
    measures.append(("log-loss", *(number(row.get("log_loss")) for row in rows)))
    table = Table(("measure", *(row["set"] for row in rows)), measures, "Other measures")
    panel = Panel("Accuracy by data set", bars_with_intervals(rows, "set"), shown)
    lead = "The same model on every labelled set: what it learned, and how far that carries."
    return Section("sets", "Data sets side by side", lead, [Panels([panel], table=table)])


def shift(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Accuracy and calibration error over the severity of each corruption."""
    clean = numbers["clean"]
    panels = [
        Panel(_kind(kind), shift_curves(clean, kind), _levels(clean, kind)) for kind in numbers["kinds"]
    ]
    lead = f"Noise and blur as they come by nature, on {numbers['set']}. Severity 0 is the unaltered sample."
    parts: list[Part] = [Panels(panels, small=True, table=_accuracies(numbers["kinds"]))]
    return Section("shift", "Natural shift", lead, parts)


def _accuracies(kinds: Sequence[Json]) -> Table:
    severities = sorted({level["severity"] for kind in kinds for level in kind["levels"]})
    rows = []
    for kind in kinds:
        found = {level["severity"]: level["accuracy"] for level in kind["levels"]}
        rows.append(
            (kind["kind"].replace("_", " "), *(percent(found.get(severity)) for severity in severities))
        )
    return Table(("corruption", *map(str, severities)), rows, "Accuracy by severity")


def _kind(kind: Json) -> str:
    name: str = kind["kind"]
    return "salt and pepper" if name == "salt_and_pepper" else name


def _levels(clean: Json, kind: Json) -> Table:
    def cells(row: Json) -> tuple[str, ...]:
        shares = (percent(row.get(key)) for key in ("accuracy", "ece", "confidence"))
        return (*shares, number(row.get("log_loss")))

    rows = [("0 (clean)", DASH, *cells(clean))]
    rows += [(count(level["severity"]), number(level["scale"]), *cells(level)) for level in kind["levels"]]
    return Table(("severity", "scale", "accuracy", "ECE", "mean confidence", "log-loss"), rows)


def _known(value: float | None) -> float:
    return 2.0 if value is None else value
