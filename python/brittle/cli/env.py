"""``brittle env``."""

from __future__ import annotations

from typing import Annotated

import typer


def env(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Print what a bug report needs: versions, devices, and how brittle was built."""
    from brittle import environment

    typer.echo(environment.as_json() if json else environment.as_text())
