"""``brittle reference`` and ``brittle drift``."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brittle._extras import DRIFT, require
from brittle.cli import options as shared
from brittle.cli import values
from brittle.cli.exits import MISSED, exit_codes
from brittle.cli.inputs import Inputs
from brittle.cli.progress import progress_on_stderr

if TYPE_CHECKING:
    from torch import Tensor

    from brittle.sources import Source
    from brittle.target import Target

_READ = 256


def reference(
    model: shared.Model,
    data: shared.Data,
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)] = Path(
        "reference.safetensors"
    ),
    weights: shared.Weights = None,
    trust_checkpoint: shared.TrustCheckpoint = False,
    device: shared.Device = "auto",
    mean: shared.Mean = None,
    std: shared.Std = None,
    bounds: shared.Bounds = "0,1",
    size: shared.Size = None,
    skip_bad: shared.SkipBad = False,
    features: Annotated[
        str | None,
        typer.Option(
            help="A layer's name, whose output is watched; by default what enters the last linear layer."
        ),
    ] = None,
    fixed_batch: Annotated[int, typer.Option(min=1, help="Samples in each call of the model.")] = 32,
) -> None:
    """Keep compact statistics of a model's features and confidences on data, to score new data against.

    Take data that the model was not trained on and that are what it will meet.
    """
    op = "reference"
    with exit_codes(op):
        require(op, *DRIFT)
        from brittle.evaluation.drift import Reference

        target, sources = _opened(
            op, model, weights, data, size, (device, trust_checkpoint), (mean, std, bounds)
        )
        with progress_on_stderr() as progress:
            total = sum(len(source) for source in sources)
            tick = _counting(progress, op, total)
            made = Reference.of(
                target,
                _batches(op, sources, skip_bad),
                features=features,
                fixed_batch=fixed_batch,
                progress=tick,
            )
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            made.save(out)
        except OSError as error:
            raise ValueError(
                f"{op}: --out must be a file that can be written; {out}: {error.strerror}"
            ) from None
        typer.echo(f"{made.samples} samples; reference: {out}")


def drift(
    against: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="What `brittle reference` has written.")
    ],
    model: shared.Model,
    data: shared.Data,
    weights: shared.Weights = None,
    trust_checkpoint: shared.TrustCheckpoint = False,
    device: shared.Device = "auto",
    mean: shared.Mean = None,
    std: shared.Std = None,
    bounds: shared.Bounds = "0,1",
    size: shared.Size = None,
    skip_bad: shared.SkipBad = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that are judged together.")] = 256,
    false_alarm_rate: Annotated[
        float, typer.Option(help="How often data without drift may be accused, in (0, 1).")
    ] = 0.01,
    json: shared.Json = False,
) -> None:
    """Score new data against a reference: has what the model meets changed?

    Exit code: 0 no drift, 1 drift, 2 bad input, 3 internal error or interruption.
    """
    op = "drift"
    with exit_codes(op):
        require(op, *DRIFT)
        from brittle.evaluation.drift import Reference

        known = Reference.load(against)
        target, sources = _opened(
            op, model, weights, data, size, (device, trust_checkpoint), (mean, std, bounds)
        )
        with progress_on_stderr() as progress:
            tick = _counting(progress, op, sum(len(source) for source in sources))
            found = known.score(
                target,
                _batches(op, sources, skip_bad),
                batch_size=batch_size,
                false_alarm_rate=false_alarm_rate,
                progress=tick,
            )
        typer.echo(json_module.dumps(found.summary(), indent=1, allow_nan=False) if json else found.table())
        if found.drifted:
            raise typer.Exit(MISSED)


def _opened(
    op: str,
    model: str,
    weights: Path | None,
    data: Sequence[str],
    size: str | None,
    loading: tuple[str, bool],
    scale: tuple[str | None, str | None, str],
) -> tuple[Target, list[Source]]:
    from brittle.target import Target

    inputs = Inputs.of(op, model, weights, data, size=size)
    mean, std = (None if text is None else values.numbers(op, "--mean and --std", text) for text in scale[:2])
    target = Target(
        inputs.load_model(*loading),
        values.pair(op, "--bounds", scale[2]),
        mean,
        std,
        channels_last=False,
        fold_batchnorm=False,
        name=op,
    )
    return target, list(inputs.open_data().values())


def _batches(op: str, sources: Sequence[Source], skip_bad: bool) -> Iterator[Tensor]:
    """The inputs of all sets, one after the other."""
    from brittle.sources import BadSample

    for source in sources:
        for first in range(0, len(source), _READ):
            rows = list(range(first, min(first + _READ, len(source))))
            while rows:
                try:
                    yield source.load(rows)[0]
                    break
                except BadSample as bad:
                    if not skip_bad:
                        raise ValueError(f"{op}: {bad} (--skip-bad leaves such samples out)") from None
                    typer.echo(f"left out: {bad}", err=True)
                    rows.remove(bad.row)


def _counting(progress: Callable[[str, int, int], None], stage: str, total: int) -> Callable[[int], None]:
    def tick(done: int) -> None:
        progress(stage, done, total)

    return tick
