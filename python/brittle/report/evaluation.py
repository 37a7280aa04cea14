"""The report on an evaluation, made of what its ``report.json`` says and the pictures of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brittle.report.blocks import Card, Section, Table
from brittle.report.pictures import Pixels
from brittle.report.render import render
from brittle.report.sections import SECTIONS
from brittle.report.text import count, epsilon, interval, norm_name, percent

Json = Mapping[str, Any]
_NAMES_SHOWN = 5
_SETTINGS = {
    "views": "Views",
    "norms": "Norms",
    "epsilons": "Epsilons",
    "reported": "Reported epsilons",
    "attacks": "Attacks",
    "steps": "Steps",
    "restarts": "Restarts",
    "seed": "Seed",
    "repeat_seeds": "Seeds in all",
    "precision": "Precision",
    "bounds": "Bounds of the input",
}


def evaluation_page(summary: Json, pictures: Mapping[str, Pixels]) -> str:
    """The whole report of an evaluation as one page that opens offline and loads nothing.

    A view that the summary does not hold is not on the page. Missing numbers (None) are shown as a dash.

    Args:
        summary: what ``report.json`` holds.
        pictures: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], by the keys that the summary names; where one is
            missing, its sample is described without a picture.

    Returns:
        HTML, complete in itself; the same arguments give the same bytes.

    Example:
        >>> verdict = {"held": None, "headline": "Holds.", "sentences": [], "requirements": []}
        >>> empty = {"findings": [], "sets": [], "settings": {}, "provenance": {}, "views": {}}
        >>> page = evaluation_page({"title": "A <model>", "verdict": verdict, **empty}, {})
        >>> "Holds." in page, "A &lt;model&gt;" in page
        (True, True)
    """
    views = summary["views"]
    sections = [make(views[name], summary, pictures) for name, make in SECTIONS.items() if name in views]
    return render(
        "evaluation.html.jinja",
        title=summary["title"],
        partial=summary.get("partial"),
        verdict=summary["verdict"],
        cards=key_figures(summary),
        findings=summary["findings"],
        places=_places(views, sections),
        sections=sections,
        sets=_set_table(summary["sets"]),
        skipped=_skipped_table(summary["sets"]),
        settings=settings_of(_in_force(summary)),
        provenance=summary["provenance"],
    )


def key_figures(summary: Json) -> list[Card]:
    """The numbers that say most about a model: right, robust, calibrated, fair, aware of the unknown."""
    views = summary["views"]
    cards = [
        Card(percent(each.get("accuracy")), "clean accuracy", _clean_note(each))
        for each in views.get("classification", {}).get("sets", [])[:1]
    ]
    for norm in views.get("robustness", {}).get("norms", []):
        cards += _robust_card(norm)
    for each in views.get("segments", {}).get("sets", [])[:1]:
        worst = [group for group in each["groups"] if group["group"] == each.get("worst")]
        cards += [
            Card(
                percent(group["accuracy"]),
                "worst segment",
                f"{group['group']}, {count(group['samples'])} samples",
            )
            for group in worst
        ]
    for each in views.get("calibration", {}).get("sets", [])[:1]:
        clean = [condition for condition in each["conditions"] if condition["name"] == "clean"]
        cards += [
            Card(percent(condition.get("ece")), "calibration error", "ECE, clean") for condition in clean
        ]
    best = [
        max((s["auroc"], s["score"], each["set"]) for s in each["scores"] if s.get("auroc") is not None)
        for each in views.get("ood", {}).get("against", [])
        # Noise that the report makes itself says nothing of foreign samples that somebody may bring.
        if each.get("labelled") and any(s.get("auroc") is not None for s in each["scores"])
    ]
    if best:
        auroc, score, other = min(best)
        hardest = f", the hardest of {len(best)} sets" if len(best) > 1 else ""
        cards.append(Card(percent(auroc), f"AUROC against {other}", f"best score ({score}){hardest}"))
    return cards


def _clean_note(each: Json) -> str:
    between = interval(each.get("interval"))
    return f"{count(each['samples'])} samples of {each['set']}; 95 % interval {between}"


def _robust_card(norm: Json) -> list[Card]:
    name = norm_name(norm["norm"])
    cards = []
    if norm.get("reported") in norm["epsilons"]:
        place = norm["epsilons"].index(norm["reported"])
        masked = "; at most, for there are signs of gradient masking" if norm["masking"]["signs"] else ""
        note = f"worst case within epsilon {epsilon(norm['reported'])}{masked}"
        cards.append(Card(percent(norm["robust_accuracy"][place]), f"robust accuracy, {name}", note))
    smallest = norm.get("minimal_epsilon")
    if smallest:
        note = "half of all samples are fooled within it"
        cards.append(Card(epsilon(smallest.get("median")), f"median epsilon, {name}", note))
    return cards


def _places(views: Json, sections: Sequence[Section]) -> dict[str, tuple[str, str]]:
    """Where a finding's view is on the page: its anchor and title."""
    names = [name for name in SECTIONS if name in views]
    return {name: (part.id, part.title) for name, part in zip(names, sections, strict=True)}


def _set_table(sets: Sequence[Json]) -> Table:
    rows = [
        (
            each["name"],
            count(each["samples"]),
            "yes" if each["labelled"] else "no",
            _names(each["classes"]),
            "yes" if each["groups"] else "no",
            count(len(each["skipped"])),
        )
        for each in sets
    ]
    columns = ("set", "samples", "labelled", "classes", "segments", "skipped")
    return Table(columns, rows, words=frozenset({2, 3, 4}))


def _names(classes: Sequence[str]) -> str:
    if len(classes) <= 2 * _NAMES_SHOWN:
        return ", ".join(classes)
    return f"{', '.join(classes[:_NAMES_SHOWN])} … {classes[-1]} ({count(len(classes))})"


def _skipped_table(sets: Sequence[Json]) -> Table | None:
    rows = [(each["name"], bad["name"], bad["reason"]) for each in sets for bad in each["skipped"]]
    return Table(("set", "sample", "reason"), rows, words=frozenset({1, 2}), shown=10) if rows else None


def _in_force(summary: Json) -> Json:
    """The settings that came to bear: what an attack would have done is no setting of a run without one."""
    settings, views = summary["settings"], summary["views"]
    idle: set[str] = set()
    if "robustness" not in views:
        idle = {"attacks", "steps", "restarts", "precision", "reported"}
        if "calibration" not in views:  # which shows the answers to single steps
            idle |= {"norms", "epsilons"}
    return {name: value for name, value in settings.items() if name not in idle}


def settings_of(settings: Json) -> dict[str, str]:
    """What was asked of a run, as text by name."""
    return {name: _plain(settings[key]) for key, name in _SETTINGS.items() if key in settings}


def _plain(value: Any) -> str:
    """A setting as text: lists with commas, one line for each key of a mapping."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
