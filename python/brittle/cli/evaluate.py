"""``brittle evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brittle._extras import REPORT, require
from brittle.cli import options as shared
from brittle.cli import values
from brittle.cli.config import options_from_file
from brittle.cli.exits import MISSED, exit_codes, rank
from brittle.cli.inputs import Inputs
from brittle.cli.progress import progress_on_stderr

if TYPE_CHECKING:
    from brittle.evaluation import Report

_WHAT, _RUN = "What to look at", "Run"


def evaluate(
    model: shared.Model,
    data: shared.Data,
    weights: shared.Weights = None,
    trust_checkpoint: shared.TrustCheckpoint = False,
    device: shared.Device = "auto",
    mean: shared.Mean = None,
    std: shared.Std = None,
    groups: shared.Groups = None,
    bounds: shared.Bounds = "0,1",
    size: shared.Size = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take so many samples, spread over each set; the report says so.",
            rich_help_panel="Data",
        ),
    ] = None,
    skip_bad: shared.SkipBad = False,
    views: Annotated[
        list[str] | None,
        typer.Option(
            help="classification, segments, calibration, ood, robustness, shift, sets, landscape, samples, "
            "repeat, duplicates; by default all that the data allow.",
            metavar="NAME,...",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    norms: Annotated[
        list[str], typer.Option("--norm", help="linf, l2, l1.", metavar="NAME,...", rich_help_panel=_WHAT)
    ] = ["linf", "l2"],  # noqa: B006
    epsilons: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii, for Linf or with a norm before them: 4/255,8/255 or l2:0.5,1. By default the usual "
            "ones for images.",
            metavar="[NORM:]EPS,...",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    reported: Annotated[
        list[str] | None,
        typer.Option(
            help="The radius that the report speaks of first, in each norm; by default the one nearest to "
            "8/255, l2:0.5, l1:12.",
            metavar="[NORM:]EPS",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    attacks: Annotated[
        list[str],
        typer.Option(help="fgsm, pgd, minimal, random.", metavar="NAME,...", rich_help_panel=_WHAT),
    ] = ["fgsm", "pgd", "minimal", "random"],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Of PGD and of the search.", rich_help_panel=_WHAT)] = 40,
    restarts: Annotated[int, typer.Option(min=1, help="Of PGD.", rich_help_panel=_WHAT)] = 3,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_WHAT)] = 0,
    repeat_seeds: Annotated[
        int,
        typer.Option(min=1, help="Repeat noise and PGD with so many seeds in all.", rich_help_panel=_WHAT),
    ] = 1,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            help="What must hold: accuracy=0.9, f1=..., worst_group=..., auroc=..., robust=0.5@8/255, "
            "robust=0.4@0.5:l2 (at least); ece=0.05, log_loss=... (at most). Exit code 1 where it does not.",
            metavar="MEASURE=VALUE",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The run's folder. The same command goes on there.", rich_help_panel=_RUN)
    ] = Path("brittle-run"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew, in a folder beside --out.", rich_help_panel=_RUN)
    ] = False,
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
    precision: Annotated[
        str, typer.Option(help="Of the search: float32 or bfloat16.", rich_help_panel=_RUN)
    ] = "float32",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples attacked and saved together.", rich_help_panel=_RUN)
    ] = 256,
    fixed_batch: shared.FixedBatch = None,
    title: Annotated[str | None, typer.Option(help="Of the report.", rich_help_panel=_RUN)] = None,
    json: shared.Json = False,
) -> None:
    """Evaluate a model on data: robustness, calibration, shift, segments and more, in a report.

    Every sample's results are kept in --out as they come.
    After an interruption the same command goes on from there.
    Under torchrun the processes share the samples.

    Exit code: 0 what --fail-under asks for holds, 1 it does not,
    2 bad input, 3 internal error or interruption.
    """
    op = "evaluate"
    with exit_codes(op, resumes=True):
        require(op, *REPORT)
        inputs = Inputs.of(op, model, weights, data, groups, size)
        chosen = values.words(norms)
        settings: dict[str, Any] = {
            "views": values.words(views) if views else None,
            "norms": chosen,
            "epsilons": values.by_norm(op, "--epsilons", epsilons, chosen),
            "reported": _reported(op, reported, chosen),
            "attacks": values.words(attacks),
            "steps": steps,
            "restarts": restarts,
            "bounds": values.pair(op, "--bounds", bounds),
            "mean": None if mean is None else values.numbers(op, "--mean", mean),
            "std": None if std is None else values.numbers(op, "--std", std),
            "precision": precision,
            "batch_size": batch_size,
            "fixed_batch": fixed_batch,
            "limit": limit,
            "seed": seed,
            "repeat_seeds": repeat_seeds,
            "skip_bad": skip_bad,
            "fail_under": values.words(fail_under or ()),
            "fresh": fresh,
            "title": title,
        }
        report = _run(inputs, device, trust_checkpoint, out, settings)
        if not rank():
            _print(report, json)
            if report.held is False:
                raise typer.Exit(MISSED)


def _run(
    inputs: Inputs, device: str, trust_checkpoint: bool, out: Path, settings: Mapping[str, Any]
) -> Report:
    from brittle.evaluation import evaluate

    module = inputs.load_model(device, trust_checkpoint)
    sources = inputs.open_data()
    with progress_on_stderr() as progress:
        return evaluate(
            module,
            sources,
            out,
            **settings,
            provenance=inputs.described(),
            arguments=inputs.as_json()
            | {"skip-bad": settings["skip_bad"], "trust-checkpoint": trust_checkpoint},
            progress=progress,
        )


def _reported(op: str, texts: Sequence[str] | None, norms: Sequence[str]) -> dict[str, float] | None:
    found = values.by_norm(op, "--reported", texts, norms)
    for norm, radii in (found or {}).items():
        if len(radii) > 1:
            raise ValueError(f"{op}: --reported must be one radius for each norm; got {radii} for {norm}")
    return None if found is None else {norm: radii[0] for norm, radii in found.items()}


def _print(report: Report, json: bool) -> None:
    """The verdict as text; or ``report.json`` as it is."""
    if json:
        typer.echo((report.out / "report.json").read_text(encoding="utf-8"), nl=False)
        return
    from brittle.evaluation.verdict import Judged, Verdict

    verdict = report.summary["verdict"]
    lines = Verdict(
        verdict["held"],
        verdict["headline"],
        tuple(verdict["sentences"]),
        tuple(Judged(**one) for one in verdict["requirements"]),
    )
    typer.echo(lines.text())
    for finding in report.summary["findings"]:
        typer.echo(f"{finding['severity']}: {finding['title']}. {finding['evidence']}")
    typer.echo(f"report: {report.out / 'report.html'}")
