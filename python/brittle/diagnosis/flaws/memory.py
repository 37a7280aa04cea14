"""Layers that know the training samples by heart."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from brittle.diagnosis.flaws.evidence import Evidence
from brittle.diagnosis.flaws.result import Finding
from brittle.diagnosis.flaws.thresholds import from_above

# Standard errors that a difference of accuracies must exceed.
_SURE = 3.0


def overfit(about: Evidence) -> Iterator[Finding]:
    """Layers whose features tell more of training than of validation samples, and whose inputs do not.

    The probe that is asked was fitted to other training samples, so its own overfitting does not count. What
    the inputs have of such a difference, as where training labels are wrong and validation labels are not,
    and what the layers that feed a layer have, is not the layer's doing.
    """
    for layer in about.layers:
        here = about.probes[layer]
        before = [about.probes[name] for name in about.parents(layer) or ("",)]
        known = [one.gap for one in before if one is not None]
        if here is None or not known:
            continue
        about.measure("probe, fitted", layer, here.fitted)
        about.measure("probe, train", layer, here.train)
        about.measure("probe, validation", layer, here.validation)
        gap = about.measure("probe gap", layer, here.gap)
        added = about.measure("probe gap added", layer, gap - max(known))
        # Of so few samples, so much of a difference is chance.
        chance = _SURE * about.sampling_error(here)
        shift = about.measure("margin shift", layer, margin_shift(about, layer))
        yield Finding(
            layer,
            "overfit",
            from_above(added, about.thresholds.memory) if added > chance else "none",
            {"probe, train": here.train, "probe, validation": here.validation, "probe gap added": added}
            | ({} if math.isnan(shift) else {"margin shift": shift}),
            reason=(
                f"a linear probe reads {here.train:.0%} of training and {here.validation:.0%} of validation "
                f"labels; the layer adds {added:+.0%} to that difference"
            ),
        )


def margin_shift(about: Evidence, layer: str) -> float:
    """How much nearer training samples are to their class than validation samples are to theirs.

    Of the mean cosine with one's own class less that with the others, training less validation; classes are
    the mean directions of the training samples, one's own sample left out.
    """
    train, validation = about.train, about.validation
    classes = int(max(train.y.max(), validation.y.max())) + 1
    directions = _directions(train.features[layer])
    sums = torch.zeros(classes, directions.shape[1], dtype=torch.float64)
    sums.index_add_(0, train.y, directions)
    counts = torch.bincount(train.y, minlength=classes).double()
    found = []
    for seen, y, own in (
        (directions, train.y, 1.0),
        (_directions(validation.features[layer]), validation.y, 0.0),
    ):
        to = seen @ sums.T
        mine = to.gather(1, y.unsqueeze(1)).squeeze(1)
        others = (to.sum(1) - mine) / (counts.sum() - counts[y]).clamp(min=1)
        mine = (mine - own) / (counts[y] - own).clamp(min=1)
        found.append(float((mine - others).mean()))
    return found[0] - found[1]


def _directions(features: Tensor) -> Tensor:
    return functional.normalize(features.double(), dim=1)
