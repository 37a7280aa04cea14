"""Accuracy over the size of the perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from brittle import _checks as check
from brittle import engine
from brittle.attacks.pgd import LinfRule, default_step_size
from brittle.evaluation.data import Data, batches
from brittle.ops import sign_sweep
from brittle.target import Model, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """Accuracy under attack at each epsilon, and the verdict on every sample behind it.

    Attributes:
        attack: ``"fgsm"`` or ``"pgd"``.
        epsilons: K values, as given.
        correct: bool ``[K, N]``, on the CPU: whether the model is still right on each sample.
        sample_ids: int64 ``[N]``.
        forwards, backwards: evaluations of the model spent, in samples.
    """

    attack: str
    epsilons: tuple[float, ...]
    correct: Tensor
    sample_ids: Tensor
    forwards: int
    backwards: int

    @property
    def accuracy(self) -> list[float]:
        """The share of samples still classified correctly, one for each epsilon; NaN without samples."""
        return (
            [float("nan")] * len(self.epsilons)
            if not self.samples
            else self.correct.double().mean(1).tolist()
        )

    @property
    def samples(self) -> int:
        """How many samples were evaluated."""
        return self.correct.shape[1]

    def table(self) -> str:
        """The curve as text, a line for each epsilon."""
        lines = [f"{'epsilon':>9}  accuracy under {self.attack}"]
        lines += [f"{e:9.4f}  {a:8.2%}" for e, a in zip(self.epsilons, self.accuracy, strict=True)]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the curve with matplotlib, on ``ax`` or on a new figure's; returns the axes."""
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        order = sorted(range(len(self.epsilons)), key=self.epsilons.__getitem__)
        ax.plot(
            [self.epsilons[k] for k in order],
            [100 * self.accuracy[k] for k in order],
            marker="o",
            label=self.attack.upper(),
        )
        ax.set(xlabel="epsilon (Linf)", ylabel="accuracy (%)", ylim=(-2, 102))
        return ax


def accuracy_vs_epsilon(
    model: Model,
    data: Data,
    epsilons: Sequence[float],
    attack: str = "fgsm",
    *,
    batch_size: int = 256,
    bounds: tuple[float, float] = (0.0, 1.0),
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Curve:
    """Accuracy of ``model`` under attack at every epsilon, in one run over the data.

    ``"fgsm"`` takes one gradient for all epsilons: 1 forward-backward and K forwards per sample. ``"pgd"``
    goes through the epsilons from small to large and attacks only samples that no smaller one fooled: a
    sample's adversarial point lies in every larger ball too, so its verdict there is known. The PGD curve
    therefore never rises; the FGSM curve may. Samples that the model already gets wrong count as wrong
    throughout. The model is given back as it was (see :func:`brittle.fgsm`).

    Args:
        model: an ``nn.Module`` or a callable that maps inputs to logits ``[N, C]``.
        data: a pair of tensors ``(x, y)``, or an iterable of batches ``(x, y)`` such as a DataLoader. Batches
            may carry int64 sample ids as a third item; otherwise samples are numbered as they come, and a
            shuffling loader then gives each sample another random start every time. Batches are moved
            to the model's device.
        epsilons: K radii of the Linf ball, finite and >= 0, in any order.
        attack: ``"fgsm"`` or ``"pgd"``.
        batch_size: for a pair of tensors.
        bounds: the smallest and the largest value of the inputs.
        steps, step_size, restarts, random_start, seed: of PGD, as for :func:`brittle.pgd`.
        progress: called after every batch with the samples done and their total (None if not known).

    Returns:
        The curve.

    Raises:
        ValueError: no epsilons, or an argument or a batch that the attack refuses.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 2)
        >>> x = torch.rand(64, 4)
        >>> y = model(x).argmax(1)
        >>> curve = brittle.evaluation.accuracy_vs_epsilon(model, (x, y), [0.0, 0.1], attack="pgd", steps=5)
        >>> curve.accuracy[0], curve.accuracy[1] <= 1.0
        (1.0, True)
    """
    op = "accuracy_vs_epsilon"
    check.check_choice(op, "attack", attack, ("fgsm", "pgd"))
    values = tuple(float(e) for e in epsilons)
    if not values:
        raise ValueError(f"{op}: epsilons must hold at least one value; got none")
    for eps in values:
        check.check_scalar(op, "epsilons", eps)
    if step_size is not None:
        check.check_scalar(op, "step_size", step_size)
    check.check_count(op, "batch_size", batch_size)
    check.check_schedule(op, steps, restarts, random_start)
    check.check_seed(op, seed)
    settings = _Settings(values, bounds, steps, step_size, restarts, random_start, seed)
    correct, all_ids = [], []
    done = forwards = backwards = 0
    total = len(data[0]) if isinstance(data, tuple) else None
    with Target(model, op) as target:
        for x, y, ids in batches(op, data, batch_size, target):
            check.check_images(op, x, bounds)
            check.check_labels(op, y, x)
            check.check_device(op, x, target)
            if len(x) == 0:
                continue
            target.expect_labels(y)
            before = target.forwards, target.backwards
            attacked = _fgsm_correct if attack == "fgsm" else _pgd_correct
            correct.append(attacked(target, x, y, ids, settings).cpu())
            forwards += target.forwards - before[0]
            backwards += target.backwards - before[1]
            all_ids.append(ids.cpu())
            done += len(x)
            if progress is not None:
                progress(done, total)
    return Curve(
        attack,
        values,
        torch.cat(correct, 1) if correct else torch.zeros(len(values), 0, dtype=torch.bool),
        torch.cat(all_ids) if all_ids else torch.zeros(0, dtype=torch.int64),
        forwards,
        backwards,
    )


@dataclass(frozen=True)
class _Settings:
    epsilons: tuple[float, ...]
    bounds: tuple[float, float]
    steps: int
    step_size: float | None
    restarts: int
    random_start: bool
    seed: int


def _fgsm_correct(target: Target, x: Tensor, y: Tensor, ids: Tensor, settings: _Settings) -> Tensor:
    """Whether each sample is still right after one step of each length, bool [K, N]."""
    clean = target.evaluate(x, y, ids)
    assert clean.gradient is not None
    right = clean.logits.argmax(1) == y
    stack = sign_sweep(x, clean.gradient, settings.epsilons, settings.bounds)
    return torch.stack([right & (target.logits(adv, ids).argmax(1) == y) for adv in stack])


def _pgd_correct(target: Target, x: Tensor, y: Tensor, ids: Tensor, settings: _Settings) -> Tensor:
    """Whether each sample withstands PGD at each epsilon, bool [K, N]."""
    correct = torch.zeros(len(settings.epsilons), len(x), dtype=torch.bool, device=x.device)
    standing = (target.logits(x, ids).argmax(1) == y).nonzero().squeeze(1)
    for k in sorted(range(len(settings.epsilons)), key=settings.epsilons.__getitem__):
        eps = settings.epsilons[k]
        if eps > 0 and len(standing):
            given = settings.step_size
            step_size = default_step_size(eps, settings.steps) if given is None else given
            clean, labels, clean_ids = engine.take(x, standing), y[standing], ids[standing]
            rule = LinfRule(eps, step_size, settings.random_start, settings.seed, clean_ids, settings.bounds)
            fooled = engine.run(
                target,
                rule,
                clean,
                labels,
                clean_ids,
                steps=settings.steps,
                restarts=settings.restarts,
                known_right=True,
            ).fooled
            standing = standing[~fooled]
        correct[k, standing] = True
    return correct
