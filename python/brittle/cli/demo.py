"""``brittle demo``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brittle._extras import require
from brittle.cli.exits import exit_codes
from brittle.cli.progress import progress_on_stderr

if TYPE_CHECKING:
    from brittle.demo import Result


def _check_epsilons(values: list[float] | None) -> list[float] | None:
    for eps in values or ():
        if not (math.isfinite(eps) and 0 <= eps <= 1):
            raise typer.BadParameter(f"pixels are in [0, 1], and so must epsilon be; got {eps}")
    if values and not any(values):
        raise typer.BadParameter("at least one epsilon must be above 0")
    return values


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
    with exit_codes("demo"):
        require("demo", "rich", "sklearn.datasets", "matplotlib.figure", "jinja2")
        from brittle import demo as demonstration

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(
                f"cannot write to {out}: {error.strerror}", param_hint="'--out'"
            ) from None
        with progress_on_stderr() as progress:
            result = demonstration.run(out, seed, eps or demonstration.EPSILONS, progress)
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
