"""Options from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

# How name and value of a table are joined: `[data] train = "..."` is `--data train=...`.
_JOINTS = {"data": "=", "groups": "=", "epsilons": ":", "reported": ":"}
_NO_OPTIONS = {"config", "help"}


def options_from_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take what ``path`` says as the options' defaults, so that the command line wins."""
    if path is None or ctx.resilient_parsing:
        return path
    try:
        import tomllib
    except ModuleNotFoundError:
        raise typer.BadParameter(
            "a TOML file needs Python 3.11 or newer; give the options themselves"
        ) from None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of decoding, and of TOML
        raise typer.BadParameter(f"{path} must be TOML in UTF-8: {error}") from None
    options = {
        option.removeprefix("--"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--") and option.removeprefix("--") not in _NO_OPTIONS
    }
    found: dict[str, Any] = {}
    for key, value in table.items():
        parameter = options.get(key.replace("_", "-"))
        if parameter is None or parameter.name is None:
            raise typer.BadParameter(
                f"{path}: unknown option {key!r}; there are {', '.join(sorted(options))}"
            )
        found[parameter.name] = _as_given(path, key.replace("_", "-"), value, parameter)
    ctx.default_map = {**(ctx.default_map or {}), **found}
    return path


def _as_given(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """The value as the command line would give it."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{path}: {key} must be true or false; got {value!r}")
        return value
    if isinstance(value, Mapping) and key in _JOINTS:
        texts = [f"{name}{_JOINTS[key]}{_text(path, key, entry)}" for name, entry in value.items()]
    elif isinstance(value, list) and parameter.multiple:
        texts = [_text(path, key, entry) for entry in value]
    else:
        texts = [_text(path, key, value)]
    return texts if parameter.multiple else texts[0]


def _text(path: Path, key: str, value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(path, key, entry) for entry in value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise typer.BadParameter(f"{path}: {key} must be text or numbers; got {value!r}")
    return str(value)
