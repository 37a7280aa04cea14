"""Accuracy and calibration over the kind and the severity of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.data import Data, Samples, batches, known_length
from brittle.evaluation.scores import Answers, Scores, answers, concatenate
from brittle.noise.functional import apply
from brittle.target import Model, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)

#: The five severities of the image-corruption benchmark (its impulse noise is salt and pepper); uniform and
#: Laplace noise, which it does not have, at the standard deviations of its Gaussian.
SEVERITIES: Mapping[str, tuple[float, ...]] = {
    "gaussian": _GAUSSIAN,
    "shot": (60.0, 25.0, 12.0, 5.0, 3.0),
    "salt_and_pepper": (0.03, 0.06, 0.09, 0.17, 0.27),
    "speckle": (0.15, 0.2, 0.35, 0.45, 0.6),
    "uniform": tuple(math.sqrt(3) * sigma for sigma in _GAUSSIAN),
    "laplace": tuple(sigma / math.sqrt(2) for sigma in _GAUSSIAN),
}
_KINDS = (*SEVERITIES, "dropout")


@dataclass(frozen=True)
class Level:
    """The model's scores at one severity (from 1; 0 is clean) of one kind of noise."""

    kind: str
    severity: int
    scale: float
    scores: Scores


@dataclass(frozen=True)
class NoiseSweep:
    """Scores for every kind and severity, and the verdict on every sample behind them.

    Attributes:
        levels: K levels, the clean one (kind ``"clean"``) first.
        correct: bool ``[K, N]``, on the CPU: whether the model is right on each sample at each level.
        sample_ids: int64 ``[N]``.
    """

    levels: tuple[Level, ...]
    correct: Tensor
    sample_ids: Tensor

    @property
    def clean(self) -> Level:
        """The level without noise."""
        return self.levels[0]

    @property
    def kinds(self) -> tuple[str, ...]:
        """In the order they were asked for."""
        return tuple(dict.fromkeys(level.kind for level in self.levels[1:]))

    def of(self, kind: str) -> tuple[Level, ...]:
        """The levels of one kind, severity 1 first."""
        return tuple(level for level in self.levels[1:] if level.kind == kind)

    def table(self) -> str:
        """The sweep as text, a line for each level."""
        lines = [f"{'noise':<16}{'severity':>8}{'scale':>9}  accuracy  log-loss  confidence      ECE"]
        for level in self.levels:
            s = level.scores
            lines.append(
                f"{level.kind:<16}{level.severity:>8}{level.scale:>9.4g}  {s.accuracy:>8.2%}"
                f"  {s.log_loss:>8.4f}  {s.confidence:>10.2%}  {s.ece:>7.4f}"
            )
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy over severity with matplotlib, one line a kind; returns the axes."""
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        for kind in self.kinds:
            levels = (self.clean, *self.of(kind))
            ax.plot(
                [level.severity for level in levels],
                [100 * level.scores.accuracy for level in levels],
                marker="o",
                label=kind.replace("_", " "),
            )
        ax.set(xlabel="severity (0: clean)", ylabel="accuracy (%)", ylim=(-2, 102))
        ax.legend()
        return ax


def noise_sweep(
    model: Model,
    data: Data | Samples,
    kinds: Sequence[str] = tuple(SEVERITIES),
    severities: Mapping[str, Sequence[float]] | None = None,
    *,
    batch_size: int = 256,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> NoiseSweep:
    """Accuracy, log-loss, confidence and calibration of ``model`` under noise, in one run over the data.

    A sample meets the noise of :mod:`brittle.noise` for its id with this seed and ``draw=0``, at every
    severity the same random numbers: what differs between two severities is the severity alone. The model
    is given back as it was (see :func:`brittle.fgsm`).

    Args:
        model: an ``nn.Module`` or a callable that maps inputs to logits ``[N, C]``.
        data: a pair of tensors ``(x, y)``, or an iterable of batches ``(x, y)`` or ``(x, y, sample_ids)``, as
            for :func:`accuracy_vs_epsilon`.
        kinds: any of ``"gaussian"``, ``"shot"``, ``"salt_and_pepper"``, ``"speckle"``, ``"uniform"``,
            ``"laplace"`` and ``"dropout"``.
        severities: for a kind, the scales of its levels, mildest first, in place of :data:`SEVERITIES` (which
            are made for inputs in [0, 1], and have none for dropout).
        batch_size: for a pair of tensors.
        bounds: the smallest and the largest value of the inputs, with and without noise.
        seed: of the noise, 64 bits.
        progress: called after every batch with the samples done and their total (None if not known).

    Returns:
        The sweep.

    Raises:
        ValueError: an unknown kind; severities of a kind that was not asked for, missing or out of range; a
            batch that does not fit.

    References:
        Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
        perturbations", ICLR 2019.

    Example:
        >>> import torch, brittle
        >>> model = torch.nn.Linear(4, 2)
        >>> x = torch.rand(64, 4)
        >>> y = model(x).argmax(1)
        >>> sweep = brittle.evaluation.noise_sweep(model, (x, y), kinds=("gaussian", "shot"))
        >>> sweep.clean.scores.accuracy, len(sweep.of("shot"))
        (1.0, 5)
    """
    op = "noise_sweep"
    check.check_count(op, "batch_size", batch_size)
    check.check_seed(op, seed)
    plan = _plan(op, kinds, severities, bounds)
    collected: list[list[Answers]] = [[] for _ in range(1 + len(plan))]
    all_ids: list[Tensor] = []
    done, total = 0, known_length(data)
    with Target.of(model, op) as target:
        for x, y, ids in batches(op, data, batch_size, target):
            check.check_images(op, x, bounds, ids)
            check.check_labels(op, y, x)
            check.check_device(op, x, target)
            if len(x) == 0:
                continue
            target.expect_labels(y)
            collected[0].append(answers(target.logits(x, ids), y))
            noisy = torch.empty_like(x)
            for rows, (kind, _, scale) in zip(collected[1:], plan, strict=True):
                apply(op, "severities", x, kind, scale, seed, ids, 0, bounds, out=noisy)
                rows.append(answers(target.logits(noisy, ids), y))
            all_ids.append(ids.cpu())
            done += len(x)
            if progress is not None:
                progress(done, total)
    results = [concatenate(rows) for rows in collected]
    levels = [
        Level(kind, severity, scale, result.scores())
        for (kind, severity, scale), result in zip([("clean", 0, 0.0), *plan], results, strict=True)
    ]
    return NoiseSweep(
        tuple(levels),
        torch.stack([result.correct for result in results]),
        torch.cat(all_ids) if all_ids else torch.zeros(0, dtype=torch.int64),
    )


def _plan(
    op: str,
    kinds: Sequence[str],
    severities: Mapping[str, Sequence[float]] | None,
    bounds: tuple[float, float],
) -> list[tuple[str, int, float]]:
    """(kind, severity, scale) of every level but the clean one, checked."""
    given = dict(severities or {})
    if isinstance(kinds, str) or len(set(kinds)) != len(kinds):
        raise ValueError(f"{op}: kinds must be a sequence of different names; got {kinds!r}")
    for kind in kinds:
        check.check_choice(op, "kinds", kind, _KINDS)
    if unasked := sorted(given.keys() - set(kinds)):
        raise ValueError(f"{op}: severities must be of the kinds {tuple(kinds)}; got {unasked[0]!r}")
    plan = []
    for kind in kinds:
        if kind not in given and (kind not in SEVERITIES or bounds != (0.0, 1.0)):
            raise ValueError(
                f"{op}: severities must hold {kind!r}: there are no defaults for it with bounds {bounds}"
            )
        scales = given.get(kind, SEVERITIES.get(kind, ()))
        if not scales:
            raise ValueError(f"{op}: severities of {kind!r} must hold at least one value; got none")
        for severity, scale in enumerate(scales, 1):
            # The kernel's own checks, before any work.
            apply(op, f"severities of {kind!r}", torch.zeros(1, 1), kind, scale, bounds=bounds)
            plan.append((kind, severity, float(scale)))
    return plan
