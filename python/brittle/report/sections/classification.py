"""Which classes are told apart, and which are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brittle.report.blocks import Panel, Panels, Part, Row, Section, Table
from brittle.report.figures.curves import precision_recall
from brittle.report.figures.maps import MOST_CLASSES, confusion_map
from brittle.report.pictures import Pixels
from brittle.report.text import count, interval, number, percent

Json = Mapping[str, Any]
_WORST_CLASSES = 20
_CONFUSED_PAIRS = 20
_DRAWN_WORST = 4


def section(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Measures of each set, its confusion matrix, precision-recall curves and classes."""
    sets = numbers["sets"]
    classes = {each["name"]: each["classes"] for each in summary["sets"]}
    parts: list[Part] = [_overview(sets)]
    for each in sets:
        parts += _of_set(each, classes[each["set"]], each["set"] if len(sets) > 1 else "")
    lead = (
        "How often the model is right on unaltered samples. Macro averages give every class the same weight, "
        "however rare it is."
    )
    return Section("classification", "Classification", lead, parts)


def _overview(sets: Sequence[Json]) -> Table:
    measures: dict[str, tuple[str, Callable[[Any], str]]] = {
        "samples": ("samples", count),
        "accuracy": ("accuracy", percent),
        "interval": ("95 % interval", interval),
        "balanced_accuracy": ("balanced accuracy", percent),
        "precision": ("precision (macro)", percent),
        "recall": ("recall (macro)", percent),
        "f1": ("F1 (macro)", percent),
        "average_precision": ("average precision (macro)", percent),
        "log_loss": ("log-loss", number),
        "hamming": ("Hamming distance", number),
    }
    rows = [(name, *(show(each.get(key)) for each in sets)) for key, (name, show) in measures.items()]
    return Table(("measure", *(each["set"] for each in sets)), rows)


def _of_set(each: Json, classes: Sequence[str], heading: str) -> list[Part]:
    by_f1 = sorted(each["per_class"], key=lambda row: _rank(row.get("f1")))
    panels = []
    if len(classes) <= MOST_CLASSES:
        figure = confusion_map(classes, each["confusion"])
        note = "Counts; a darker cell is a larger share of its row. Errors are orange."
        panels.append(Panel("Confusion matrix", figure, _confusion_table(classes, each["confusion"]), note))
    if each.get("curves"):
        worst = [
            row["class"] for row in sorted(each["per_class"], key=lambda r: _rank(r["average_precision"]))
        ]
        curves = _curves_of(each["curves"], worst)
        figure = precision_recall(curves, worst[:_DRAWN_WORST])
        note = "In colour, the classes of lowest average precision; the others are grey."
        numbers = _curve_table(curves[:_WORST_CLASSES])
        panels.append(Panel("Precision and recall", figure, numbers, note))
    confused = _confused_pairs(classes, each["confusion"])
    tables = [_class_table(by_f1), *([confused] if confused.rows else [])]
    return [Panels(panels, heading), Row(tables)]


def _rank(value: float | None) -> float:
    return 2.0 if value is None else value


def _curves_of(curves: Sequence[Json], worst: Sequence[str]) -> list[Json]:
    """The curves, worst class first; of very many, those of the worst."""
    place = {name: rank for rank, name in enumerate(worst)}
    return sorted(curves, key=lambda curve: place.get(curve["class"], len(place)))[:MOST_CLASSES]


def _curve_table(curves: Sequence[Json]) -> Table:
    rows = [
        (curve["class"], percent(recall), percent(precision))
        for curve in curves
        for recall, precision in zip(curve["recall"], curve["precision"], strict=True)
    ]
    return Table(("class", "recall", "precision"), rows)


def _confusion_table(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    rows = [(name, *map(count, row)) for name, row in zip(classes, confusion, strict=True)]
    return Table(("true class", *classes), rows, "Samples; predictions in columns")


def _confused_pairs(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    wrong = [
        (samples, sum(row), i, j)
        for i, row in enumerate(confusion)
        for j, samples in enumerate(row)
        if i != j and samples
    ]
    wrong.sort(key=lambda pair: (-pair[0], pair[2], pair[3]))
    rows = [
        (classes[i], classes[j], count(samples), percent(samples / of))
        for samples, of, i, j in wrong[:_CONFUSED_PAIRS]
    ]
    columns = ("true class", "predicted as", "samples", "share of the class")
    shown = min(len(classes), _WORST_CLASSES)  # as long as the table of classes beside it
    return Table(columns, rows, "Most confused pairs of classes", words=frozenset({1}), shown=shown)


def _class_table(by_f1: Sequence[Json]) -> Table:
    rows = [
        (
            row["class"],
            count(row["support"]),
            *(percent(row.get(key)) for key in ("precision", "recall", "f1", "average_precision")),
        )
        for row in by_f1
    ]
    columns = ("class", "support", "precision", "recall", "F1", "AP")
    return Table(columns, rows, "Classes, lowest F1 first", shown=_WORST_CLASSES)
