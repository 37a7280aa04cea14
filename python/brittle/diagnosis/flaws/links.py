"""Links between layers: where what one layer tells is lost by the next, or undone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from brittle.diagnosis.flaws.evidence import Evidence, largest
from brittle.diagnosis.flaws.result import SEVERITIES, Finding
from brittle.diagnosis.flaws.thresholds import from_above, from_below

# Standard errors that a difference of accuracies must exceed.
_SURE = 3.0


def broken_link(about: Evidence) -> Iterator[Finding]:
    """Layers that lose what could be read before them, or whose features have nothing of those before them.

    A layer undoes its predecessor ("flip") where it is more like the layers before that one than like it.
    """
    for layer in about.layers:
        fed_by = about.parents(layer) or ("",)
        similarity = largest(about.similarity[layer][name] for name in fed_by)
        about.measure("link", layer, similarity)
        earlier = [g for name in fed_by for g in (about.parents(name) or ("",) if name else ())]
        across = largest(about.similarity[layer][name] for name in earlier)
        flip = about.measure("flip", layer, across - similarity)
        here = about.probes[layer]
        before = [one.validation for one in (about.probes[name] for name in fed_by) if one is not None]
        loss = max(before) - here.validation if here is not None and before else math.nan
        about.measure("loss of reading", layer, loss)
        if math.isnan(similarity) and math.isnan(loss):
            continue
        lost = here is not None and loss > _SURE * about.sampling_error(here)
        severity = max(
            from_below(similarity, about.thresholds.similarity),
            from_above(loss, about.thresholds.loss_of_reading) if lost else "none",
            key=SEVERITIES.index,
        )
        if flip > about.thresholds.flip and severity == "none":
            severity = "mild"
        # A random layer loses something.
        if layer in about.unformed:
            severity = "none"
        yield Finding(
            layer,
            "broken-link",
            severity,
            {"link": similarity, "loss of reading": loss} | ({} if math.isnan(flip) else {"flip": flip}),
            reason=(
                f"features are to {similarity:.2f} (CKA) those before; a linear probe reads {loss:.0%} "
                "of the samples less than before"
                + ("; it undoes the layer before it" if flip > about.thresholds.flip else "")
            ),
        )
