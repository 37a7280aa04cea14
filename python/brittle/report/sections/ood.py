"""Whether the model notices samples that are unlike those it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brittle.report.blocks import Panel, Panels, Part, Section, Table
from brittle.report.figures.bars import histograms
from brittle.report.pictures import Pixels
from brittle.report.text import interval, number, percent

Json = Mapping[str, Any]


def section(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Histograms of each score for every other set, and how well it separates them."""
    reference = numbers["reference"]
    parts: list[Part] = []
    for against in numbers["against"]:
        title = f"{reference} against {against['set']}"
        panels = [_panel(score, reference, against["set"]) for score in against["scores"]]
        parts.append(Panels(panels, title, small=True, table=_measures(against)))
    lead = (
        f"Each score should tell samples of another kind from those of {reference}. AUROC is 50 % for one "
        "that tells nothing; FPR95 is the share of one's own samples that are given up where "
        "95 % of the foreign ones are caught."
    )
    return Section("ood", "Out-of-distribution samples", lead, parts)


def _panel(score: Json, inside: str, outside: str) -> Panel:
    bars = score["histogram"]
    edges = bars["edges"]
    rows = [
        (f"{number(low)} to {number(high)}", percent(a), percent(b))
        for low, high, a, b in zip(edges[:-1], edges[1:], bars["inside"], bars["outside"], strict=True)
    ]
    note = f"AUROC {percent(score.get('auroc'))}"
    return Panel(
        score["score"],
        histograms(score, inside, outside),
        Table((score["score"], inside, outside), rows),
        note,
    )


def _measures(against: Json) -> Table:
    rows = [
        (
            score["score"],
            percent(score.get("auroc")),
            interval(score.get("interval")),
            percent(score.get("aupr")),
            percent(score.get("fpr95")),
        )
        for score in against["scores"]
    ]
    return Table(("score", "AUROC", "95 % interval", "AUPR", "FPR95"), rows, "How well each score separates")
