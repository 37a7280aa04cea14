"""Training on labels that mean nothing: who still predicts them has seen the validation set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
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
    reseed,
    trial,
)
from brittle.diagnosis.checks.verdict import Verdict

Labelled = tuple[Tensor, Tensor]
#: The caller's own training, in place: ``fit(model, train, validation)``.
Fit = Callable[[nn.Module, Labelled, Labelled], object]


@dataclass(frozen=True)
class ShuffledLabels(Verdict):
    """Accuracies of copies trained on true and on shuffled labels.

    Attributes:
        true_accuracy: on the validation samples, after training on the true labels.
        shuffled_accuracy: on the same with labels shuffled like those of the training, mean of the runs.
        chance: the accuracy of the same predictions for labels that they know nothing of.
        p_leak: how often chance alone gives the shuffled runs' accuracy or more.
        p_learns: how often a model that learns nothing beats the shuffled runs as the true one did.
        shuffled_training_accuracy: on the training samples: how much of mere noise was learnt by heart.
        true_training_accuracy: the same after training on the true labels.
        samples: distinct validation samples that the tests count.
        level: the rate of false alarms asked for.
    """

    true_accuracy: float
    shuffled_accuracy: float
    chance: float
    p_leak: float
    p_learns: float
    shuffled_training_accuracy: float
    true_training_accuracy: float
    samples: int
    level: float

    def _figures(self) -> list[str]:
        return [
            f"{'labels':<12}{'training':>10}{'validation':>12}{'chance':>9}{'p':>10}",
            f"{'true':<12}{self.true_training_accuracy:>10.2%}{self.true_accuracy:>12.2%}{'':>9}"
            f"{self.p_learns:>10.2g}",
            f"{'shuffled':<12}{self.shuffled_training_accuracy:>10.2%}{self.shuffled_accuracy:>12.2%}"
            f"{self.chance:>9.2%}{self.p_leak:>10.2g}",
        ]


def shuffled_labels(
    model: Untrained,
    train: Data,
    validation: Data,
    *,
    fit: Fit | None = None,
    optimizer: MakeOptimizer | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
    shuffles: int = 2,
    level: float = 0.01,
    epochs: int = 10,
    batch_size: int = 64,
    seed: int = 0,
) -> ShuffledLabels:
    """Train once on the true labels and some times on shuffled ones, and compare with chance.

    The labels of both splits are shuffled together, equal samples keeping equal labels. Predictions for
    samples that the training has not seen are then right no more often than chance; if they are, the
    validation set leaks: its samples are in the training set, or the training looks at its labels (to choose
    an epoch, say). And a training on true labels whose validation accuracy is no better than that of the
    shuffled runs has learnt nothing.

    Both are exact tests of counts. Above chance: the number of right predictions against a binomial
    distribution, whose rate is what the frequencies of predictions and labels give when they are independent;
    distinct samples count once. Nothing learnt: Fisher's exact test of the two accuracies. On data that do
    not leak the first is a false alarm with a probability of at most about ``level`` over all shuffles
    together (of 400 made-up data sets 0 % at 0.01, 2.8 % at 0.05). The second errs the other way: it fires
    unless learning is shown at ``level``, which takes some 50 samples.

    Near-duplicates that are not equal keep no common label unless ``groups`` says so; see
    :func:`brittle.diagnosis.near_duplicates`. Inputs that hold the label are not found either: shuffling
    breaks that bond too.

    Args:
        model: untrained: a module, of which copies are trained, or a function that makes one (torch's random
            state is seeded before it is called).
        train: a pair of tensors ``(x, y)`` or an iterable of batches; held in memory.
        validation: the same.
        fit: your own training, ``fit(model, train, validation)``, both pairs of tensors; it trains in place.
            By default ``epochs`` of ``optimizer`` on cross-entropy.
        optimizer: makes one of parameters; by default Adam on one cycle of the learning rate up to 3e-3.
        groups: integers ``[N]`` for train and for validation, such as patients: samples of one group keep one
            label. By default equal inputs are a group.
        shuffles: runs on shuffled labels.
        level: of both tests, between 0 and 1.
        epochs, batch_size: of the default training.
        seed: of everything random.

    Returns:
        Accuracies, p-values and the verdict.

    Raises:
        ValueError: data, model or groups do not fit, an argument is out of range, or there are no samples.

    References:
        Ojala & Garriga, "Permutation Tests for Studying Classifier Performance", JMLR 11, 2010.
        Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017.

    Example:
        >>> import torch
        >>> from brittle.diagnosis import checks
        >>> x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
        >>> data = x, (x[:, 0] > 0).long()
        >>> model = torch.nn.Linear(10, 2)
        >>> train, validation = (x[:100], data[1][:100]), (x[100:], data[1][100:])
        >>> make = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
        >>> checks.shuffled_labels(model, train, validation, optimizer=make).ok
        True
    """
    op = "shuffled_labels"
    check.check_count(op, "shuffles", shuffles)
    check.check_count(op, "epochs", epochs)
    check.check_count(op, "batch_size", batch_size)
    if not 0 < level < 1:
        raise ValueError(f"{op}: level must be between 0 and 1; got {level}")
    with trial(op, model, seed):
        first = fresh(op, model)
        x, y, _ = all_samples(op, train, first)
        held_out, truth, _ = all_samples(op, validation, first)
        count = len(x)
        together = torch.cat([y, truth])
        check_classes(op, together, _training.evaluated(op, first, x[:2]).shape[1])
        group = _groups(op, x, held_out, groups)
        # Of several validation samples of one group, the first one counts.
        counted = _first_of_each(group[count:])

        def run(labels: Tensor, number: int) -> tuple[float, int, float]:
            """Training accuracy, right validation samples, and how many of them chance would give."""
            reseed(model, seed + number)
            copied = fresh(op, model)
            own = labels[:count]
            if fit is None:
                _training.fit(
                    op,
                    copied,
                    x,
                    own,
                    epochs=epochs,
                    batch_size=batch_size,
                    seed=seed + number,
                    optimizer=optimizer,
                )
            else:
                fit(copied, (x, own), (held_out, labels[count:]))
            learnt = float((_training.evaluated(op, copied, x).argmax(1) == own).double().mean())
            predicted = _training.evaluated(op, copied, held_out)[counted].argmax(1)
            actual = labels[count:][counted]
            return learnt, int((predicted == actual).sum()), _agreement(predicted, actual)

        true_learnt, true_right, _ = run(together, 0)
        runs = [run(_shuffled(together, group, seed, k), k) for k in range(1, shuffles + 1)]
    samples = len(counted)
    right = sum(matches for _, matches, _ in runs)
    chance = sum(rate for _, _, rate in runs) / shuffles
    p_leak, p_learns = _p_values(right, true_right, samples, shuffles, chance)
    problems = []
    if p_leak <= level:
        problems.append(
            f"trained on shuffled labels, {right / (samples * shuffles):.1%} of them are predicted on the "
            f"validation set where chance gives {chance:.1%} (p = {p_leak:.2g}): samples of it are in the "
            "training set, or the training looks at its labels"
        )
    if p_learns > level:
        problems.append(
            f"trained on true labels, {true_right / samples:.1%} are predicted, which is no better than "
            f"{right / (samples * shuffles):.1%} on shuffled ones (p = {p_learns:.2g}): nothing is learnt; "
            "usually inputs and labels do not belong together, or nothing is trained"
        )
    return ShuffledLabels(
        problems=tuple(problems),
        notes=(),
        true_accuracy=true_right / samples,
        shuffled_accuracy=right / (samples * shuffles),
        chance=chance,
        p_leak=p_leak,
        p_learns=p_learns,
        shuffled_training_accuracy=sum(learnt for learnt, _, _ in runs) / shuffles,
        true_training_accuracy=true_learnt,
        samples=samples,
        level=level,
    )


def _groups(op: str, x: Tensor, held_out: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
    """The group of each sample of both splits, 0, 1, ..."""
    if given is None:
        if x.shape[1:] != held_out.shape[1:]:
            raise ValueError(
                f"{op}: validation must hold samples of train's shape {list(x.shape[1:])}; "
                f"got {list(held_out.shape[1:])}"
            )
        return _numbered(torch.cat([x, held_out]).flatten(1))
    for part, rows, name in zip(given, (x, held_out), ("train", "validation"), strict=True):
        if not isinstance(part, Tensor) or part.is_floating_point() or part.shape != rows.shape[:1]:
            got = f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{op}: groups of {name} must be integers [N] with N = {len(rows)}; got {got}")
    every = torch.cat([part.to(x.device) for part in given])
    return _numbered(every)


def _numbered(rows: Tensor) -> Tensor:
    """Equal rows have equal numbers, from 0."""
    number: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return number


def _first_of_each(group: Tensor) -> Tensor:
    """The first row of every group, ascending."""
    order = group.argsort(stable=True)
    ordered = group[order]
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return order[begins].sort().values


def _shuffled(labels: Tensor, group: Tensor, seed: int, number: int) -> Tensor:
    """The groups' labels, each that of its first sample, in another order."""
    generator = torch.Generator().manual_seed((seed + 1_000_003 * number) % 2**63)
    own = labels[_first_of_each(group)]
    order = torch.randperm(len(own), generator=generator).to(labels.device)
    # Rows of the first samples come in another order than the groups' numbers; any bijection will do.
    return own[order][group]


def _agreement(predicted: Tensor, actual: Tensor) -> float:
    """How often two independent labellings of these frequencies agree."""
    classes = int(max(predicted.max(), actual.max())) + 1
    counts = [torch.bincount(part, minlength=classes).double() / len(part) for part in (predicted, actual)]
    return float((counts[0] * counts[1]).sum())


def _p_values(right: int, true_right: int, samples: int, shuffles: int, chance: float) -> tuple[float, float]:
    from scipy.stats import binom, fisher_exact

    trials = samples * shuffles
    table = [[true_right, samples - true_right], [right, trials - right]]
    better = fisher_exact(table, alternative="greater").pvalue
    return float(binom.sf(right - 1, trials, chance)), float(better)
