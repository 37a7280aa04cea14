"""What is summed over the batches of a pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from brittle.diagnosis.flaws.capture import Flow

#: Of every unit, outputs at so many places of so many samples are kept.
UNIT_PLACES, UNIT_SAMPLES = 8, 512


# A gradient this small beside the layer's typical one moves nothing.
_SILENT = 1e-3


@dataclass
class Units:
    """A layer's units over a pass.

    Attributes:
        values: ``[U, observations]``, outputs of each unit at some samples and places.
        heard: float64 ``[U]``, the share of samples at which the unit has a say: the gradient of the model's
            outputs with respect to it is, somewhere, not negligible beside the layer's typical one.
        places: float64 ``[S]``, the share of samples and units by place; empty where there are no places.
        entries: of all samples, units and places the share with a say.
        map: height and width of the map, or None.
    """

    values: Tensor
    heard: Tensor
    places: Tensor
    entries: float
    map: tuple[int, int] | None


class Means:
    """Means over samples, by name."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Count ``values [N]``, one a sample, under a name."""
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += float(values.sum())
        sums[1] += len(values)

    def means(self) -> dict[str, float]:
        """By name."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def roots(self) -> dict[str, float]:
        """The roots of the means."""
        return {name: math.sqrt(value) for name, value in self.means().items()}


class _Deviation:
    """Of a layer's inputs, element by element, from their mean over samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.total: Tensor | None = None
        self.squares = 0.0

    def add(self, given: Tensor) -> None:
        flat = given.flatten(1).double()
        total = flat.sum(0)
        fits = self.total is None or self.total.shape == total.shape
        if not fits:
            return
        self.total = total if self.total is None else self.total + total
        self.squares += float(flat.square().sum())
        self.samples += len(flat)

    def mean_square(self) -> float:
        assert self.total is not None
        square = self.squares / self.samples - float((self.total / self.samples).square().sum())
        return max(0.0, square) / len(self.total) if math.isfinite(square) else math.inf


class UnitSums:
    """Sums over the samples of a pass for each unit of a layer."""

    def __init__(self, flow: Flow) -> None:
        self.kept: list[Tensor] = []
        self.samples = 0
        self.heard = torch.zeros(flow.output.shape[1], dtype=torch.float64)
        self.places: Tensor | None = torch.zeros(flow.output.shape[2], dtype=torch.float64)
        self.entries = 0.0
        self.total: Tensor | None = None
        self.squares = 0.0
        self.given = _Deviation()
        self.largest = 0.0
        self.map = None
        if flow.axis == 1 and flow.raw.dim() == 4:
            self.map = (flow.raw.shape[2], flow.raw.shape[3])

    def add(self, flow: Flow, told: Tensor, first: int) -> None:
        """A batch, the first of whose samples is number ``first`` of the pass."""
        output = flow.output
        level = _SILENT * told.double().square().mean().sqrt()
        loud = told.abs() > level
        self.samples += len(output)
        self.heard += loud.any(2).double().sum(0).cpu()
        if self.places is not None and len(self.places) == output.shape[2]:
            self.places += loud.double().mean(1).sum(0).cpu()
        else:
            self.places = None
        self.entries += float(loud.double().mean()) * len(output)
        if first < UNIT_SAMPLES:
            places = torch.linspace(0, output.shape[2] - 1, min(UNIT_PLACES, output.shape[2])).long()
            some = output[: UNIT_SAMPLES - first, :, places.to(output.device)]
            self.kept.append(some.movedim(1, 0).flatten(1).float().cpu())
        doubles = output.double()
        total = doubles.sum((0, 2)).cpu()
        self.total = total if self.total is None else self.total + total
        self.squares += float(doubles.square().sum()) / output.shape[2]
        self.count = output.shape[2]
        self.given.add(flow.given.detach())
        self.largest = max(self.largest, float(output.abs().max()) if output.numel() else 0.0)
        if not bool(output.isfinite().all()):
            self.largest = math.inf

    def deviation(self) -> float:
        """Root mean square over samples and places of the distance from the mean output."""
        assert self.total is not None
        mean = self.total / (self.samples * self.count)
        square = self.squares / self.samples - float(mean.square().sum())
        return math.sqrt(max(0.0, square)) if math.isfinite(square) else math.inf

    def gain(self) -> float:
        """Deviation of the outputs over that of the inputs, each as a root mean square over its units."""
        before = self.given.mean_square()
        after = self.deviation() ** 2 / len(self.heard)
        return math.sqrt(after / before) if before > 0 else math.nan

    def units(self) -> Units:
        """What is known of the units."""
        places = self.places if self.places is not None and len(self.places) > 1 else torch.zeros(0)
        return Units(
            values=torch.cat(self.kept, 1),
            heard=self.heard / self.samples,
            places=places / self.samples,
            entries=self.entries / self.samples,
            map=self.map,
        )
