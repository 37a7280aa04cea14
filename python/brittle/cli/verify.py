"""``brittle verify``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
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
        str | None, typer.Option(metavar="FILE.py:FUNCTION", help="The model that was evaluated.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    trust_checkpoint: shared.TrustCheckpoint = False,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PLACE", help="The data that it was evaluated on; the main set will do."),
    ] = None,
    size: shared.Size = None,
    trust_run: Annotated[
        bool,
        typer.Option(
            "--trust-run",
            help="The run is your own: run the model's code, and open the weights and data, that it names, "
            "where they are not given here.",
        ),
    ] = False,
    device: shared.Device = "auto",
) -> None:
    """Check every stored adversarial example of a run with one forward of the model, and once more in 8 bits.

    A run's folder may come from anybody. So the model's code, its weights and the data are taken from the
    command line; what the run says of them is taken with --trust-run alone, because opening a model's code
    runs it.

    Exit code: 0 every example is what its row says, 1 not all are, or there is none,
    2 bad input, 3 internal error or interruption.
    """
    op = "verify"
    with exit_codes(op):
        from brittle.evaluation import verify as check
        from brittle.evaluation.run.store import read_run_json

        begun = read_run_json(run)
        saved = _saved(op, run, begun["arguments"])
        inputs = _inputs(op, run, saved if trust_run else None, model, weights, data, size, saved)
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


def _saved(op: str, run: Path, arguments: Mapping[str, Any]) -> Inputs | None:
    """What the run says of its model and data; None where it was begun from Python."""
    if not arguments:
        return None
    try:
        return Inputs.from_json(arguments)
    except ValueError as error:
        raise ValueError(f"{op}: {run / 'run.json'} must name a model and data; {error}") from None


def _inputs(
    op: str,
    run: Path,
    trusted: Inputs | None,
    model: str | None,
    weights: Path | None,
    data: list[str] | None,
    size: str | None,
    saved: Inputs | None,
) -> Inputs:
    if trusted is None:
        if not (model and data):
            raise ValueError(
                f"{op}: --model and --data must be given: a run's folder may come from anybody, and opening "
                f"a model's code runs it. {_advice(run, saved)}"
            )
        return Inputs.of(op, model, weights, data, size=size)
    known = trusted
    if model is not None:
        # Another model's weights are no longer the run's affair.
        known = replace(known, model=model, weights=None)
    if weights is not None:
        known = replace(known, weights=str(weights))
    if data:
        known = replace(known, data=values.named_data(op, data), groups={})
    if size is not None:
        known = replace(known, size=values.height_and_width(op, size))
    return known


def _advice(run: Path, saved: Inputs | None) -> str:
    if saved is None:
        return f"The run in {run} was begun from Python and names neither"
    words = ["brittle", "verify", str(run), "--model", saved.model]
    if saved.weights is not None:
        words += ["--weights", saved.weights]
    for name, place in saved.data.items():
        words += ["--data", place if place == name else f"{name}={place}"]
    if saved.size is not None:
        words += ["--size", f"{saved.size[0]},{saved.size[1]}"]
    # Of a stranger's choosing: quoted for the shell, and without what a terminal would obey.
    command = " ".join(shlex.quote("".join(c if c.isprintable() else "?" for c in word)) for word in words)
    return f"The run names these; if you trust them, say so with --trust-run or give them yourself: {command}"
