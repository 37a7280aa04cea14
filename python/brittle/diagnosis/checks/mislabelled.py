"""A training run of its own that finds mislabelled samples by the area under their margins."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from brittle import _checks as check
from brittle._folding import deep_copy
from brittle.data import Data
from brittle.diagnosis.checks import _training
from brittle.diagnosis.checks._trial import (
    MakeOptimizer,
    all_samples,
    check_classes,
    fresh,
    require_module,
    reseed,
    trial,
)
from brittle.diagnosis.checks.margins import AreaUnderMargin
from brittle.diagnosis.checks.suspects import LabelRanking, ranked
from brittle.target import Target

_FITTED = 0.8  # of the labels: less, and margins tell more of the network than of the samples


def area_under_margin(
    model: nn.Module | Callable[[int], nn.Module],
    data: Data,
    *,
    classes: int | None = None,
    epochs: int = 10,
    optimizer: MakeOptimizer | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> LabelRanking:
    """Train a network to find samples whose labels are wrong, with a threshold from fake labels.

    As in the paper: N / (C + 1) samples, chosen at random, are given a class C + 1 that nothing belongs to. A
    wrong label is as hard to learn as theirs, so samples whose area under the margin is no more than the 99th
    percentile of these are suspects. A second run with other threshold samples screens those of the first. A
    sample screened in both counts by its mean distance from the two thresholds, which is what the ranking's
    scores are: at most 0 for suspects.

    On clean data some samples, the hardest ones, are suspects too: they are to be looked at, not to be thrown
    away unseen.

    Args:
        model: untrained: a module, of which copies are trained after their last linear layer was replaced by
            one with an output more; or a function that makes a module with so many outputs (torch's random
            state is seeded before it is called).
        data: a pair of tensors ``(x, y)`` or an iterable of batches, with ids or not; held in memory.
        classes: C; by default the module's outputs, or the largest label and one.
        epochs: at a constant rate; many more let the network learn wrong labels by heart, and what tells them
            apart fades.
        optimizer: makes one of parameters; by default the paper's SGD: rate 0.1, momentum 0.9, weight decay
            1e-4. A transformer may need another.
        batch_size: samples.
        seed: of everything random.

    Returns:
        The ranking, with threshold 0; ``suggested`` is what the sample was taken for in the last epoch.

    Raises:
        ValueError: data or model does not fit, has too few samples, or has no last linear layer to widen.

    References:
        Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020
        (arXiv:2001.10528).

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> draw = torch.Generator().manual_seed(0)
        >>> y = torch.arange(300) % 3
        >>> x = 3 * torch.eye(3)[y] + 0.5 * torch.randn(300, 3, generator=draw)
        >>> y[:6] = (y[:6] + 1) % 3
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> sorted(checks.area_under_margin(model, (x, y)).ids[:6].tolist())
        [0, 1, 2, 3, 4, 5]
    """
    op = "area_under_margin"
    check.check_count(op, "epochs", epochs)
    check.check_count(op, "batch_size", batch_size)
    if classes is not None:
        check.check_count(op, "classes", classes, 2)
    with trial(op, model, seed):
        x, y, ids = all_samples(op, data, model)
        if len(torch.unique(ids)) != len(ids):
            raise ValueError(f"{op}: sample ids must differ from each other")
        if classes is None and isinstance(model, nn.Module):
            classes = _training.evaluated(op, fresh(op, model), x[:2]).shape[1]
        elif classes is None:
            classes = int(y.max()) + 1
        check_classes(op, y, classes)
        some = len(x) // (classes + 1)
        if some < 2:
            raise ValueError(
                f"{op}: data must hold at least 2 (C + 1) = {2 * (classes + 1)} samples; got {len(x)}"
            )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**63))
        distance = torch.zeros(len(x), dtype=torch.float64)
        screened = torch.zeros(len(x), dtype=torch.int64)
        suggested = y.cpu().clone()
        for number in range(2):
            reseed(model, seed + number)
            if isinstance(model, nn.Module):
                made = _widened(op, model, classes, x[:2])
            else:
                made = model(classes + 1)
                require_module(op, made)
                device = Target.of(made, op).device or x.device
                x, y = x.to(device), y.to(device)
            fake = order[number * some : (number + 1) * some]
            margins, taken = _one_run(
                op, made, x, y, fake, classes, epochs, batch_size, optimizer, seed + number
            )
            ranking = margins.ranking(fake)
            distance[ranking.ids] += ranking.scores - ranking.threshold
            screened[ranking.ids] += 1
            suggested[ranking.ids] = taken[ranking.ids]
    fitted = float((suggested == y.cpu()).double().mean())
    notes: tuple[str, ...] = ()
    if fitted < _FITTED:
        notes = (
            f"only {fitted:.0%} of the labels are predicted after {epochs} epochs: train for longer, or with "
            "another optimizer, before this is believed",
        )
    return ranked(
        "area under the margin",
        "above threshold",
        ids,
        distance / screened,
        y,
        suggested,
        threshold=0.0,
        notes=notes,
    )


def _one_run(
    op: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    fake: Tensor,
    classes: int,
    epochs: int,
    batch_size: int,
    optimizer: MakeOptimizer | None,
    seed: int,
) -> tuple[AreaUnderMargin, Tensor]:
    """The margins of every row, those of ``fake`` trained on the class that does not exist; and the class
    that each row is taken for in the last epoch."""
    outputs = _training.evaluated(op, model, x[:2]).shape[1]
    if outputs != classes + 1:
        raise ValueError(f"{op}: the model must give {classes + 1} outputs; got {outputs}")
    given = y.clone()
    given[fake.to(y.device)] = classes
    margins = AreaUnderMargin()
    taken = y.clone()

    def record(rows: Tensor, logits: Tensor) -> None:
        margins.update(logits, given[rows], rows)
        taken[rows] = logits[:, :classes].argmax(1)

    _training.fit(
        op,
        model,
        x,
        given,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        optimizer=_sgd if optimizer is None else optimizer,
        record=record,
    )
    return margins, taken.cpu()


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def _widened(op: str, model: nn.Module, classes: int, x: Tensor) -> nn.Module:
    """A copy that gives one output more, from a new last layer."""
    copied = deep_copy(model)
    last: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        part.register_forward_hook(lambda module, args, output: last.append((module, output)))
        for part in copied.modules()
        if isinstance(part, nn.Linear) and part.out_features == classes
    ]
    logits = _training.evaluated(op, copied, x)
    for handle in handles:
        handle.remove()
    if not last or not torch.equal(last[-1][1].flatten(), logits.flatten()):
        raise ValueError(
            f"{op}: the model must end in an nn.Linear of {classes} outputs to be given one more; "
            "give a function that makes a model of so many outputs instead"
        )
    old = last[-1][0]
    new = nn.Linear(old.in_features, classes + 1, old.bias is not None).to(old.weight)
    for parent in copied.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
    if copied is old:
        return new
    copied.zero_grad(set_to_none=True)
    return copied
