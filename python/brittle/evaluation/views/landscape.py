"""The loss around samples, along the gradient and along a random direction."""

from __future__ import annotations

from typing import Any

from brittle._radius import radius
from brittle.evaluation.rows import RunRows
from brittle.evaluation.views.common import Finding, rounded

FEWEST = 10  # samples whose mean says something of the model rather than of one of them
MARGIN = 0.10  # of the rise along the random direction


def numbers(run: RunRows) -> dict[str, Any] | None:
    """Means over the samples of the main set that were drawn; None without any."""
    land = run.main.landscape
    if land is None or not len(land.ids):
        return None
    surface = land.losses.double().mean(0)
    centre = min(range(len(land.alphas)), key=lambda k: abs(land.alphas[k]))
    return {
        "set": run.main.name,
        "samples": len(land.ids),
        "norm": "linf",
        "reach": max(land.alphas),
        "alphas": list(land.alphas),
        "mean": [[rounded(value) for value in row] for row in surface.tolist()],
        "along_gradient": [rounded(value) for value in surface[:, centre].tolist()],
        "along_random": [rounded(value) for value in surface[centre].tolist()],
    }


def findings(numbers: dict[str, Any]) -> list[Finding]:
    """A loss that rises more by chance than along its own gradient.

    References:
        Tramèr et al., "Ensemble adversarial training: attacks and defenses", ICLR 2018.
    """
    alphas = numbers["alphas"]
    centre = min(range(len(alphas)), key=lambda k: abs(alphas[k]))
    start = numbers["along_gradient"][centre]
    ends = numbers["along_gradient"][-1], numbers["along_random"][-1], numbers["along_random"][0]
    if numbers["samples"] < FEWEST or None in (start, *ends):
        return []
    gradient, chance = ends[0] - start, max(ends[1:]) - start
    if chance <= 0 or gradient >= chance * (1 - MARGIN):
        return []
    return [
        Finding(
            "moderate",
            "landscape",
            "The loss rises less along its gradient than in a random direction",
            f"At {radius(numbers['reach'])} ({numbers['norm']}) it changes by {gradient:+.3f} along the "
            f"gradient and by {chance:+.3f} along the random direction, on average over "
            f"{numbers['samples']} samples.",
            "Do not trust attacks by gradient on this model: use attacks without gradients, or through a "
            "smooth surrogate.",
        )
    ]
