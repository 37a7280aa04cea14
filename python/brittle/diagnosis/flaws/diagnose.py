"""Judge every layer of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from brittle import _checks as check
from brittle.data import Data
from brittle.diagnosis.flaws.capture import OP, described, with_weights
from brittle.diagnosis.flaws.evidence import Evidence
from brittle.diagnosis.flaws.formation import unformed
from brittle.diagnosis.flaws.fragility import fragile
from brittle.diagnosis.flaws.gradients import exploding, vanishing
from brittle.diagnosis.flaws.links import broken_link
from brittle.diagnosis.flaws.memory import overfit
from brittle.diagnosis.flaws.passes import look
from brittle.diagnosis.flaws.result import KINDS, SEVERITIES, Diagnosis, Finding
from brittle.diagnosis.flaws.thresholds import Thresholds
from brittle.diagnosis.flaws.units import dead, redundant
from brittle.progress import bar
from brittle.target import Target

# Unformed first: others excuse what follows from it.
_JUDGEMENTS = (unformed, dead, redundant, overfit, vanishing, exploding, broken_link, fragile)


def diagnose(
    model: nn.Module | Target,
    train: Data,
    validation: Data,
    untrained: nn.Module | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    samples: int = 2048,
    batch_size: int = 128,
    eps: float | None = None,
    bounds: tuple[float, float] | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    progress: bool | Callable[[int, int | None], None] = False,
) -> Diagnosis:
    """Find a network's structural flaws: which layer, what kind, how severe, and by what evidence.

    Judged is every layer with weights (convolutions, linear layers, attention), together with the norm and
    activation after it, for eight kinds of flaw:

    * ``dead``: units that have no say in the outputs for any sample.
    * ``redundant``: units that repeat another unit of their layer.
    * ``unformed``: weights that training left as they were initialised.
    * ``overfit``: features that tell labels of training samples which they do not tell of validation samples,
      where the layers before do not (a linear probe, asked about samples that it was not fitted to).
    * ``vanishing``: weights that the loss tells next to nothing, beside other layers'.
    * ``exploding``: gradients greater than the weights, and the layers that amplify them.
    * ``broken-link``: features that lose what the layer before told, or have nothing in common with it.
    * ``fragile``: a layer that multiplies the change that a small attack makes.

    The training set is gone through once, for features and the loss's gradients, and the validation set once,
    for features, the outputs' gradients, and five steps of PGD on its first samples. The model runs in
    evaluation mode and is given back as it was (see :func:`brittle.fgsm`).

    Args:
        model: maps inputs to logits ``[N, C]``; a :class:`brittle.Target` of one for a mean and std.
        train: what it was trained on, with the labels it was given: a pair of tensors ``(x, y)`` or an
            iterable of batches ``(x, y)``, such as a DataLoader.
        validation: likewise, what it was not trained on.
        untrained: a copy of the model as it was initialised, with the same initial weights: most certain for
            ``unformed``. Without it weights are compared with what the layers' ``reset_parameters`` give.
        layers: names or patterns (``"blocks.*"``) of layers to judge; by default all that have weights.
        samples: of each set, at most so many are looked at: of tensors evenly spread, of an iterable the
            first, so give a shuffled one. Memory is about 1.5 KB for each sample and layer.
        batch_size: for pairs of tensors.
        eps: Linf radius of the attack; by default 8/255 of the bounds' span.
        bounds: the smallest and the largest value of the inputs; by default (0, 1), or the target's.
        thresholds: other than the calibrated ones.
        seed: of the attack's start, the noise, and the random projections that long features are kept by.
        progress: True for a bar on stderr (needs ``rich``), or a function that is called with the number of
            samples done and None.

    Returns:
        The judgements and what they were made from.

    Raises:
        ValueError: an argument is out of range; data, labels or the untrained copy do not fit the model; the
            model has no layers with weights or no logits.

    References:
        Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
        Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
        Kornblith et al., "Similarity of neural network representations revisited", ICML 2019.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import diagnose
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(400, 8)
        >>> y = (x[:, 0] > x[:, 1]).long()
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].bias[:12].fill_(-9)
        >>> found = diagnose(net, (x[:200], y[:200]), (x[200:], y[200:]))
        >>> found.severity("0", "dead"), found.of("0", "dead")[0].channels == tuple(range(12))
        ('mild', True)
    """
    lent = Target.of(model, OP, bounds)
    if not isinstance(lent.model, nn.Module):
        raise ValueError(f"{OP}: model must be an nn.Module; got {type(lent.model).__name__}")
    wanted = (layers,) if isinstance(layers, str) else None if layers is None else tuple(layers)
    check.check_count(OP, "samples", samples, 8)
    check.check_count(OP, "batch_size", batch_size)
    check.check_seed(OP, seed)
    if eps is None:
        eps = 8 / 255 * (lent.bounds[1] - lent.bounds[0])
    check.check_radius(OP, "eps", eps)
    check.check_inside(OP, "eps", eps, "linf", lent.bounds)
    with bar(progress, OP, None) as tick, torch.random.fork_rng(devices=[]):
        done = 0

        def count(seen: int) -> None:
            if tick is not None:
                tick(done + seen, None)

        seen = []
        for data, learning in ((train, True), (validation, False)):
            one = look(
                lent,
                untrained,
                wanted,
                data,
                learning=learning,
                eps=eps,
                samples=samples,
                batch_size=batch_size,
                seed=seed,
                tick=count,
            )
            done += len(one.y)
            seen.append(one)
        ran = seen[1].layers
        modules = dict(lent.model.named_modules())
        initial = dict(untrained.named_modules()) if untrained is not None else {}
        about = Evidence(
            modules={name: modules[name] for name in ran},
            initial={name: initial[name] for name in ran} if initial else {},
            train=seen[0],
            validation=seen[1],
            thresholds=thresholds or Thresholds(),
            never_ran=tuple(name for name in with_weights(lent.model, wanted) if name not in ran),
            seed=seed,
        )
        findings = [finding for judge in _JUDGEMENTS for finding in judge(about)]
    return _result(about, findings)


def _unjudged(about: Evidence, findings: list[Finding]) -> list[str]:
    """What no judgement was made of, and has no note yet."""
    notes = []
    for kind in ("redundant", "overfit", "broken-link"):
        judged = {f.layer for f in findings if f.kind == kind}
        left = [repr(layer) for layer in about.layers if layer not in judged]
        if left:
            notes.append(f"{kind} could not be judged, as features are not finite: {', '.join(left)}")
    never = [repr(name) for name in about.never_ran]
    if never:
        notes.append(
            "not judged, as they were not called (the module around them may use their weights itself) or "
            f"their output has not the batch first: {', '.join(never)}"
        )
    again = [repr(name) for name in about.validation.repeated]
    if again:
        notes.append(f"of layers that ran several times, the first run was judged: {', '.join(again)}")
    return notes


def _result(about: Evidence, findings: list[Finding]) -> Diagnosis:
    order = {name: place for place, name in enumerate(about.layers)}
    findings.sort(key=lambda f: (-SEVERITIES.index(f.severity), order[f.layer], KINDS.index(f.kind)))
    accuracies = {
        name: float((seen.logits.argmax(1) == seen.y).double().mean())
        for name, seen in (("train", about.train), ("validation", about.validation))
    }
    return Diagnosis(
        layers=about.layers,
        described=tuple(described(about.modules[name]) for name in about.layers),
        measures={
            name: tuple(values.get(layer, float("nan")) for layer in about.layers)
            for name, values in about.measures.items()
        },
        findings=tuple(findings),
        samples={"train": len(about.train.y), "validation": len(about.validation.y)},
        accuracy=accuracies | {f"validation, {k}": v for k, v in about.validation.accuracy.items()},
        notes=(*about.notes, *_unjudged(about, findings)),
    )
