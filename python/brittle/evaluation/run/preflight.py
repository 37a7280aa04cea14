"""A look at model and data before the work begins: what would spoil it is one clear sentence now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brittle.evaluation.run.settings import NOISE
from brittle.evaluation.run.work import away_from, refuse_outside, unreadable
from brittle.noise import uniform
from brittle.sources import BadSample, Source
from brittle.target import Target

_NOISE_SAMPLES = 1000
_NOISE_DRAW = 2**30 + 1
_TWICE = 1e-4  # logits of two forwards on a GPU, relative to the largest


@dataclass(frozen=True)
class SetAbout:
    """One data set of the run.

    Attributes:
        name, source: of the set.
        count: samples to take.
        classes: C names.
        answers: the model's logits for the first few samples, to know it by.
        labelled: False for the synthetic set.
    """

    name: str
    source: Source
    count: int
    classes: tuple[str, ...]
    answers: list[list[float]]
    labelled: bool = True

    def rows(self, most: int | None = None) -> Sequence[int]:
        """The samples to take, or so many of them: spread evenly, for class folders come one by one."""
        taken = _spread(range(len(self.source)), self.count)
        return taken if most is None else _spread(taken, most)


def _spread(rows: Sequence[int], count: int) -> Sequence[int]:
    return rows if count >= len(rows) else [rows[k * len(rows) // count] for k in range(count)]


class UniformNoise(Source):
    """Samples of another set's shape that show nothing: every element uniform in the bounds."""

    def __init__(self, count: int, shape: Sequence[int], bounds: tuple[float, float], seed: int) -> None:
        self._count, self._shape, self._bounds, self._seed = count, tuple(shape), bounds, seed

    def __len__(self) -> int:
        return self._count

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Samples by their ids."""
        lo, hi = self._bounds
        middle = torch.full((len(rows), *self._shape), (lo + hi) / 2)
        ids = torch.tensor(rows, dtype=torch.int64)
        x = uniform(middle, (hi - lo) / 2, self._seed, ids, _NOISE_DRAW, bounds=self._bounds)
        return x, torch.full((len(rows),), -1)

    def labels(self) -> Tensor:
        """-1 throughout."""
        return torch.full((self._count,), -1)


def look_at(
    target: Target,
    sources: Mapping[str, Source],
    *,
    skip_bad: bool,
    limit: int | None,
    views: Sequence[str],
    gradients: bool,
    seed: int = 0,
) -> list[SetAbout]:
    """The sets of the run, the synthetic one last, once model and data are known to fit.

    Raises:
        ValueError: they do not.
    """
    _one_device(target)
    found, shape = [], None
    for name, source in sources.items():
        count = len(source) if limit is None else min(limit, len(source))
        x, rows = _first(name, source, min(count, target.fixed_batch or 1), skip_bad)
        if shape is not None and x.shape[1:] != shape:
            raise ValueError(
                f"evaluate: all data sets must have samples of one shape; got {list(shape)} and, in "
                f"{name!r}, {list(x.shape[1:])}"
            )
        shape = x.shape[1:]
        refuse_outside(x, target.bounds, f"in {name!r}")
        logits = _ask(target, x, rows)
        if gradients:
            _differentiate(target, x[:1], logits.shape[1])
        classes = _classes(name, source, logits.shape[1])
        answers = [[float(f"{z:.6g}") for z in row] for row in logits[:8].tolist()]
        found.append(SetAbout(name, source, count, classes, answers))
    if "ood" in views and shape is not None and len(shape):
        count = min(_NOISE_SAMPLES, max(one.count for one in found))
        noise = UniformNoise(count, shape, target.bounds, seed)
        found.append(SetAbout(NOISE, noise, count, found[0].classes, [], labelled=False))
    return found


def _one_device(target: Target) -> None:
    if not isinstance(target.model, nn.Module):
        return
    devices = {str(t.device) for t in (*target.model.parameters(), *target.model.buffers())}
    if len(devices) > 1 or "meta" in devices:
        raise ValueError(
            "evaluate: the model must be on one device, with its weights loaded; got "
            + ", ".join(sorted(devices))
        )


def _first(name: str, source: Source, count: int, skip_bad: bool) -> tuple[Tensor, list[int]]:
    """Up to ``count`` samples from the beginning."""
    rows: list[int] = []
    parts: list[Tensor] = []
    bad: BadSample | None = None
    for row in range(len(source)):
        if len(rows) == count:
            break
        try:
            parts.append(source.load([row])[0])
            rows.append(row)
        except BadSample as error:
            bad = error
            if not skip_bad:
                raise unreadable(error, name) from None
    if not parts:
        raise ValueError(
            f"evaluate: data must hold samples that can be read; got none in {name!r}"
            + (f" ({bad})" if bad else "")
        )
    return torch.cat(parts), rows


def _ask(target: Target, x: Tensor, rows: Sequence[int]) -> Tensor:
    """The logits of the first samples, asked for twice."""
    device = target.device or torch.device("cpu")
    x, ids = x.to(device, target.dtype), torch.tensor(rows, device=device)
    try:
        once, again = target.logits(x, ids), target.logits(x, ids)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        if lines[0].startswith(f"{target.name}: "):
            raise
        raise ValueError(
            f"evaluate: the model must take {str(x.dtype)[6:]} samples of shape {list(x.shape[1:])}; got "
            + lines[0]
        ) from error
    if not once.isfinite().all():
        raise ValueError(
            "evaluate: the model must give finite logits; got infinite ones for the first samples"
        )
    apart = float((once - again).abs().max())
    allowed = 0.0 if device.type == "cpu" else _TWICE * float(once.abs().max())
    if apart > allowed:
        raise ValueError(
            "evaluate: the model must give the same logits for the same samples; got differences of up to "
            f"{apart:.3g} between two forwards in evaluation mode (does it draw random numbers?)"
        )
    if once.shape[1] < 2:
        raise ValueError(f"evaluate: the model must have at least 2 classes; got {once.shape[1]}")
    if bool((once >= 0).all()) and bool(((once.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            "evaluate: the model must return logits; got probabilities (each row is >= 0 and sums to 1): "
            "leave its softmax out"
        )
    return once


def _differentiate(target: Target, x: Tensor, classes: int) -> None:
    """A model without a graph is refused now, not when the first attack begins."""
    y = torch.zeros(len(x), dtype=torch.int64, device=target.device)
    target.evaluate(x.to(target.device or x.device, target.dtype), away_from(y % classes), own=True)


def _classes(name: str, source: Source, count: int) -> tuple[str, ...]:
    """C names: the data's own, and numbers for what it has no names for."""
    labels = source.labels()
    wrong = ((labels < 0) | (labels >= count)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"evaluate: labels must be in [0, {count}) for a model of {count} classes; got "
            f"{int(labels[row])} for {source.name_of(row)} in {name!r}"
        )
    names = source.classes or ()
    return (*names[:count], *(str(k) for k in range(len(names), count)))


def as_json(about: Sequence[SetAbout]) -> list[dict[str, Any]]:
    """Name, samples and classes of each set."""
    return [{"name": one.name, "samples": one.count, "classes": list(one.classes)} for one in about]
