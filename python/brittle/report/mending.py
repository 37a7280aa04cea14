"""What mending a model did, as a page: what was tried, what came of it, the model before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brittle.report.blocks import Card, Table
from brittle.report.compare import difference
from brittle.report.diagnosis import KINDS, grid, named
from brittle.report.render import render
from brittle.report.text import count, epsilon, missing, number, percent

Json = Mapping[str, Any]
_SHOWN = 6


def mending_page(
    summary: Json,
    title: str,
    pages: Mapping[str, str] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """The whole mending as one page that opens offline and loads nothing.

    Args:
        summary: what :meth:`brittle.repair.Mending.summary` gives.
        title: of the model.
        pages: further pages to link to, by their place beside this one: what they are.
        provenance: what it takes to get the same numbers again.

    Returns:
        HTML, complete in itself; the same arguments give the same bytes.

    Example:
        >>> found = {"layers": ["fc"], "described": [""], "measures": {}, "findings": [], "notes": []}
        >>> found |= {"samples": {}, "accuracy": {}}
        >>> score = {"accuracy": 0.9, "log_loss": 0.3, "robust_accuracy": None}
        >>> summary = {"before": found, "after": found, "steps": [], "notes": [], "eps": 0.1}
        >>> summary |= {"scores": {"before": score, "after": score}, "judged_on": "test"}
        >>> "No flaws found: there is nothing to mend." in mending_page(summary, "A network")
        True
    """
    steps = summary["steps"]
    kept = [step for step in steps if step["outcome"] == "kept"]
    return render(
        "mending.html.jinja",
        title=title,
        headline=_headline(steps),
        held=bool(kept) or not steps,
        cards=_cards(summary),
        steps=[_step(step) for step in steps],
        numbers=_numbers(summary),
        notes=summary["notes"],
        kinds=KINDS,
        sides=[(when, grid(summary[when])) for when in ("before", "after")],
        pages=pages or {},
        provenance=provenance or {},
    )


def _headline(steps: Sequence[Json]) -> str:
    if not steps:
        return "No flaws found: there is nothing to mend."
    counts = {
        outcome: sum(step["outcome"] == outcome for step in steps)
        for outcome in ("kept", "rolled back", "not needed")
    }
    if not counts["kept"]:
        return "No repair helped: the model is as it was."
    kept = counts.pop("kept")
    said = [
        f"{kept} repair{'s' * (kept != 1)} kept",
        *(f"{n} {outcome}" for outcome, n in counts.items() if n),
    ]
    return f"{', '.join(said)}."


def _step(step: Json) -> dict[str, Any]:
    suggestion = step["suggestion"]
    found = [
        f"{each['severity']} {each['kind']} in {named(each['layer'])}" for each in suggestion["findings"]
    ]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return {
        "outcome": step["outcome"],
        "title": suggestion["title"],
        "what": suggestion["what"],
        "found": f"For {', '.join(found[:_SHOWN])}{more}. " if found else "",
        "why": suggestion["why"],
        "reason": step["reason"],
    }


def _measures(summary: Json) -> list[tuple[str, float | None, float | None, bool, bool]]:
    """Name, before, after, whether more is better, whether it is a share."""
    on, scores = summary["judged_on"], summary["scores"]
    named_measures = {
        "accuracy": (f"{on} accuracy", True, True),
        "log_loss": (f"{on} log-loss", False, False),
        "robust_accuracy": (f"{on} accuracy under PGD, Linf {epsilon(summary['eps'])}", True, True),
    }
    rows = [
        (name, scores["before"][key], scores["after"][key], higher, share)
        for key, (name, higher, share) in named_measures.items()
    ]
    for severity in ("severe", "mild"):
        counts = [
            float(sum(each["severity"] == severity for each in summary[when]["findings"]))
            for when in ("before", "after")
        ]
        rows.append((f"{severity} flaws", counts[0], counts[1], False, False))
    return rows


def _numbers(summary: Json) -> Table:
    rows, worse = [], set()
    for place, (name, before, after, higher, share) in enumerate(_measures(summary)):
        word, gap = "", ""
        if not (before is None or after is None or missing(before) or missing(after)):
            change = after - before
            gap = difference(change)
            word = "" if change == 0 else "better" if (change > 0) == higher else "worse"
        if word == "worse":
            worse.add(place)
        shown = percent if share else number
        if name.endswith("flaws"):
            shown, gap = count, gap.removesuffix(".000")
        rows.append((name, shown(before), shown(after), gap, word))
    columns = ("measure", "before", "after", "difference", "after is")
    return Table(columns, rows, words=frozenset({4}), marked=frozenset(worse))


def _cards(summary: Json) -> list[Card]:
    cards = []
    for name, before, after, _, share in _measures(summary):
        if share:
            cards.append(Card(percent(after), name, f"{percent(before)} before"))
    flaws = [
        sum(each["severity"] != "none" for each in summary[when]["findings"]) for when in ("before", "after")
    ]
    return [*cards, Card(str(flaws[1]), "flaws", f"{flaws[0]} before")]
