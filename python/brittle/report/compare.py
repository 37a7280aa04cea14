"""Two evaluations side by side, before and after a fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.report.blocks import Panel, Panels, Part, Section, Table
from brittle.report.evaluation import settings_of
from brittle.report.figures.curves import overlaid_curves
from brittle.report.render import render
from brittle.report.sections.calibration import diagram, reading_order
from brittle.report.text import DASH, epsilon, missing, norm_name, number, percent

Json = Mapping[str, Any]
_CONDITIONS, _NUMBERS = 4, 16


@dataclass(frozen=True)
class FindingGroup:
    """Findings that share their fate from one run to the other."""

    title: str
    note: str
    findings: Sequence[Json]


def compare_page(a: Json, b: Json, comparison: Json) -> str:
    """Two reports side by side: verdicts, key numbers with their differences, curves, findings.

    Args:
        a: what ``report.json`` of the first run holds ("before").
        b: of the second ("after"). Differences are b less a.
        comparison: their numbers as :func:`brittle.evaluation.compare` aligns them: its ``"rows"``, and
            its ``"notes"`` on what stands between the numbers and a fair comparison, and the titles of
            ``"findings"`` gone, new and kept.

    Returns:
        HTML, complete in itself; the same arguments give the same bytes.

    Example:
        >>> verdict = {"held": None, "headline": "Holds.", "sentences": [], "requirements": []}
        >>> a = {"title": "Before", "partial": None, "verdict": verdict, "main": "test"}
        >>> a |= {"findings": [], "settings": {"steps": 40}, "views": {}}
        >>> numbers = {"rows": [], "notes": [], "findings": {"gone": [], "new": [], "kept": []}}
        >>> page = compare_page(a, a | {"title": "After"}, numbers)
        >>> "Before and After" in page, "Settings that differ" in page
        (True, False)
    """
    differing = _differing_settings(a, b)
    sections = [_numbers(comparison["rows"]), _curves(a, b), _diagrams(a, b)]
    return render(
        "compare.html.jinja",
        title=f"{a['title']} and {b['title']}",
        runs=[
            (name, run, _told_apart(comparison.get("runs", {}).get(name.lower(), {})))
            for name, run in (("A", a), ("B", b))
        ],
        sections=[each for each in sections if each is not None],
        notes=comparison["notes"],
        groups=_finding_groups(a["findings"], b["findings"], comparison["findings"]),
        differing=Table(("setting", "A", "B"), differing, words=frozenset({1, 2})) if differing else None,
    )


def _told_apart(run: Json) -> str:
    """Where a run is and of what weights: two may have one title."""
    return ", ".join(f"{name} {text}" for name, text in run.items() if name != "title")


def difference(value: float | None) -> str:
    """A difference with an arrow and a sign.

    Example:
        >>> difference(0.0213), difference(0.0), difference(None)
        ('↑ +0.021', '0', '—')
    """
    if value is None or missing(value) or value == 0:
        return number(value)
    return f"↑ +{number(value)}" if value > 0 else f"↓ {number(value)}"


def _numbers(rows: Sequence[Json]) -> Section:
    shown = [
        (
            row["measure"],
            number(row["a"]),
            number(row["b"]),
            difference(row["difference"]),
            row["change"] or DASH,
            _evidence(row),
        )
        for row in rows
    ]
    worse = frozenset(k for k, row in enumerate(rows) if row["change"] == "worse")
    decided = sum(row["change"] in ("better", "worse") for row in rows)
    columns = ("measure", "A", "B", "B less A", "B is", "evidence")
    table = Table(columns, shown, words=frozenset({4, 5}), marked=worse, shown=max(_NUMBERS, decided))
    lead = (
        "What got worse beyond chance comes first, in bold. Where both runs have the same samples, p is that "
        "of the exact sign test on the samples that differ (McNemar's test, for accuracies) after Holm's "
        "correction for the number of measures; elsewhere the 95 % intervals decide, or nothing does."
    )
    return Section("numbers", "Key numbers", lead, [table])


def _evidence(row: Json) -> str:
    if row["test"] == "paired":
        return "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.2g}"
    if row["test"] == "intervals":
        return "intervals apart" if row["sure"] else "intervals overlap"
    return ""


def _curves(a: Json, b: Json) -> Section | None:
    norms = [
        {each["norm"]: each for each in side["views"].get("robustness", {}).get("norms", [])}
        for side in (a, b)
    ]
    panels = []
    for norm in dict.fromkeys(name for side in norms for name in side):
        runs = [(name, side[norm]) for name, side in zip("AB", norms, strict=True) if norm in side]
        title = f"Robust accuracy, {norm_name(norm)}"
        panels.append(Panel(title, overlaid_curves(norm, runs), _curve_table(runs)))
    lead = "The worst case over all attacks; the bands are 95 % intervals."
    return Section("curves", "Robustness", lead, [Panels(panels)]) if panels else None


def _curve_table(runs: Sequence[tuple[str, Json]]) -> Table:
    found = [dict(zip(each["epsilons"], each["robust_accuracy"], strict=True)) for _, each in runs]
    rows = [
        (epsilon(eps), *(percent(side[eps]) if eps in side else DASH for side in found))
        for eps in sorted({eps for side in found for eps in side})
    ]
    return Table(("epsilon", *(name for name, _ in runs)), rows)


def _diagrams(a: Json, b: Json) -> Section | None:
    sides = []
    for side in (a, b):
        sets = side["views"].get("calibration", {}).get("sets", [])
        main = [each for each in sets if each["set"] == side["main"]]
        sides.append({each["name"]: each for each in main[0]["conditions"]} if main else {})
    parts: list[Part] = []
    attacks = tuple(b["settings"].get("attacks", ()))
    both = [name for name in sides[1] if name in sides[0]]
    both.sort(key=lambda name: reading_order(sides[1][name], attacks))
    for name in both[:_CONDITIONS]:
        panels = [diagram(side[name], run) for run, side in zip("AB", sides, strict=True)]
        parts.append(Panels(panels, name, small=True, table=_measures([side[name] for side in sides])))
    lead = "Reliability diagrams of the main set, A beside B."
    return Section("calibration", "Calibration", lead, parts) if parts else None


def _measures(conditions: Sequence[Json]) -> Table:
    measures = {"accuracy": "accuracy", "confidence": "mean confidence", "ece": "ECE", "mce": "MCE"}
    rows = [(name, *(percent(each.get(key)) for each in conditions)) for key, name in measures.items()]
    return Table(("measure", "A", "B"), rows)


def _finding_groups(before: Sequence[Json], after: Sequence[Json], titles: Json) -> list[FindingGroup]:
    return [
        FindingGroup("New", "In B, not in A.", [f for f in after if f["title"] in titles["new"]]),
        FindingGroup("Kept", "In both; as B has it.", [f for f in after if f["title"] in titles["kept"]]),
        FindingGroup("Gone", "In A, not in B.", [f for f in before if f["title"] in titles["gone"]]),
    ]


def _differing_settings(a: Json, b: Json) -> list[tuple[str, str, str]]:
    one, other = settings_of(a["settings"]), settings_of(b["settings"])
    names = dict.fromkeys([*one, *other])
    sides = [(name, one.get(name, DASH), other.get(name, DASH)) for name in names]
    return [row for row in sides if row[1] != row[2]]
