"""Stages that only ask the model: clean samples, shifted ones, the surroundings of some."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from brittle._files import clean_text
from brittle.evaluation.penultimate import capture_penultimate
from brittle.evaluation.run.store import Row
from brittle.evaluation.run.work import Stage, Work, Writer, answer_rows, away_from, refuse_outside
from brittle.evaluation.scores import answers
from brittle.evaluation.shifts import apply_shift, kinds_for
from brittle.noise import gaussian

# Of a sample's gradient and one random direction; odd, so that the sample itself is on the grid.
LANDSCAPE_SIDE = 21
# Wider features are projected: distances survive, and 50,000 samples take 100 MB.
_FEATURES = 512


class Clean(Stage):
    """The model's answers to the samples as they are, and what it sees just before its last layer."""

    name = "clean"

    def run(self, work: Work) -> None:
        """One forward."""
        target, source = work.target, work.source
        assert target.fixed_batch is not None
        module = isinstance(target.model, nn.Module)
        with Writer(work, self.name) as out, capture_penultimate(target) if module else nullcontext() as seen:
            for x, y, ids in work.batches(target.fixed_batch):
                _inside(x, ids, work)
                labelled = bool((y >= 0).all())
                if labelled:
                    target.expect_labels(y)
                logits = target.logits(x, ids)
                _refuse_infinite(logits, ids)
                found = answers(logits, y.clamp(min=0))
                loss = found.log_loss.tolist() if labelled else [None] * len(ids)
                wide = None if seen is None or seen.features is None else seen.features
                features = [None] * len(ids) if wide is None else _compact(wide)[: len(ids)].cpu().numpy()
                rows = ids.tolist()
                segments = [None if source.groups is None else source.groups[row] for row in rows]
                names, labels = [clean_text(source.name_of(row)) for row in rows], y.tolist()
                sets = [work.data_set] * len(rows)
                columns = found.predicted.tolist(), found.confidence.tolist(), loss
                blobs = logits.float().cpu().numpy()
                out.add(
                    rows,
                    {
                        "samples": zip(sets, rows, names, labels, segments, *columns, strict=True),
                        "outputs": [
                            (work.data_set, row, z.tobytes(), None if f is None else f.tobytes())
                            for row, z, f in zip(rows, blobs, features, strict=True)
                        ],
                    },
                )


@dataclass(frozen=True)
class Shift(Stage):
    """The model's answers to noisy, blurred, brighter and paler samples, at every severity.

    Attributes:
        kinds: of :func:`brittle.evaluation.shifts.kinds_for`; None for the usual ones that the data allows.
        severities: which of the five, from 1.
        seed: of the noise.
    """

    seed: int
    kinds: tuple[str, ...] | None = None
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)

    _usual = ("gaussian", "shot", "salt_and_pepper", "blur", "brightness", "contrast")

    @property
    def name(self) -> str:  # type: ignore[override]
        """By which it is marked as done."""
        return f"shift {self.seed}" if self.kinds is None else f"shift {self.seed} {' '.join(self.kinds)}"

    def run(self, work: Work) -> None:
        """One forward for each kind and severity."""
        with Writer(work, self.name) as out:
            for x, y, ids in work.batches():
                scales = kinds_for(x.shape)
                rows: list[Row] = []
                for kind in self.kinds or [kind for kind in self._usual if kind in scales]:
                    for level in self.severities:
                        scale = scales[kind][level - 1]
                        shifted = apply_shift(kind, scale, x, ids, self.seed, work.target.bounds)
                        found = answers(work.target.logits(shifted, ids), y)
                        rows += answer_rows(work.data_set, kind, level, scale, self.seed, ids, found)
                out.add(ids.tolist(), {"answers": rows})


@dataclass(frozen=True)
class Surroundings(Stage):
    """The loss around samples, over the plane of the gradient's sign and a random direction.

    Attributes:
        reach: how far along each direction, in Linf.
        seed: of the random directions.
    """

    reach: float
    seed: int

    name = "landscape"
    needs_gradients = True

    def run(self, work: Work) -> None:
        """One backward, and a forward for every point of the grid."""
        target = work.target
        lo, hi = target.bounds
        alphas = landscape_steps(self.reach)
        with Writer(work, self.name) as out:
            for x, y, ids in work.batches():
                target.expect_labels(y)
                g = target.evaluate(x, away_from(y), own=True).gradient.sign()
                r = gaussian(torch.zeros_like(x), 1.0, self.seed, ids, _LANDSCAPE_DRAW, bounds=None).sign()
                losses = torch.empty(len(x), len(alphas), len(alphas))
                for a, along in enumerate(alphas):
                    for b, across in enumerate(alphas):
                        point = (x + along * g + across * r).clamp(lo, hi)
                        losses[:, a, b] = answers(target.logits(point, ids), y).log_loss.float()
                blobs = [
                    (work.data_set, i, grid.numpy().tobytes())
                    for i, grid in zip(ids.tolist(), losses, strict=True)
                ]
                out.add(ids.tolist(), {"landscapes": blobs})


_LANDSCAPE_DRAW = 2**30


def landscape_steps(reach: float) -> tuple[float, ...]:
    """The steps along each direction, from ``-reach`` to ``reach``."""
    half = LANDSCAPE_SIDE // 2
    return tuple(reach * k / half for k in range(-half, half + 1))


def _inside(x: Tensor, ids: Tensor, work: Work) -> None:
    """Every sample is inside the bounds; the first that is not is named."""
    lo, hi = work.target.bounds
    if bool(((x >= lo) & (x <= hi)).all()):
        return
    for row, sample in enumerate(ids.tolist()):
        where = f"for {work.source.name_of(sample)} in {work.data_set!r}"
        refuse_outside(x[row : row + 1], work.target.bounds, where)


def _refuse_infinite(logits: Tensor, ids: Tensor) -> None:
    lost = ~logits.isfinite().all(1)
    if lost.any():
        raise ValueError(
            f"evaluate: the model must give finite logits; got infinity for sample {ids[lost][0]}"
        )


def _compact(features: Tensor) -> Tensor:
    """At most 512 features: more are projected onto so many fixed random directions."""
    wide = features.shape[1]
    if wide <= _FEATURES:
        return features
    narrow: Tensor = features @ _directions(wide, features.device).T / _FEATURES**0.5
    return narrow


@lru_cache(maxsize=1)
def _directions(wide: int, device: torch.device) -> Tensor:
    return gaussian(torch.zeros(_FEATURES, wide, device=device), 1.0, seed=0, bounds=None)
