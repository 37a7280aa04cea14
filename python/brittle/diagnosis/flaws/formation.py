"""Layers that training never formed: no different from what initialisation left."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from brittle._folding import deep_copy
from brittle.diagnosis.flaws.capture import weight_of
from brittle.diagnosis.flaws.evidence import Evidence
from brittle.diagnosis.flaws.result import Finding
from brittle.diagnosis.flaws.thresholds import from_above, from_below

# Weights that it takes to tell a trained layer from a fresh one, and so many are enough; to be compared with
# so many times as many fresh ones.
_FEWEST, _ENOUGH, _TIMES = 200, 10_000, 20

# Of the median layer's: less is behind the others.
_BEHIND = 0.1


def unformed(about: Evidence) -> Iterator[Finding]:
    """Layers that have not moved from the untrained copy; without one, that may as well be fresh."""
    for finding in _against_the_copy(about) if about.initial and _related(about) else _unaided(about):
        if finding.severity != "none":
            about.unformed.add(finding.layer)
        yield finding


def _unaided(about: Evidence) -> Iterator[Finding]:
    if about.initial:
        about.notes.append(
            "untrained has other initial weights than model had (no layer's weights are correlated), so "
            "movement says nothing: layers are compared with their initialiser's distribution"
        )
    yield from _against_fresh(about)


def _against_the_copy(about: Evidence) -> Iterator[Finding]:
    moved = {layer: _movement(about.modules[layer], about.initial[layer]) for layer in about.layers}
    typical = statistics.median([one for one in moved.values() if not math.isnan(one)] or [0.0])
    for layer in about.layers:
        movement = about.measure("movement", layer, moved[layer])
        evidence = {"movement": movement, **_features(about, layer)}
        severity = from_below(movement, about.thresholds.movement)
        # Fine-tuning moves all layers a little; where the median did not move, nothing was trained.
        if movement > _BEHIND * typical and typical > about.thresholds.movement[1]:
            severity = "none"
        reason = f"the weights moved by {movement:.2%} of their length since initialisation"
        if "similarity to untrained" in evidence:
            reason += f"; features are to {evidence['similarity to untrained']:.2f} (CKA) the untrained ones"
        yield Finding(layer, "unformed", severity, evidence, reason=reason)


def _against_fresh(about: Evidence) -> Iterator[Finding]:
    unknown = []
    for layer in about.layers:
        p = _freshness(about.modules[layer], about.seed)
        about.measure("freshness", layer, math.nan if p is None else p)
        if p is None:
            unknown.append(layer)
            continue
        evidence = {"freshness": p, **_features(about, layer)}
        severity = from_above(p, about.thresholds.freshness)
        reason = f"the weights' distribution agrees with the layer's initialiser (p = {p:.2g})"
        yield Finding(layer, "unformed", severity, evidence, reason=reason)
    if unknown:
        about.notes.append(
            "whether these layers were ever trained needs an untrained copy: " + ", ".join(map(repr, unknown))
        )


def _features(about: Evidence, layer: str) -> dict[str, float]:
    """What the layer computes, beside the untrained copy's."""
    found = {}
    similarity = about.similarity_to_untrained(layer)
    if not math.isnan(similarity):
        found["similarity to untrained"] = about.measure("similarity to untrained", layer, similarity)
    now, before = about.probes[layer], about.untrained_probes.get(layer)
    if now is not None and before is not None:
        gained = now.validation - before.validation
        found["probe gain over untrained"] = about.measure("probe gain over untrained", layer, gained)
    return found


def _movement(module: nn.Module, initial: nn.Module) -> float:
    now, before = weight_of(module).double(), weight_of(initial).to(weight_of(module).device).double()
    length = float(before.norm())
    if not bool(now.isfinite().all()):
        return math.nan
    return float((now - before).norm()) / length if length else math.inf


def _related(about: Evidence) -> bool:
    """Whether the untrained weights can be those that training began with."""
    for layer in about.layers:
        now, before = (weight_of(m[layer]).flatten().double().cpu() for m in (about.modules, about.initial))
        if now.shape != before.shape:
            return False
        # Of unrelated weights, cosines beyond this come once in 10^5 layers.
        if float(functional.cosine_similarity(now, before, dim=0)) > 4.3 / math.sqrt(len(now)):
            return True
    return False


def _freshness(module: nn.Module, seed: int) -> float | None:
    """How likely weights are that come from the initialiser: the p-value of the worse of two tests.

    Training takes weights beyond the ends of a uniform distribution, and widens or narrows a normal one.
    None where the layer has no initialiser of its own or too few weights to tell.
    """
    from scipy import stats

    own = weight_of(module).flatten().double().cpu()
    if len(own) < _FEWEST or not bool(own.isfinite().all()):
        return None
    few = min(len(own), _ENOUGH)
    draws = fresh(module, seed, -(-few * _TIMES // len(own)))
    if draws is None:
        return None
    pooled = torch.cat(draws)[: few * _TIMES]
    own = own[torch.linspace(0, len(own) - 1, few).long()]
    same_shape = float(stats.ks_2samp(own.numpy(), pooled.numpy()).pvalue)
    outside = (own.abs() > pooled.abs().max()).sum()
    # Of so many draws from one distribution, this many of ours would be beyond all of the others'.
    beyond = (len(own) / (len(own) + len(pooled))) ** int(outside)
    return min(1.0, 2 * min(same_shape, beyond))


def fresh(module: nn.Module, seed: int, draws: int) -> list[Tensor] | None:
    """The weights of newly initialised copies, flat; None where the layer cannot initialise itself."""
    other = deep_copy(module).cpu()
    reset = getattr(other, "reset_parameters", None) or getattr(other, "_reset_parameters", None)
    if reset is None or hasattr(module, "parametrizations"):
        return None
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(draws):
            reset()
            found.append(weight_of(other).flatten().double())
    return found
