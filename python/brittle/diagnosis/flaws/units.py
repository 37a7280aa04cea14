"""Dead units, and units that say what others say."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from brittle import ops
from brittle.diagnosis.flaws.capture import weight_of
from brittle.diagnosis.flaws.evidence import Evidence
from brittle.diagnosis.flaws.result import SEVERITIES, Finding, Region
from brittle.diagnosis.flaws.thresholds import from_above
from brittle.similarity import cluster, effective_rank

# Samples that are sorted into clusters; a mean cosine above which there is nothing to sort.
_CLUSTERED, _ONE_VECTOR = 256, 0.9999

# Places with less of a say than this, beside the place with the most, are silent.
_SILENT_PLACE = 0.05


def dead(about: Evidence) -> Iterator[Finding]:
    """Units without a say for any sample: no gradient reaches them, so they neither tell nor learn."""
    for layer in about.layers:
        units = about.validation.units[layer]
        silent = units.heard == 0
        share = about.measure("dead units", layer, float(silent.double().mean()))
        heard = about.measure("heard", layer, units.entries)
        severity = from_above(share, about.thresholds.dead)
        count = int(silent.sum())
        reason = f"{count} of {len(silent)} units have no say for any sample"
        if _cut_off(about, layer):
            severity, reason = "none", "no layer after it hears it, so that none of its units can have a say"
        yield Finding(
            layer,
            "dead",
            severity,
            {"dead units": share, "heard": heard},
            tuple(silent.nonzero().flatten().tolist()),
            silent_region(units.places, units.map),
            reason,
        )


def redundant(about: Evidence) -> Iterator[Finding]:
    """Units whose outputs are, but for scale and shift, those of another; features that all samples share."""
    for layer in about.layers:
        values = about.validation.units[layer].values
        if not bool(values.isfinite().all()):
            continue
        of = duplicate_of(values, about.thresholds.duplicate)
        copies = [unit for unit, first in enumerate(of) if first != unit]
        share = about.measure("duplicate units", layer, len(copies) / len(of))
        centred = values - values.mean(1, keepdim=True)
        rank = about.measure("effective rank", layer, effective_rank(centred))
        about.measure("effective rank share", layer, rank / max(1, min(values.shape)))
        features = about.validation.features[layer]
        alike = about.measure("sample redundancy", layer, _mean_cosine(features))
        silhouette, agreement = _clusters(about, features) if alike < _ONE_VECTOR else (math.nan, math.nan)
        about.measure("cluster silhouette", layer, silhouette)
        about.measure("cluster agreement", layer, agreement)
        severity = from_above(share, about.thresholds.duplicates)
        if layer not in about.unformed:
            severity = max(severity, from_above(alike, about.thresholds.collapse), key=SEVERITIES.index)
        yield Finding(
            layer,
            "redundant",
            severity,
            {"duplicate units": share, "effective rank": rank, "sample redundancy": alike},
            tuple(copies),
            None,
            f"{len(copies)} of {len(of)} units repeat another; the outputs use {rank:.1f} directions; "
            f"the features of two samples have a cosine of {alike:.3f}",
        )


def _clusters(about: Evidence, features: Tensor) -> tuple[float, float]:
    """How clearly samples fall into as many groups as there are classes, and how far they are the classes."""
    some = features[:_CLUSTERED]
    y = about.validation.y[:_CLUSTERED]
    classes, distinct = len(set(y.tolist())), len(set(map(tuple, some.tolist())))
    if not 2 <= classes < len(y) or distinct < classes:
        return math.nan, math.nan
    groups = cluster(ops.pairwise_cosine(some.contiguous()), classes, "kmeans", about.seed)
    return groups.silhouette, groups.agreement(y)


def _cut_off(about: Evidence, layer: str) -> bool:
    """Whether nothing that the layer feeds hears it: it has no say itself, or only weights of zero."""
    fed = [other for other in about.layers if layer in about.parents(other)]
    deaf = (about.validation.signal[o] == 0 or not weight_of(about.modules[o]).any() for o in fed)
    return bool(fed) and all(deaf)


def duplicate_of(values: Tensor, threshold: float) -> list[int]:
    """For each unit the first one whose outputs it repeats: itself if it repeats none.

    Units that do not vary repeat nothing: they are dead or constant.

    Args:
        values: ``[U, observations]``.
        threshold: cosine of outputs less their mean.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 1.0]])
        >>> duplicate_of(torch.stack([a, b, 3 * a + 1]), 0.99)
        [0, 1, 0]
    """
    centred = values.double() - values.double().mean(1, keepdim=True)
    moving = centred.norm(dim=1) > 1e-6 * values.double().norm(dim=1)
    cosines = ops.pairwise_cosine((centred * moving.unsqueeze(1)).contiguous())
    alike = cosines > threshold
    first: list[int] = []
    for unit, row in enumerate(alike):
        earlier = row[:unit].nonzero().flatten().tolist()
        # Of those that are nobody's copies themselves: likeness is not transitive.
        first.append(next((other for other in earlier if first[other] == other), unit))
    return first


def silent_region(places: Tensor, shape: tuple[int, int] | None) -> Region | None:
    """The rows and columns of a silent part of the map; None where there is none, or it is no rectangle."""
    if shape is None or len(places) != shape[0] * shape[1] or not len(places):
        return None
    quiet = (places < _SILENT_PLACE * places.max()).view(shape)
    if not bool(quiet.any()):
        return None
    rows, columns = quiet.nonzero(as_tuple=True)
    (top, bottom), (left, right) = ((int(part.min()), int(part.max()) + 1) for part in (rows, columns))
    return ((top, bottom), (left, right)) if bool(quiet[top:bottom, left:right].all()) else None


def _mean_cosine(features: Tensor) -> float:
    """Of two different samples, from the length of the mean direction."""
    n = len(features)
    if n < 2:
        return math.nan
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    own = float(directions.square().sum())
    return (float(directions.sum(0).square().sum()) - own) / (n * (n - 1))
