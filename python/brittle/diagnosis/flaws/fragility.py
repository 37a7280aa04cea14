"""Where a small change of the inputs becomes a large change of the features."""

from __future__ import annotations

import math
from collections.abc import Iterator

from brittle.diagnosis.flaws.evidence import Evidence, largest
from brittle.diagnosis.flaws.result import Finding
from brittle.diagnosis.flaws.thresholds import from_above


def fragile(about: Evidence) -> Iterator[Finding]:
    """Layers that enlarge, relative to what they tell samples apart by, the change that an attack makes."""
    if "attack" not in about.validation.accuracy:
        about.notes.append("fragility could not be judged: the model's outputs are not finite")
        return
    for layer in about.layers:
        evidence = {}
        for kind in ("attack", "noise"):
            moved = about.validation.moved[kind]
            here = moved.get(layer, math.nan)
            before = largest(moved.get(name, math.nan) for name in about.parents(layer) or ("",))
            factor = here / before if before else math.nan
            evidence[f"moved by {kind}"] = about.measure(f"moved by {kind}", layer, here)
            evidence[f"amplification of {kind}"] = about.measure(f"amplification of {kind}", layer, factor)
            about.measure(f"cosine under {kind}", layer, about.validation.cosine[kind][layer])
        worst = evidence["amplification of attack"]
        severity = from_above(worst, about.thresholds.amplification)
        # What is enlarged from nothing to next to nothing harms nobody.
        if not evidence["moved by attack"] >= about.thresholds.displacement:
            severity = "none"
        yield Finding(
            layer,
            "fragile",
            severity,
            evidence,
            reason=(
                f"under attack the features move by {evidence['moved by attack']:.2f} of their spread, "
                f"{worst:.1f} times as much as before the layer"
            ),
        )
