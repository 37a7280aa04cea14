"""``brittle verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from brittle.cli import options as shared
from brittle.cli import values
from brittle.cli.exits import MISSED, exit_codes
from brittle.cli.inputs import Inputs
from brittle.cli.progress import progress_on_stderr


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    model: Annotated[
        str | None, typer.Option(metavar="FILE.py:FUNCTION", help="In place of the run's own --model.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="In place of the run's own --weights.")] = None,
    trust_checkpoint: shared.TrustCheckpoint = False,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PLACE", help="In place of the run's own --data; the main set will do."),
    ] = None,
    device: shared.Device = "auto",
) -> None:
    """Check every stored adversarial example of a run with one forward of the model, and once more in 8 bits.

    The model's code and the data are opened again from where the run found them.

    Exit code: 0 every example is what its row says, 1 not all are,
    2 bad input, 3 internal error or interruption.
    """
    op = "verify"
    with exit_codes(op):
        from brittle.evaluation import verify as check
        from brittle.evaluation.run.store import read_run_json

        begun = read_run_json(run)
        inputs = _inputs(op, run, begun["arguments"], model, weights, data)
        module = inputs.load_model(device, trust_checkpoint)
        sources = inputs.open_data()
        main = begun["sets"][0]["name"]
        if data and len(sources) == 1:
            sources = {main: next(iter(sources.values()))}
        if main not in sources:
            raise ValueError(f"{op}: --data must hold the run's main set {main!r}; got {', '.join(sources)}")
        with progress_on_stderr() as progress:
            found = check(run, module, sources, progress=progress)
        typer.echo(found.table())
        if not found.ok:
            raise typer.Exit(MISSED)


def _inputs(
    op: str,
    run: Path,
    saved: dict[str, Any],
    model: str | None,
    weights: Path | None,
    data: list[str] | None,
) -> Inputs:
    if not saved and not (model and data):
        raise ValueError(f"{op}: --model and --data must be given, as the run in {run} was begun from Python")
    if not saved:
        return Inputs.of(op, model or "", weights, data or [])
    known = Inputs.from_json(saved)
    if model is not None:
        known = replace(known, model=model)
    if weights is not None:
        known = replace(known, weights=str(weights))
    if data:
        known = replace(known, data=values.named_data(op, data), groups={})
    return known
