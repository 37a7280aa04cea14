"""``brittle compare``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from brittle.cli import options as shared
from brittle.cli.exits import exit_codes


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a finished run: before.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another: after.")],
    out: Annotated[Path, typer.Option(help="The page to write.", dir_okay=False)] = Path(
        "brittle-compare.html"
    ),
    json: shared.Json = False,
) -> None:
    """Put two finished runs side by side, on stdout and on a page."""
    op = "compare"
    with exit_codes(op):
        from brittle._extras import require
        from brittle._files import PAGE, refuse_foreign

        require(op, "jinja2", "matplotlib.figure", "pydantic", "scipy.stats")
        from brittle.evaluation import compare as numbers_of
        from brittle.report import compare_page

        refuse_foreign(op, out, PAGE)
        found = numbers_of(run_a, run_b)
        page = compare_page(found.a, found.b, found.summary)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"{op}: --out must be a file that can be written; {out}: {error.strerror}"
            ) from None
        if json:
            typer.echo(json_module.dumps(found.summary, indent=1, ensure_ascii=False, allow_nan=False))
        else:
            typer.echo(found.table())
            typer.echo(f"page: {out}")
