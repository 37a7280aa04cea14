"""A compact memory of how a model answers on data that it is meant for, and the comparison of new data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brittle import _checks as check
from brittle.evaluation.drift import nulls, storage
from brittle.evaluation.drift.result import Drift, Window
from brittle.evaluation.drift.statistics import FeatureSpace, Reservoir, Sketch
from brittle.evaluation.drift.stream import Rows, fingerprint, rows
from brittle.similarity.features import Inputs
from brittle.sources import Source
from brittle.target import Model, Target

_LEAST_SAMPLES = 50

_SKETCH_TENSORS = ("values", "below", "upto")
_SPACE_TENSORS = ("centre", "directions", "spread", "mean")
_SPACE_NUMBERS = ("rest", "variance", "variance_squared", "fourth", "limit", "rank")

Progress = Callable[[int], None]


class _Seen(NamedTuple):
    """Of N samples."""

    predicted: Tensor
    confidence: Tensor
    energy: Tensor
    distance: Tensor  # empty without features


@dataclass(frozen=True)
class Reference:
    """How a model answers on data that it is meant for: what new data are compared with in production.

    Its size does not depend on how much data it was made from: quantiles of confidence, energy and feature
    distance, class counts, and features' centre with at most 64 directions (about 0.3 MB for 2048 features).

    Attributes:
        samples: M, how many it was made from.
        confidence, energy: the distribution of the predicted class's probability, and of
            ``-log sum exp`` of the logits.
        class_counts: int64 ``[C]``, how many samples each class was predicted for.
        space: where features lie; None for a model that has none, or whose features never vary.
        layer: whose output the features are; None for the input of the last linear layer.
        model: the fingerprint of the model.
        fixed_batch: how many samples the model ran on at a time.
    """

    samples: int
    confidence: Sketch
    energy: Sketch
    class_counts: Tensor
    space: FeatureSpace | None
    layer: str | None
    model: str
    fixed_batch: int

    @classmethod
    def of(
        cls,
        model: Model | Target,
        data: Inputs | Source,
        *,
        features: str | None = None,
        batch_size: int = 256,
        fixed_batch: int = 32,
        progress: Progress | None = None,
    ) -> Reference:
        """Run ``model`` over ``data`` and keep the statistics.

        Use data that the model was *not* trained on and that are what it will meet: on its own training data
        a model is surer than it ever will be again. One half of at most 10,000 random samples is what
        features' directions are fitted to, the other what distances are counted on. Memory: those features
        (a few hundred MB at most) and 24 bytes a sample. The model is given back as it was.

        Args:
            model: an ``nn.Module``, a :class:`brittle.Target` of one, or a callable, that gives logits.
            data: a :class:`brittle.sources.Source`, a tensor ``x``, a pair of tensors ``(x, y)``, or an
                iterable of batches ``x``, ``(x, y)`` or ``(x, y, sample_ids)``; only ``x`` is used.
            features: a layer's name in ``model.named_modules()``, whose output is taken as the features; None
                for the input of the linear layer that runs last. A model without any gets a reference
                without features.
            batch_size: for tensors and sources. No result depends on it.
            fixed_batch: how many samples the model runs on at a time, always.
            progress: called with the samples done.

        Raises:
            ValueError: fewer than 50 samples; logits or features that are not finite; an unknown layer; a
                batch that does not fit.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from brittle.evaluation.drift import Reference
            >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
            >>> reference = Reference.of(model, torch.rand(1000, 1, 8, 8))
            >>> reference.score(model, torch.rand(300, 1, 8, 8) * 0.7).drifted
            True
        """
        op = "Reference.of"
        check.check_count(op, "batch_size", batch_size)
        check.check_count(op, "fixed_batch", fixed_batch)
        if fixed_batch > storage.LARGEST_FIXED_BATCH:
            raise ValueError(
                f"{op}: fixed_batch must be at most {storage.LARGEST_FIXED_BATCH:,}; got {fixed_batch}"
            )
        answers: list[tuple[Tensor, ...]] = []
        held, total, classes, done = Reservoir(), None, 0, 0
        for part in rows(op, model, data, features, batch_size, fixed_batch):
            answers.append((part.predicted, part.confidence, part.energy))
            classes, done = part.classes, done + len(part.predicted)
            if part.features is not None:
                held.add(part.features)
                sums = part.features.double().sum(0)
                total = sums if total is None else total + sums
            if progress is not None:
                progress(done)
        if done < _LEAST_SAMPLES:
            raise ValueError(f"{op}: data must hold at least {_LEAST_SAMPLES} samples; got {done}")
        predicted, confidence, energy = map(torch.cat, zip(*answers, strict=True))
        return cls(
            samples=done,
            confidence=Sketch.of(confidence),
            energy=Sketch.of(energy),
            class_counts=torch.bincount(predicted, minlength=classes),
            space=None if total is None else FeatureSpace.of(*held.halves(), total / done),
            layer=features,
            model=fingerprint(model),
            fixed_batch=fixed_batch,
        )

    def score(
        self,
        model: Model | Target,
        data: Inputs | Source,
        *,
        batch_size: int = 256,
        false_alarm_rate: float = 0.01,
        progress: Progress | None = None,
    ) -> Drift:
        """Compare new data with the reference, as a whole and ``batch_size`` samples at a time.

        For each measure see :mod:`brittle.evaluation.drift.nulls`; each may accuse a batch without drift at
        most at ``false_alarm_rate`` divided by their number.

        Args:
            model: the one that the reference was made with.
            data: as for :meth:`of`, in the order in which they came.
            batch_size: how many samples are judged together. Small batches tell early, large ones tell small
                drifts.
            false_alarm_rate: how often a batch without drift may be accused, in (0, 1).
            progress: called with the samples done.

        Raises:
            ValueError: another model than the reference's; no samples; as for :meth:`of`.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from brittle.evaluation.drift import Reference
            >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
            >>> reference = Reference.of(model, torch.rand(1000, 1, 8, 8))
            >>> drift = reference.score(model, torch.rand(300, 1, 8, 8), batch_size=100)
            >>> drift.drifted, len(drift.batches), drift.out_of_domain.shape
            (False, 3, torch.Size([300]))
        """
        op = "Reference.score"
        check.check_count(op, "batch_size", batch_size)
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"{op}: false_alarm_rate must be in (0, 1); got {false_alarm_rate}")
        if fingerprint(model) != self.model:
            raise ValueError(f"{op}: model must be the one of the reference; got other weights or layers")
        seen: list[_Seen] = []
        sums: list[Tensor] = []  # of the coordinates in each batch
        done = 0
        for part in rows(op, model, data, self.layer, batch_size, self.fixed_batch):
            self._check(op, part)
            distance = torch.zeros(0, dtype=torch.float64)
            if self.space is not None and part.features is not None:
                coordinates, distance = self.space.place(part.features)
                batch = (done + torch.arange(len(coordinates))) // batch_size
                for i in range(int(batch[0]), int(batch[-1]) + 1):
                    inside = coordinates[batch == i].sum(0)
                    sums[i:] = [sums[i] + inside if i < len(sums) else inside]
            seen.append(_Seen(part.predicted, part.confidence, part.energy, distance))
            done += len(part.predicted)
            if progress is not None:
                progress(done)
        whole = _Seen(*map(torch.cat, zip(*seen, strict=True)))
        batches = []
        for i, first in enumerate(range(0, done, batch_size)):
            batch_rows = _Seen(*(column[first : first + batch_size] for column in whole))
            batches.append(self._window(first, batch_rows, sums[i : i + 1], false_alarm_rate))
        space = self.space
        return Drift(
            whole=self._window(0, whole, sums, false_alarm_rate),
            batches=tuple(batches),
            false_alarm_rate=false_alarm_rate,
            predicted=whole.predicted,
            confidence=whole.confidence,
            energy=whole.energy,
            distance=None if space is None else whole.distance,
            out_of_domain=None if space is None else whole.distance > space.limit,
        )

    def _check(self, op: str, part: Rows) -> None:
        if part.classes != len(self.class_counts):
            raise ValueError(
                f"{op}: the model must give logits of {len(self.class_counts)} classes, as before; "
                f"got {part.classes}"
            )
        got = 0 if part.features is None else part.features.shape[1]
        if self.space is not None and got != len(self.space.centre):
            expected = len(self.space.centre)
            raise ValueError(f"{op}: a sample must have {expected} features, as before; got {got}")

    def _window(self, first: int, seen: _Seen, sums: Sequence[Tensor], false_alarm_rate: float) -> Window:
        count = len(seen.predicted)
        rate = false_alarm_rate / (3 if self.space is None else 6)
        measures = [
            nulls.same_distribution("confidence", self.confidence, seen.confidence, rate),
            nulls.same_distribution("energy", self.energy, seen.energy, rate),
            nulls.same_classes("predicted classes", self.class_counts, seen.predicted, rate),
        ]
        if self.space is not None:
            space, mean = self.space, torch.stack(list(sums)).sum(0) / count
            outside = int((seen.distance > space.limit).sum())
            measures += [
                nulls.same_mean("feature mean", space, self.samples, mean, count, rate),
                nulls.same_distribution("feature distance", space.distances, seen.distance, rate),
                nulls.few_outside("out-of-domain share", space, outside, count, rate),
            ]
        return Window(first, count, tuple(measures), false_alarm_rate)

    def save(self, path: str | Path) -> None:
        """Write the reference to a safetensors file, in place of one that is there.

        Raises:
            OSError: the file cannot be written; one that was there is still there.
        """
        tensors = {"class_counts": self.class_counts}
        facts: dict[str, Any] = {
            "samples": self.samples,
            "layer": self.layer,
            "model": self.model,
            "fixed_batch": self.fixed_batch,
            "space": None,
        }
        sketches = {"confidence": self.confidence, "energy": self.energy}
        if self.space is not None:
            sketches["distances"] = self.space.distances
            tensors |= {f"space.{name}": getattr(self.space, name) for name in _SPACE_TENSORS}
            facts["space"] = {name: getattr(self.space, name) for name in _SPACE_NUMBERS}
        for name, sketch in sketches.items():
            tensors |= {f"{name}.{part}": getattr(sketch, part) for part in _SKETCH_TENSORS}
            facts[f"{name}.samples"] = sketch.samples
        storage.write(Path(path), tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read what :meth:`save` wrote. Nothing in the file is executed.

        Raises:
            ValueError: there is no such file; it is something else, of another format, or damaged; a fact or
                tensor in it is of another kind than :meth:`save` writes.

        Example:
            >>> import tempfile, torch
            >>> from pathlib import Path
            >>> from brittle.evaluation.drift import Reference
            >>> reference = Reference.of(torch.nn.Linear(4, 3), torch.rand(100, 4))
            >>> path = Path(tempfile.mkdtemp()) / "reference.safetensors"
            >>> reference.save(path)
            >>> Reference.load(path).samples
            100
        """
        tensors, facts = storage.read("Reference.load", Path(path))

        def sketch(name: str) -> Sketch:
            values, below, upto = (tensors[f"{name}.{part}"] for part in _SKETCH_TENSORS)
            return Sketch(values, below, upto, facts[f"{name}.samples"])  # type: ignore[literal-required]

        space = None
        if facts["space"] is not None:
            parts: dict[str, Any] = {name: tensors[f"space.{name}"] for name in _SPACE_TENSORS}
            # JSON writes 2 where 2.0 is meant.
            given: dict[str, Any] = {**facts["space"]}
            numbers: dict[str, Any] = {name: float(given[name]) for name in _SPACE_NUMBERS}
            numbers["rank"] = facts["space"]["rank"]
            space = FeatureSpace(**parts, **numbers, distances=sketch("distances"))
        return cls(
            samples=facts["samples"],
            confidence=sketch("confidence"),
            energy=sketch("energy"),
            class_counts=tensors["class_counts"],
            space=space,
            layer=facts["layer"],
            model=facts["model"],
            fixed_batch=facts["fixed_batch"],
        )
