"""The command line: progress goes to stderr, results to stdout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brittle import __version__

# Everything heavy is imported by the command that needs it, so that --help answers at once.
if TYPE_CHECKING:
    from brittle.demo import Result

app = typer.Typer(
    name="brittle",
    help="Finds where a neural network breaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brittle {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _check_epsilons(values: list[float] | None) -> list[float] | None:
    for eps in values or ():
        if not (math.isfinite(eps) and 0 <= eps <= 1):
            raise typer.BadParameter(f"pixels are in [0, 1], and so must epsilon be; got {eps}")
    if values and not any(values):
        raise typer.BadParameter("at least one epsilon must be above 0")
    return values


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for report.html; made if absent.", file_okay=False, writable=True)
    ] = Path("brittle-demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the network's training and of PGD's starts.")
    ] = 0,
    eps: Annotated[
        list[float] | None,
        typer.Option(
            help="Largest change of a pixel, in [0, 1]; repeat it for a sweep. 0 is always part of it.",
            callback=_check_epsilons,
        ),
    ] = None,
) -> None:
    """Train a network on handwritten digits, break it with FGSM and PGD, and write a report."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from brittle import demo as demonstration

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot write to {out}: {error.strerror}", param_hint="'--out'") from None

    columns = TextColumn("{task.description:14}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        result = demonstration.run(out, seed, eps or demonstration.EPSILONS, advance)
    _print_result(result)


def _print_result(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    from brittle.report import percent

    console = Console(highlight=False)
    console.print(f"clean accuracy: {percent(result.clean_accuracy)} of {result.fgsm.samples} test digits")
    table = Table(title="accuracy under attack")
    for title in ("epsilon", "FGSM", "PGD"):
        table.add_column(title, justify="right")
    rows = zip(result.fgsm.epsilons, result.fgsm.accuracy, result.pgd.accuracy, strict=True)
    for eps, by_fgsm, by_pgd in rows:
        table.add_row(f"{eps:g}", percent(by_fgsm), percent(by_pgd))
    console.print(table)
    # Not through Rich, which would wrap a long path and read its brackets as markup.
    typer.echo(f"report: {result.report}")


@app.command()
def env(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Print what a bug report needs: versions, devices, and how brittle was built."""
    from brittle import environment

    typer.echo(environment.as_json() if json else environment.as_text())
