"""What an evaluation keeps of every sample: the tables that the views read.

Tensors are on the CPU, samples in ascending order of their ids; N samples, C classes, K radii.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from brittle.evaluation.scores import Answers, answers, concatenate


def blocks(samples: int, size: int = 4096) -> Iterator[slice]:
    """Slices that cover so many rows: 4096 rows of a thousand classes are 32 MB in double precision."""
    return (slice(start, start + size) for start in range(0, samples, size))


@dataclass(frozen=True)
class Condition:
    """The model's answers to altered samples.

    Attributes:
        kind: how they were altered, such as ``"gaussian"``, or the attack.
        level: severity from 1, or the index of the radius from 1.
        scale: what the severity stands for: the scale of the noise, or the radius.
        seed: of the noise or of the attack.
        predicted: int64 ``[N]``.
        confidence: float64 ``[N]``, probability of the predicted class.
        log_loss: float64 ``[N]``, of the label.
    """

    kind: str
    level: int
    scale: float
    seed: int
    predicted: Tensor
    confidence: Tensor
    log_loss: Tensor


@dataclass(frozen=True)
class AttackRows:
    """The verdicts of one attack in one norm.

    Attributes:
        attack: ``"fgsm"`` (a single step, in any norm), ``"pgd"``, ``"minimal"`` or ``"random"``.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        text: the attack and its settings.
        seed: of its random starts.
        epsilons: K radii, ascending and > 0.
        fooled: bool ``[K, N]``, misclassified within each radius; samples that are wrong without an attack
            count.
        distance: float64 ``[N]``, of the nearest adversarial point found: 0 where the clean sample is wrong,
            infinite where none was found.
        zero_gradient, nonfinite_gradient, stalled, cycled: bool ``[N]``, as in
            :class:`brittle.AttackResult`.
        forwards, backwards: int64 ``[N]``, evaluations of the model spent.
    """

    attack: str
    norm: str
    text: str
    seed: int
    epsilons: tuple[float, ...]
    fooled: Tensor
    distance: Tensor
    zero_gradient: Tensor
    nonfinite_gradient: Tensor
    stalled: Tensor
    cycled: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class Landscape:
    """Losses around samples, over the plane of a gradient direction g and a random direction r.

    Attributes:
        ids: int64 ``[n]``.
        losses: float32 ``[n, G, G]``: ``losses[i, a, b]`` at ``x + alphas[a] * g + alphas[b] * r``.
        alphas: the G steps along each direction.
    """

    ids: Tensor
    losses: Tensor
    alphas: tuple[float, ...]


@dataclass(frozen=True)
class SetRows:
    """One named data set, and what the model made of it.

    Attributes:
        name: of the set.
        ids: int64 ``[N]``.
        label: int64 ``[N]``; -1 throughout for a set without labels.
        logits: float32 ``[N, C]``.
        features: float32 ``[N, D]``, or None where the model's features are not known.
        groups: the segment of every sample, or None.
        classes: C names.
        names: of the N samples.
        conditions: answers to altered samples.
        attacks: verdicts of attacks.
        skipped: name and reason of each sample that could not be read.
        landscape: losses around some samples, or None.
    """

    name: str
    ids: Tensor
    label: Tensor
    logits: Tensor
    features: Tensor | None
    groups: tuple[str, ...] | None
    classes: tuple[str, ...]
    names: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    attacks: tuple[AttackRows, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    landscape: Landscape | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        """Whether its samples have labels."""
        return not bool((self.label < 0).any())

    @cached_property
    def answers(self) -> Answers:
        """What the model says to the samples as they are; of the label 0 where there is none."""
        labels = self.label.clamp(min=0)
        return concatenate([answers(self.logits[part], labels[part]) for part in blocks(len(self))])


@dataclass(frozen=True)
class Duplicates:
    """What a search for near-duplicates between two sets found.

    Attributes:
        train, test: names of the sets.
        suspects: how many samples of ``test`` have a near-duplicate in ``train``.
        samples: how many of ``test`` were searched for.
        threshold: the cosine from which on a pair is suspect.
        pairs: id in test, id in train, cosine and p-value, most alike first.
    """

    train: str
    test: str
    suspects: int
    samples: int
    threshold: float
    pairs: tuple[tuple[int, int, float, float], ...]


@dataclass(frozen=True)
class RunRows:
    """Everything a report is made of.

    Attributes:
        sets: at least one, the main one first; samples of noise, made for comparison, form one without labels
            that is called ``"uniform noise"``.
        settings: of the run, as in ``report.json``.
        duplicates: searches between the sets.
    """

    sets: tuple[SetRows, ...]
    settings: dict[str, Any]
    duplicates: tuple[Duplicates, ...] = ()

    @property
    def main(self) -> SetRows:
        """The set that is attacked."""
        return self.sets[0]
