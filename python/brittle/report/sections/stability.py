"""The loss around samples, and how much the numbers move from seed to seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brittle.report.blocks import Panel, Panels, Section, Table
from brittle.report.figures.bars import spread_dots
from brittle.report.figures.curves import landscape_lines
from brittle.report.figures.maps import landscape_map
from brittle.report.pictures import Pixels
from brittle.report.text import count, epsilon, norm_name, number, percent

Json = Mapping[str, Any]


def landscape(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """Contours of the mean loss, and its course along both directions."""
    alphas = [f"{alpha:.3g}" for alpha in numbers["alphas"]]
    plane = Table(
        ("along the gradient", *alphas),
        [(alpha, *map(number, row)) for alpha, row in zip(alphas, numbers["mean"], strict=True)],
        "Mean loss; along the random direction in columns",
    )
    lines = Table(
        ("distance", "along the gradient", "along a random direction"),
        [
            (alpha, number(one), number(other))
            for alpha, one, other in zip(
                alphas, numbers["along_gradient"], numbers["along_random"], strict=True
            )
        ],
        "Mean loss",
    )
    panels = [
        Panel("Loss around the samples", landscape_map(numbers), plane),
        Panel("Loss along two directions", landscape_lines(numbers), lines),
    ]
    lead = (
        f"Mean over {count(numbers['samples'])} samples of {numbers['set']}, up to epsilon "
        f"{epsilon(numbers['reach'])} ({norm_name(numbers['norm'])}). A smooth slope is what attacks "
        "climb; a jagged or flat one may hide that the model is weak."
    )
    return Section("landscape", "Loss landscape", lead, [Panels(panels)])


def repeat(numbers: Json, summary: Json, pictures: Mapping[str, Pixels]) -> Section:
    """What changes when only the seed does."""
    measures = numbers["measures"]
    seeds = [f"seed {seed}" for seed in numbers["seeds"]]
    rows = [
        (
            measure["measure"],
            percent(measure.get("mean")),
            percent(measure.get("spread")),
            *map(percent, measure["values"]),
        )
        for measure in measures
    ]
    table = Table(("measure", "mean", "spread", *seeds), rows)
    spreads = Table(("measure", "mean", "spread"), [row[:3] for row in rows], "Mean and spread")
    panel = Panel("Values by seed", spread_dots(measures), table)
    lead = (
        f"The same evaluation with {len(seeds)} seeds. The spread, largest less smallest, is what the "
        "attacks' random starts alone can change: a smaller difference between two models means nothing."
    )
    return Section("repeat", "Repeated with other seeds", lead, [Panels([panel], table=spreads)])
