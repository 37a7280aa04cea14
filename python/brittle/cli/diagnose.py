"""``brittle diagnose``."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brittle._extras import DIAGNOSIS, require
from brittle._files import PAGE, clean_text, refuse_foreign
from brittle.cli import options as shared
from brittle.cli import values
from brittle.cli.config import options_from_file
from brittle.cli.exits import MISSED, exit_codes
from brittle.cli.flawed import FAIL_HELP, PLACES, Flawed, Untrained, UntrainedWeights, check_severity

if TYPE_CHECKING:
    from brittle.diagnosis import Diagnosis

_WHAT, _RUN = "What to look at", "Run"


def diagnose(
    model: shared.Model,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PLACE",
            help="What it was trained on, train=PLACE, and what it was not, validation=PLACE: " + PLACES,
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
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Names of layers, or patterns such as 'features.*'; by default all that have weights.",
            metavar="NAME,...",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of each set, at most.", rich_help_panel=_WHAT)] = 2048,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Radius of the attack, Linf; by default 8/255 of the bounds' width.", rich_help_panel=_WHAT
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_WHAT)] = 0,
    fail_on: Annotated[
        str | None, typer.Option(help=FAIL_HELP, metavar="mild|severe", rich_help_panel=_WHAT)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for report.html and diagnosis.json.", rich_help_panel=_RUN),
    ] = None,
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
    title: Annotated[str | None, typer.Option(help="Of the page.", rich_help_panel=_RUN)] = None,
    json: shared.Json = False,
) -> None:
    """Find what is wrong with a network, layer by layer, and how badly.

    Give the training data as --data train=PLACE and data that the model was not trained on as
    --data validation=PLACE; 'digits' alone is both.

    Exit code: 0 nothing that --fail-on names was found, 1 it was,
    2 bad input, 3 internal error or interruption.
    """
    op = "diagnose"
    with exit_codes(op):
        require(op, *DIAGNOSIS)
        check_severity(op, fail_on)
        if out is not None:
            refuse_foreign(op, out / "report.html", PAGE)
            refuse_foreign(op, out / "diagnosis.json", b'"layers"')
        flawed = Flawed.of(op, model, weights, untrained, untrained_weights, data, size)
        wanted = values.words(layers) if layers else None
        limits = values.pair(op, "--bounds", bounds)
        options = {
            "layers": wanted,
            "samples": samples,
            "eps": flawed.radius(eps),
            "seed": seed,
            "batch_size": batch_size,
        }
        models = flawed.load_models(device, trust_checkpoint, (mean, std))
        sets = flawed.open_data(batch_size, seed, skip_bad)
        found = flawed.diagnosis(models, sets, limits, options)
        if out is not None:
            _write(op, out, found, clean_text(title or Path(model).name), flawed.described())
        if json:
            typer.echo(json_module.dumps(found.summary(), indent=1, ensure_ascii=False, allow_nan=False))
        else:
            typer.echo(found.table())
            if out is not None:
                typer.echo(f"report: {out / 'report.html'}")
        if fails(found, fail_on):
            raise typer.Exit(MISSED)


def fails(found: Diagnosis, severity: str | None) -> bool:
    """Whether there is a flaw as severe as ``--fail-on`` says, or more."""
    from brittle.diagnosis.flaws.result import SEVERITIES

    worst = max((SEVERITIES.index(finding.severity) for finding in found.flaws), default=0)
    return severity is not None and worst >= SEVERITIES.index(severity)


def _write(op: str, out: Path, found: Diagnosis, title: str, provenance: dict[str, str]) -> None:
    from brittle.report.diagnosis import diagnosis_page

    summary = found.summary()
    text = json_module.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    files: Iterable[tuple[str, str]] = (
        ("diagnosis.json", text + "\n"),
        ("report.html", diagnosis_page(summary, title, provenance)),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files:
            (out / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{op}: --out must be a folder that can be written; {out}: {error.strerror}"
        ) from None
