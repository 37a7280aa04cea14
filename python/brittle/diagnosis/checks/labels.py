"""Wrong labels by a model's own answers: confident learning, and the highest losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from brittle import _checks as check
from brittle.data import Data
from brittle.diagnosis.checks import _training
from brittle.diagnosis.checks._trial import (
    MakeOptimizer,
    Untrained,
    all_samples,
    check_classes,
    fresh,
    require_module,
    reseed,
    trial,
)
from brittle.diagnosis.checks.suspects import LabelRanking, ranked


def highest_losses(model: nn.Module, data: Data, *, batch_size: int = 1024) -> LabelRanking:
    """Rank samples by the cross-entropy of a trained model, the highest first: the ones to look at.

    On data that the model was not trained on, wrong labels are among the first. On its own training data they
    may have been learnt by heart; there :func:`area_under_margin` finds more. No threshold is given, so
    nobody is accused.

    Args:
        model: trained, mapping inputs to logits ``[N, C]``; asked in evaluation mode and left as it was.
        data: a pair of tensors ``(x, y)`` or an iterable of batches, with ids or not; held in memory.
        batch_size: samples in one pass of the model.

    Returns:
        The ranking; scores are minus the loss.

    Raises:
        ValueError: data or model does not fit, or there are no samples.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> model = torch.nn.Identity()  # three samples that are logits themselves
        >>> x, y = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 2.0]]), torch.tensor([0, 0, 1])
        >>> checks.highest_losses(model, (x, y)).ids.tolist()
        [1, 2, 0]
    """
    op = "highest_losses"
    require_module(op, model)
    check.check_count(op, "batch_size", batch_size)
    with trial(op, model, 0):
        x, y, ids = all_samples(op, data, model)
        logits = _training.evaluated(op, fresh(op, model), x, batch_size)
    check_classes(op, y, logits.shape[1])
    losses = F.cross_entropy(logits.double(), y, reduction="none")
    return ranked("highest loss", "minus loss", ids, -losses, y, logits.argmax(1))


def cross_validated_probabilities(
    model: Untrained,
    data: Data,
    *,
    folds: int = 5,
    epochs: int = 10,
    optimizer: MakeOptimizer | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Tensor:
    """Each sample's class probabilities from a copy that was trained on the other folds.

    Args:
        model: untrained: a module, of which copies are trained, or a function that makes one (torch's random
            state is seeded before it is called).
        data: a pair of tensors ``(x, y)`` or an iterable of batches; held in memory.
        folds: at least 2; classes are spread evenly over them.
        epochs: of training on cross-entropy.
        optimizer: makes one of parameters; by default Adam on one cycle of the learning rate up to 3e-3.
        batch_size: samples.
        seed: of everything random.

    Returns:
        float64 ``[N, C]`` on the CPU, in the order of the data.

    Raises:
        ValueError: data or model does not fit, or has fewer samples than folds.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> y = torch.arange(90) % 3
        >>> make = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        >>> model, data = torch.nn.Linear(3, 3), (torch.eye(3)[y], y)
        >>> p = checks.cross_validated_probabilities(model, data, optimizer=make)
        >>> bool((p.argmax(1) == y).all())
        True
    """
    op = "cross_validated_probabilities"
    check.check_count(op, "folds", folds, 2)
    check.check_count(op, "epochs", epochs)
    check.check_count(op, "batch_size", batch_size)
    with trial(op, model, seed):
        first = fresh(op, model)
        x, y, _ = all_samples(op, data, first)
        if len(x) < folds:
            raise ValueError(f"{op}: data must hold a sample for each of {folds} folds; got {len(x)}")
        fold = _folds(y, folds, seed).to(x.device)
        held_out = torch.zeros(0)
        for number in range(folds):
            reseed(model, seed + number)
            copied = fresh(op, model)
            rest, left = fold != number, fold == number
            _training.fit(
                op,
                copied,
                x[rest],
                y[rest],
                epochs=epochs,
                batch_size=batch_size,
                seed=seed + number,
                optimizer=optimizer,
            )
            p = _training.evaluated(op, copied, x[left]).double().softmax(1)
            if not number:
                check_classes(op, y, p.shape[1])
                held_out = p.new_zeros(len(x), p.shape[1])
            held_out[left] = p
    return held_out.cpu()


def confident_learning(
    labels: Tensor, probabilities: Tensor, *, ids: Tensor | None = None, **options: object
) -> LabelRanking:
    """Find wrong labels by confident learning: cleanlab's ``find_label_issues``, in its own terms.

    A sample is counted as of a class if its probability of it is above the mean of that of the samples
    labelled so; from the counts comes how many labels of each class are wrong, and which.

    Needs cleanlab: ``pip install brittle[labels]``.

    Args:
        labels: int64 ``[N]``, in ``[0, C)``, each class at least once.
        probabilities: ``[N, C]``, from models that were not trained on the sample, such as
            :func:`cross_validated_probabilities` gives.
        ids: int64 ``[N]``; by default 0 .. N - 1.
        options: for ``cleanlab.filter.find_label_issues``, such as ``filter_by="both"``.

    Returns:
        The ranking by cleanlab's label quality (self-confidence: the probability of the label given), and as
        suspects what cleanlab names.

    Raises:
        ImportError: cleanlab is not installed.
        ValueError: an argument does not fit.

    References:
        Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70,
        2021 (arXiv:1911.00068).

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> y = torch.arange(60) % 3
        >>> p = 0.9 * torch.eye(3)[y] + 0.1 / 3
        >>> y[0] = 1  # the model says 0
        >>> checks.confident_learning(y, p).suspects.tolist()
        [0]
    """
    op = "confident_learning"
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise ImportError(f"{op}: cleanlab must be installed: pip install brittle[labels]") from error
    fits = isinstance(probabilities, Tensor) and probabilities.dim() == 2 and probabilities.shape[1] > 1
    if not fits or not probabilities.is_floating_point() or not len(probabilities):
        got = list(probabilities.shape) if isinstance(probabilities, Tensor) else type(probabilities).__name__
        raise ValueError(f"{op}: probabilities must be [N, C] with N >= 1, C >= 2; got {got}")
    given, p = labels.cpu(), probabilities.detach().double().cpu()
    check.check_labels(op, given, p)
    check_classes(op, given, p.shape[1])
    if not bool((p >= 0).all()) or not bool(((p.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(f"{op}: probabilities must be >= 0 and sum to 1 for each sample")
    names = check.check_sample_ids(op, None if ids is None else ids.cpu(), p)
    # One process: the default starts as many as there are cores.
    settings = {"n_jobs": 1, **options}
    found = torch.from_numpy(find_label_issues(given.numpy(), p.numpy(), **settings))
    suspected = found if found.dtype == torch.bool else torch.isin(torch.arange(len(p)), found)
    quality = torch.from_numpy(get_label_quality_scores(given.numpy(), p.numpy()))
    return ranked(
        "confident learning (cleanlab)",
        "label quality",
        names,
        quality,
        given,
        p.argmax(1),
        suspected=suspected,
    )


def _folds(y: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each sample: every class is dealt out in random order, one fold after the other."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed % 2**63))
    order = order[y.cpu()[order].argsort(stable=True)]
    fold = torch.empty(len(y), dtype=torch.int64)
    fold[order] = torch.arange(len(y)) % folds
    return fold
