"""Two evaluations side by side, before and after a fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brittle.report.blocks import Panel, Panels, Part, Section, Table
from brittle.report.evaluation import settings_of
from brittle.report.figures.curves import overlaid_curves
from brittle.report.measures import Measure, change, measures
from brittle.report.render import render
from brittle.report.sections.calibration import diagram
from brittle.report.text import DASH, epsilon, norm_name, percent

Json = Mapping[str, Any]
_CONDITIONS = 4


@dataclass(frozen=True)
class FindingGroup:
    """Findings that share their fate from one run to the other."""

    title: str
    note: str
    findings: Sequence[Json]


def compare_page(a: Json, b: Json) -> str:
    """Two reports side by side: verdicts, key numbers with their differences, curves, findings.

    Args:
        a: what ``report.json`` of the first run holds ("before").
        b: of the second ("after"). Differences are b less a.

    Returns:
        HTML, complete in itself; the same arguments give the same bytes.
    """
    differing = _differing_settings(a, b)
    sections = [_numbers(a, b), _curves(a, b), _diagrams(a, b)]
    return render(
        "compare.html.jinja",
        title=f"{a['title']} and {b['title']}",
        runs=[("A", a), ("B", b)],
        sections=[each for each in sections if each is not None],
        groups=finding_groups(a["findings"], b["findings"]),
        differing=Table(("setting", "A", "B"), differing, words=frozenset({1, 2})) if differing else None,
    )


def finding_groups(before: Sequence[Json], after: Sequence[Json]) -> list[FindingGroup]:
    """What is new, kept and gone, a finding being known by its view and title."""
    was, now = ({(each["view"], each["title"]) for each in side} for side in (before, after))
    return [
        FindingGroup("New", "In B, not in A.", [f for f in after if (f["view"], f["title"]) not in was]),
        FindingGroup("Kept", "In both; as B has it.", [f for f in after if (f["view"], f["title"]) in was]),
        FindingGroup("Gone", "In A, not in B.", [f for f in before if (f["view"], f["title"]) not in now]),
    ]


def _numbers(a: Json, b: Json) -> Section:
    before, after = measures(a), measures(b)
    nothing = {name: Measure(None, each.show) for name, each in (before | after).items()}
    rows = []
    for name, empty in nothing.items():
        one, other = before.get(name, empty), after.get(name, empty)
        rows.append((name, one.show(one.value), other.show(other.value), *change(one, other)))
    worse = frozenset(k for k, row in enumerate(rows) if row[-1].startswith("worse"))
    table = Table(("measure", "A", "B", "B less A", "in words"), rows, words=frozenset({4}), marked=worse)
    lead = "Whatever got worse is in bold. Where 95 % intervals overlap, chance may have made the difference."
    return Section("numbers", "Key numbers", lead, [table])


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
    for name in [name for name in sides[0] if name in sides[1]][:_CONDITIONS]:
        panels = [diagram(side[name], run) for run, side in zip("AB", sides, strict=True)]
        parts.append(Panels(panels, title=name))
    lead = "Reliability diagrams of the main set, A beside B."
    return Section("calibration", "Calibration", lead, parts) if parts else None


def _differing_settings(a: Json, b: Json) -> list[tuple[str, str, str]]:
    one, other = settings_of(a["settings"]), settings_of(b["settings"])
    names = dict.fromkeys([*one, *other])
    sides = [(name, one.get(name, DASH), other.get(name, DASH)) for name in names]
    return [row for row in sides if row[1] != row[2]]
