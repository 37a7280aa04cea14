"""What breaks the model, at which epsilon, and whether the attacks can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brittle.report.blocks import (
    Answer,
    Notice,
    Panel,
    Panels,
    Part,
    Row,
    Section,
    Shot,
    Table,
    Tile,
    Tiles,
    tiles_or_table,
)
from brittle.report.figures.curves import minimal_epsilon_curve, robustness_curves
from brittle.report.pictures import Pixels, change_photograph, photograph
from brittle.report.text import count, epsilon, interval, norm_name, number, percent

Json = Mapping[str, Any]
_FLAGS = {
    "attacked": "samples attacked",
    "zero_gradient": "with a zero gradient",
    "nonfinite_gradient": "with a gradient that is not finite",
    "stalled": "stalled",
    "random_beats_gradient": "fooled by random search alone",
    "single_step_beats_iterative": "fooled by a single step alone",
}


def section(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Curves, minimal epsilons and signs of masking in each norm; then examples."""
    panels, parts = [], []
    for norm in numbers["norms"]:
        panels.append(_curves(norm))
        if norm.get("minimal_epsilon"):
            panels.append(_minimal(norm))
        parts.append(_masking(norm))
    examples = [_example(each, pictures) for each in numbers.get("examples") or ()]
    shown: list[Part] = [Panels(panels), Row(parts)]
    if examples:
        note = (
            "The perturbation is drawn on a scale of its own: its largest change has full colour. "
            "In grey pictures blue is darker, orange lighter."
        )
        listed = _example_table(numbers["examples"])
        shown.append(tiles_or_table(Tiles(examples, listed, "Adversarial examples", note, wide=True)))
    lead = (
        f"{count(numbers['samples'])} samples of {numbers['set']}, of which "
        f"{percent(numbers.get('clean_accuracy'))} are classified correctly before any attack. In the worst "
        "case a sample counts as lost as soon as one attack fools the model within epsilon."
    )
    return Section("robustness", "Robustness", lead, shown)


def _curves(norm: Json) -> Panel:
    name = norm_name(norm["norm"])
    curves = norm["curves"]
    rows = []
    for place, eps in enumerate(norm["epsilons"]):
        shares = [percent(curve["accuracy"][place]) for curve in curves]
        worst = (percent(norm["robust_accuracy"][place]), interval(norm["interval"][place]))
        rows.append((_with_decimals(eps), *worst, *shares))
    columns = ("epsilon", "worst case", "95 % interval", *(curve["attack"] for curve in curves))
    marked = frozenset(k for k, eps in enumerate(norm["epsilons"]) if eps == norm.get("reported"))
    caption = "; ".join(f"{c['attack']}: {c['text']}" for c in curves if c.get("text"))
    table = Table(columns, rows, caption, marked=marked)
    note = "Band: 95 % interval of the worst case."
    return Panel(f"Accuracy under attack, {name}", robustness_curves(norm), table, note)


def _minimal(norm: Json) -> Panel:
    smallest = norm["minimal_epsilon"]
    curve = smallest["curve"]
    rows = [
        (f"{percent(each['share'])} of samples", epsilon(each["epsilon"])) for each in smallest["quantiles"]
    ]
    rows += [
        ("median", epsilon(smallest.get("median"))),
        ("never fooled", count(smallest.get("never_fooled"))),
        ("searched up to epsilon", epsilon(smallest.get("upper"))),
    ]
    steps = [
        (f"within {epsilon(eps)}", percent(share))
        for eps, share in zip(curve["epsilon"], curve["fooled"], strict=True)
    ]
    table = Table(("quantile", "epsilon, or share fooled"), [*rows, *steps])
    never = smallest.get("never_fooled")
    note = f"{count(never)} never fooled up to epsilon {epsilon(smallest.get('upper'))}." if never else ""
    title = f"Smallest epsilon that fools, {norm_name(norm['norm'])}"
    return Panel(title, minimal_epsilon_curve(norm), table, note)


def _masking(norm: Json) -> Notice:
    masking = norm["masking"]
    rows = [(text, count(masking.get(key))) for key, text in _FLAGS.items()]
    rows.append(("still right at the largest epsilon", percent(masking.get("robust_at_largest"))))
    cost = norm.get("cost") or {}
    rows += [(f"{key} of the model", count(cost.get(key))) for key in ("forwards", "backwards")]
    signs = masking.get("signs") or []
    name = norm_name(norm["norm"])
    title = f"Signs of gradient masking, {name}" if signs else f"No sign of gradient masking, {name}"
    attacked = masking.get("attacked") != 0
    if not attacked:
        title = f"Gradient masking could not be looked for, {name}: no sample is right without an attack"
    return Notice(title, attacked and not signs, signs, Table(("in all attacks", "samples"), rows))


def _example(each: Json, pictures: Mapping[str, Pixels]) -> Tile:
    clean, altered = (pictures.get(each.get(key) or "") for key in ("clean", "adversarial"))
    truth = each["label"]
    shots = [_shot("clean", clean, _answer(each["before"], truth))]
    if clean is not None and altered is not None and clean.shape == altered.shape:
        change = change_photograph(clean, altered)
        largest = f"up to ±{number(float(abs(altered - clean).max(initial=0)))}"
        shots.append(Shot("perturbation", change, clean.shape[0] < 64, note=largest))
    shots.append(_shot("adversarial", altered, _answer(each["after"], truth)))
    distance = epsilon(each.get("distance"))
    notes = (f"{each['attack']}, {norm_name(each['norm'])} distance {distance}", each["name"])
    return Tile(f"{truth} read as {each['after']['label']}", notes, shots)


def _shot(name: str, pixels: Pixels | None, answer: Answer) -> Shot:
    if pixels is None:
        return Shot(name, None, answer=answer)
    return Shot(name, photograph(pixels), max(pixels.shape[:2]) < 64, answer)


def _answer(given: Json, truth: str) -> Answer:
    return Answer(given["label"], given["label"] == truth, given.get("confidence"))


def _example_table(examples: Sequence[Json]) -> Table:
    rows = [
        (
            each["name"],
            each["label"],
            f"{each['attack']}, {norm_name(each['norm'])}",
            _with_decimals(each.get("distance")),
            f"{each['before']['label']} ({percent(each['before'].get('confidence'))})",
            f"{each['after']['label']} ({percent(each['after'].get('confidence'))})",
        )
        for each in examples
    ]
    columns = ("sample", "true class", "attack", "distance", "clean", "adversarial")
    return Table(columns, rows, words=frozenset({1, 2, 4, 5}))


def _with_decimals(eps: float | None) -> str:
    text = epsilon(eps)
    return f"{text} ({eps:.4f})" if "/" in text and eps is not None else text
