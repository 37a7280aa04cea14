"""What all judgements are made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from brittle.diagnosis.flaws.passes import Seen
from brittle.diagnosis.flaws.probes import Probe, probe
from brittle.diagnosis.flaws.thresholds import Thresholds
from brittle.similarity import linear_cka


@dataclass
class Evidence:
    """Two passes, and what is computed from them once.

    Attributes:
        modules: the layers by name, in running order.
        initial: the untrained copy's layers by name, or empty.
        train, validation: what was seen of either set.
        thresholds: see there.
        measures: by name and layer; the judgements add what they measure.
        notes: what could not be judged, and why.
        seed: of random choices.
        unformed: layers that were found to be so, which excuses what any random layer does.
        never_ran: layers that gave nothing to judge.
    """

    modules: Mapping[str, nn.Module]
    initial: Mapping[str, nn.Module]
    train: Seen
    validation: Seen
    thresholds: Thresholds
    seed: int
    unformed: set[str] = field(default_factory=set)
    never_ran: tuple[str, ...] = ()
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def layers(self) -> tuple[str, ...]:
        """In running order."""
        return self.validation.layers

    def parents(self, layer: str) -> tuple[str, ...]:
        """The layers that feed a layer; empty if the inputs do."""
        return self.validation.parents.get(layer, ())

    def measure(self, name: str, layer: str, value: float) -> float:
        """Note a measurement, for the result."""
        self.measures.setdefault(name, {})[layer] = value
        return value

    @cached_property
    def probes(self) -> dict[str, Probe | None]:
        """By layer, and "" for the inputs."""
        return self._probes(self.train.features, self.validation.features)

    @cached_property
    def untrained_probes(self) -> dict[str, Probe | None]:
        """Of the untrained copy, likewise; empty without a copy."""
        if not self.initial:
            return {}
        return self._probes(self.train.untrained, self.validation.untrained)

    @cached_property
    def similarity(self) -> dict[str, dict[str, float]]:
        """Linear CKA between layers on validation samples, "" for the inputs; NaN where not finite."""
        features = {"": self.validation.x, **self.validation.features}
        known = {name: rows for name, rows in features.items() if bool(rows.isfinite().all())}
        table = {a: dict.fromkeys(features, math.nan) for a in features}
        if len(self.validation.y) >= 4 and known:
            for a, row in zip(known, linear_cka(list(known.values())).tolist(), strict=True):
                table[a].update(zip(known, row, strict=True))
        return table

    def sampling_error(self, of: Probe) -> float:
        """The standard error of the difference between accuracies on the two sets, from their samples."""
        rates = (of.train, len(self.train.y)), (of.validation, len(self.validation.y))
        return math.sqrt(sum(rate * (1 - rate) / count for rate, count in rates))

    def similarity_to_untrained(self, layer: str) -> float:
        """Linear CKA with the untrained copy's features; NaN without a copy."""
        if layer not in self.validation.untrained or len(self.validation.y) < 4:
            return math.nan
        a, b = self.validation.features[layer], self.validation.untrained[layer]
        if not bool(a.isfinite().all() and b.isfinite().all()):
            return math.nan
        return float(linear_cka([a], [b]))

    def _probes(
        self, train: Mapping[str, Tensor], validation: Mapping[str, Tensor]
    ) -> dict[str, Probe | None]:
        found: dict[str, Probe | None] = {}
        known: dict[str, tuple[Tensor, Tensor]] = {}
        for name in ("", *train):
            a, b = (self.train.x, self.validation.x) if name == "" else (train[name], validation[name])
            # Branches that start from one place, and a layer whose consumer shares its input, have one probe.
            same = next((other for other in known if torch.equal(known[other][0], a)), None)
            if same is not None and torch.equal(known[same][1], b):
                found[name] = found[same]
                continue
            known[name] = a, b
            found[name] = probe(a, self.train.y, b, self.validation.y)
        return found


def largest(values: Iterable[float]) -> float:
    """Of those that are no NaN; NaN if there are none."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)
