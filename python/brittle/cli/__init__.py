"""The command line: results go to stdout, progress and what is wrong to stderr.

Exit codes: 0, what was asked for holds or nothing was asked for; 1, it does not hold; 2, bad input; 3, an
internal error or an interruption.
"""

from __future__ import annotations

from typing import Annotated

import typer

from brittle import __version__
from brittle.cli import compare, demo, diagnose, drift, env, evaluate, mend, verify

# Everything heavy is imported by the command that needs it, so that --help answers at once.
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


app.command()(demo.demo)
app.command()(evaluate.evaluate)
app.command()(verify.verify)
app.command()(compare.compare)
app.command()(drift.reference)
app.command()(drift.drift)
app.command()(diagnose.diagnose)
app.command()(mend.mend)
app.command()(env.env)
