"""Whether the model's confidence can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brittle.report.blocks import Panel, Panels, Part, Section, Table
from brittle.report.figures.bars import reliability_diagram
from brittle.report.pictures import Pixels
from brittle.report.text import count, number, percent

Json = Mapping[str, Any]
_SHOWN = 6


def section(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Reliability diagrams of every set: clean, under noise, under attack."""
    sets = numbers["sets"]
    attacks = tuple(summary["settings"].get("attacks", ()))
    conditions = [(each, condition) for each in sets for condition in each["conditions"]]
    conditions.sort(key=lambda pair: (pair[0] is not sets[0], *reading_order(pair[1], attacks)))
    panels = [diagram(condition, _name(each, condition, numbers)) for each, condition in conditions]
    parts: list[Part] = [Panels(panels[:_SHOWN], small=True, more=panels[_SHOWN:]), _measures(numbers)]
    lead = (
        "Of the samples that the model is 80 % sure of, 80 % should be right. Bars below the diagonal mean "
        "a model that is surer than it should be. ECE is the mean gap over all samples, MCE the largest."
    )
    return Section("calibration", "Calibration", lead, parts)


def diagram(condition: Json, name: str | None = None) -> Panel:
    """One reliability diagram with its bins."""
    rows = [
        (
            f"{percent(part['low'])} to {percent(part['high'])}",
            count(part["samples"]),
            percent(part.get("confidence")),
            percent(part.get("accuracy")),
        )
        for part in condition["bins"]
    ]
    table = Table(("confidence", "samples", "mean confidence", "accuracy"), rows)
    note = f"ECE {percent(condition.get('ece'))}, {count(condition['samples'])} samples"
    return Panel(name or condition["name"], reliability_diagram(condition), table, note)


def reading_order(condition: Json, attacks: tuple[str, ...]) -> tuple[int, float]:
    """Clean first, then under attack, then under noise, the worst calibrated first."""
    if condition["name"] == "clean":
        return 0, 0.0
    return (1, 0.0) if condition["name"].startswith(attacks) else (2, -(condition.get("ece") or 0.0))


def _name(each: Json, condition: Json, numbers: Json) -> str:
    """The condition; of any set but the first, which is the main one, with the set."""
    main = each is numbers["sets"][0]
    return condition["name"] if main else f"{each['set']}, {condition['name']}"


def _measures(numbers: Json) -> Table:
    shares = ("accuracy", "confidence", "ece", "mce", "over_confidence")
    rows = [
        (
            _name(each, condition, numbers),
            count(condition["samples"]),
            *(percent(condition.get(key)) for key in shares),
            number(condition.get("brier")),
        )
        for each in numbers["sets"]
        for condition in each["conditions"]
    ]
    columns = (
        "condition",
        "samples",
        "accuracy",
        "mean confidence",
        "ECE",
        "MCE",
        "over-confidence",
        "Brier score",
    )
    return Table(columns, rows, "Calibration by condition", shown=12)
