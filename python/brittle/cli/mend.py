"""``brittle mend``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brittle._extras import DIAGNOSIS, REPORT, require
from brittle._files import clean_text
from brittle.cli import options as shared
from brittle.cli import values
from brittle.cli.config import options_from_file
from brittle.cli.diagnose import fails
from brittle.cli.exits import MISSED, exit_codes
from brittle.cli.flawed import FAIL_HELP, PLACES, Flawed, Untrained, UntrainedWeights, check_severity
from brittle.cli.progress import progress_on_stderr

if TYPE_CHECKING:
    from brittle.diagnosis import Diagnosis

_WHAT, _RUN = "Repairs", "Run"


def mend(
    model: shared.Model,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PLACE",
            help="To train on, train=PLACE; to choose by, validation=PLACE; to compare on, test=PLACE: "
            + PLACES,
            rich_help_panel="Data",
        ),
    ],
    weights: shared.Weights = None,
    untrained: Untrained = None,
    untrained_weights: UntrainedWeights = None,
    trust_checkpoint: shared.TrustCheckpoint = False,
    device: shared.Device = "auto",
    mean: shared.Mean = None,
    std: shared.Std = None,
    bounds: shared.Bounds = "0,1",
    size: shared.Size = None,
    skip_bad: shared.SkipBad = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be tried.", rich_help_panel=_WHAT)
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Of each repair.", rich_help_panel=_WHAT)] = 10,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="Validation accuracy that a repair may cost, a share.", rich_help_panel=_WHAT
        ),
    ] = 0.01,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Of each set that a diagnosis looks at, at most.", rich_help_panel=_WHAT),
    ] = 2048,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Radius of attacks and adversarial training, Linf; by default 8/255 of the bounds' width.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_WHAT)] = 0,
    fail_on: Annotated[
        str | None, typer.Option(help=FAIL_HELP, metavar="mild|severe", rich_help_panel=_WHAT)
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The folder for weights and pages. The same command goes on there.", rich_help_panel=_RUN
        ),
    ] = Path("brittle-mend"),
    config: Annotated[
        Path | None,
        typer.Option(
            callback=options_from_file,
            is_eager=True,
            metavar="RUN.toml",
            help="Options from a TOML file, by their long names; the command line wins.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples that go through the model together.", rich_help_panel=_RUN)
    ] = 128,
    title: Annotated[str | None, typer.Option(help="Of the pages.", rich_help_panel=_RUN)] = None,
    json: shared.Json = False,
) -> None:
    """Diagnose a network, try a repair for each flaw, and keep those that help.

    Repairs train on --data train=PLACE and are chosen on --data validation=PLACE;
    before and after are compared on --data test=PLACE, if there is one. 'digits' alone is all three.
    The model's own files stay as they are; the mended weights are in --out.
    After an interruption the same command goes on from there.

    Exit code: 0 nothing that --fail-on names is left, 1 it is,
    2 bad input, 3 internal error or interruption.
    """
    op = "mend"
    with exit_codes(op, resumes=not dry_run):
        require(op, *DIAGNOSIS, *REPORT)
        check_severity(op, fail_on)
        flawed = Flawed.of(op, model, weights, untrained, untrained_weights, data, size, test=True)
        limits = values.pair(op, "--bounds", bounds)
        options: dict[str, Any] = {"samples": samples, "eps": flawed.radius(eps), "seed": seed}
        options["batch_size"] = batch_size
        models = flawed.load_models(device, trust_checkpoint, (mean, std))
        sets = flawed.open_data(batch_size, seed, skip_bad)
        if dry_run:
            _print_suggestions(flawed.diagnosis(models, sets, limits, options), json)
            return
        from brittle.repair import mend as mend_model

        with progress_on_stderr() as progress:
            mending = mend_model(
                models[0],
                sets["train"],
                sets["validation"],
                models[1],
                test=sets.get("test"),
                epochs=epochs,
                tolerance=tolerance,
                out=out,
                title=clean_text(title or Path(model).name),
                provenance=flawed.described(),
                progress=progress,
                bounds=limits,
                **options,
            )
        if json:
            typer.echo((out / "mend.json").read_text(encoding="utf-8"), nl=False)
        else:
            typer.echo(mending.table())
            typer.echo(f"weights: {out / 'mended.safetensors'}")
            typer.echo(f"report: {out / 'mend.html'}")
        if fails(mending.after, fail_on):
            raise typer.Exit(MISSED)


def _print_suggestions(found: Diagnosis, json: bool) -> None:
    from brittle.repair import suggest

    suggestions = suggest(found)
    if json:
        content = {"diagnosis": found.summary(), "suggestions": [each.summary() for each in suggestions]}
        typer.echo(json_module.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
        return
    typer.echo(found.table())
    typer.echo("")
    for number, suggestion in enumerate(suggestions, 1):
        typer.echo(f"{number}. {suggestion.text()}")
