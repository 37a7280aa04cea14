"""Diagnose, repair, keep what helped, and tell what came of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from brittle import _checks as check
from brittle._extras import DIAGNOSIS, REPORT, require
from brittle._folding import deep_copy
from brittle.data import Data
from brittle.diagnosis.flaws.diagnose import diagnose
from brittle.diagnosis.flaws.result import Diagnosis
from brittle.evaluation.curve import accuracy_vs_epsilon
from brittle.repair.judging import judged
from brittle.repair.loop import look
from brittle.repair.mending_folder import Folder, identity_of
from brittle.repair.mending_result import Mending, Score, Step
from brittle.repair.suggestions import Suggestion, suggest
from brittle.result import GradientMaskingWarning
from brittle.target import Bounds, Target

Progress = Callable[[str, int, int], None]

_OP = "mend"


def mend(
    model: nn.Module,
    train: Data,
    validation: Data,
    untrained: nn.Module | None = None,
    *,
    test: Data | None = None,
    suggestions: Sequence[Suggestion] | None = None,
    epochs: int = 10,
    tolerance: float = 0.01,
    eps: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    samples: int = 2048,
    batch_size: int = 128,
    seed: int = 0,
    out: str | Path | None = None,
    title: str = "The model",
    provenance: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Mending:
    """Diagnose a model, try the repairs that are suggested one after the other, and keep those that help.

    Each repair is tried on a copy of what the earlier ones have left. It is kept if, on the validation data,

    - accuracy is not lower by more than ``tolerance``,
    - the flaws that it is for, those of the first one's kind, are less severe, counting 1 for mild and 2 for
      severe, and
    - all flaws together are not more severe, unless accuracy has risen by more than ``tolerance``.

    Otherwise it is rolled back, and the result says why. Repairs whose flaws are gone by then are left out.

    Args:
        model: left as it is; the result has a copy.
        train: what repairs train on: a pair of tensors ``(x, y)`` or an iterable of batches, as for
            :func:`brittle.repair.train`.
        validation: what flaws are found and repairs chosen by. No sample of it should be in ``train``.
        untrained: the model before training, as for :func:`brittle.diagnosis.diagnose`.
        test: what the model is compared on before and after; by default ``validation``.
        suggestions: what to try; by default what :func:`suggest` makes of the diagnosis.
        epochs: of each repair.
        tolerance: of validation accuracy, a share.
        eps: radius of attacks and adversarial training, Linf; by default 8/255 of the bounds' width.
        bounds: the smallest and the largest value of the inputs.
        samples: of each data set that a diagnosis looks at.
        batch_size: of training and diagnosis.
        seed: of everything random, 64 bits.
        out: a folder for the mended weights, checkpoints, diagnoses, evaluations and pages. The same call
            again goes on where the last one stopped.
        title: of the pages.
        provenance: further lines for the pages.
        progress: called with the stage, how much of it is done, and its total.

    Returns:
        The mended model, the diagnoses before and after, and every step.

    Raises:
        ValueError: an argument is out of range, or ``out`` holds something else.

    Example:
        >>> import torch
        >>> from brittle.repair import mend
        >>> x = torch.rand(300, 6, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > x[:, 1]).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].bias.fill_(-50.0)  # no unit ever answers
        >>> mending = mend(model, (x[:200], y[:200]), (x[200:], y[200:]), epochs=20, batch_size=20)
        >>> mending.steps[0].suggestion.title(), mending.steps[0].outcome
        ('recycle layer 0', 'kept')
        >>> mending.scores["before"].accuracy < 0.7 < 0.9 < mending.scores["after"].accuracy
        True
    """
    check.check_count(_OP, "epochs", epochs)
    check.check_count(_OP, "batch_size", batch_size)
    check.check_seed(_OP, seed)
    check.check_scalar(_OP, "tolerance", tolerance)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{_OP}: model must be a module; got {type(model).__name__}")
    for name, data in (("train", train), ("validation", validation), ("test", test)):
        if data is not None and not isinstance(data, Iterable):
            got = type(data).__name__
            raise ValueError(f"{_OP}: {name} must be a pair of tensors or an iterable of batches; got {got}")
        if isinstance(data, Iterator):
            raise ValueError(f"{_OP}: {name} must be iterable anew for each epoch; got an iterator")
    eps = 8 / 255 * (bounds[1] - bounds[0]) if eps is None else check.check_scalar(_OP, "eps", eps)
    check.check_inside(_OP, "eps", eps, "linf", bounds)
    if out is not None:
        require(_OP, *DIAGNOSIS, *REPORT)
    work = _Work(
        train, validation, untrained, epochs, tolerance, eps, bounds, samples, batch_size, seed, progress
    )
    with ExitStack() as stack:
        folder = None
        if out is not None:
            folder = stack.enter_context(Folder(Path(out)))
            settings = {"epochs": epochs, "tolerance": tolerance, "eps": eps, "bounds": list(bounds)}
            settings |= {"samples": samples, "batch_size": batch_size, "seed": seed}
            given = None if suggestions is None else [each.summary() for each in suggestions]
            identity = identity_of(model, untrained, {"train": train, "validation": validation, "test": test})
            folder.begin(identity | settings | {"suggestions": given})
        before = work.diagnosis(model, "diagnosis")
        tried = suggest(before) if suggestions is None else tuple(suggestions)
        current, diagnosis, score = deep_copy(model), before, work.score(model)
        steps: list[Step] = []
        for number, suggestion in enumerate(tried, 1):
            checkpoint = None if folder is None else folder.checkpoint(number)
            step, mended, diagnosis = work.attempt(number, suggestion, current, diagnosis, score, checkpoint)
            if mended is not None:
                current, score = mended, step.after
            steps.append(step)
        compared = validation if test is None else test
        models = {"before": model, "after": current}
        mending = Mending(
            current,
            before,
            diagnosis,
            tuple(steps),
            {name: work.score(each, compared, robust=name) for name, each in models.items()},
            "validation" if test is None else "test",
            eps,
            None if out is None else Path(out),
        )
        if folder is not None:
            options = {"bounds": bounds, "seed": seed, "eps": eps, "progress": progress}
            folder.finish(mending.summary(), models, compared, title, dict(provenance or {}), options)
    return mending


@dataclass(frozen=True)
class _Work:
    """What every step of a mending needs."""

    train: Data
    validation: Data
    untrained: nn.Module | None
    epochs: int
    tolerance: float
    eps: float
    bounds: Bounds
    samples: int
    batch_size: int
    seed: int
    progress: Progress | None

    def tick(self, stage: str) -> Callable[[int, int | None], None]:
        def tick(done: int, total: int | None) -> None:
            if self.progress is not None:
                self.progress(stage, done, done + 1 if total is None else total)

        return tick

    def rewind(self) -> None:
        """Data come in the order of their first epoch, whatever was trained, or resumed, before."""
        parts: list[Any] = [self.train, self.validation]
        for part in [*parts, *(getattr(part, "sampler", None) for part in parts)]:
            if hasattr(part, "set_epoch"):
                part.set_epoch(0)

    def diagnosis(self, model: nn.Module, stage: str) -> Diagnosis:
        self.rewind()
        return diagnose(
            Target(model, self.bounds, channels_last=False, fold_batchnorm=False, name=_OP),
            self.train,
            self.validation,
            self.untrained,
            samples=self.samples,
            batch_size=self.batch_size,
            eps=self.eps,
            seed=self.seed,
            progress=self.tick(stage),
        )

    def score(self, model: nn.Module, data: Data | None = None, robust: str | None = None) -> Score:
        """On the validation data, or on others; under attack, too, where a stage is named."""
        modes = [(module, module.training) for module in model.modules()]
        try:
            found = look(_OP, model, self.validation if data is None else data, self.batch_size)
            if robust is None:
                return Score(found["validation_accuracy"], found["validation_loss"])
            with _masking() as masked:
                curve = accuracy_vs_epsilon(
                    model,
                    self.validation if data is None else data,
                    [self.eps],
                    "pgd",
                    batch_size=self.batch_size,
                    bounds=self.bounds,
                    seed=self.seed,
                    progress=self.tick(f"attack {robust}"),
                )
        finally:
            for module, training in modes:
                module.training = training
        return Score(
            found["validation_accuracy"], found["validation_loss"], curve.accuracy[0], masked=bool(masked)
        )

    def attempt(
        self,
        number: int,
        suggestion: Suggestion,
        current: nn.Module,
        diagnosis: Diagnosis,
        score: Score,
        checkpoint: Path | None,
    ) -> tuple[Step, nn.Module | None, Diagnosis]:
        """The step, the mended model if it is kept, and the diagnosis of what is kept."""
        there = {(f.layer, f.kind) for f in diagnosis.flaws}
        if suggestion.findings and not any((f.layer, f.kind) in there for f in suggestion.findings):
            reason = "Earlier repairs have mended these flaws."
            return Step(suggestion, "not needed", reason, score, score), None, diagnosis
        candidate = deep_copy(current)
        self.rewind()
        training = suggestion.apply(
            candidate,
            self.train,
            eps=self.eps,
            bounds=self.bounds,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            checkpoint=checkpoint,
            progress=self.tick(f"repair {number}"),
        )
        if not training.history or not math.isfinite(training.history[-1].get("loss", math.nan)):
            reason = f"Training failed: {training.stopped}."
            return Step(suggestion, "rolled back", reason, score, score), None, diagnosis
        now = self.score(candidate)
        found = self.diagnosis(candidate, f"diagnosis {number}")
        kept, reason = judged(suggestion.findings, diagnosis, found, (score, now), self.tolerance)
        step = Step(suggestion, "kept" if kept else "rolled back", reason, score, now)
        return step, candidate if kept else None, found if kept else diagnosis


@contextmanager
def _masking() -> Iterator[list[GradientMaskingWarning]]:
    """The warnings of gradient masking, which the score tells; others are warned of as ever."""
    found: list[GradientMaskingWarning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for each in caught:
        if isinstance(each.message, GradientMaskingWarning):
            found.append(each.message)
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
