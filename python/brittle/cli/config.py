"""Options from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from brittle import _files

# How name and value of a table are joined: `[data] train = "..."` is `--data train=...`.
_JOINTS = {"data": "=", "groups": "=", "epsilons": ":", "reported": ":"}
_NO_OPTIONS = {"config", "help"}
_LARGEST = 1 << 20  # bytes


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
        with _files.open_regular(path) as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise typer.BadParameter(f"{path} must be TOML of at most {_LARGEST >> 20} MiB; it has more")
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # of decoding, and of TOML
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
                f"{path}: unknown option {_shown(key)}; there are {', '.join(sorted(options))}"
            )
        found[parameter.name] = _as_given(path, key.replace("_", "-"), value, parameter)
    ctx.default_map = {**(ctx.default_map or {}), **found}
    return path


def _as_given(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """The value as the command line would give it."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{path}: {key} must be true or false; got {_shown(value)}")
        return value
    if isinstance(value, Mapping) and key in _JOINTS:
        texts = [f"{name}{_JOINTS[key]}{_text(path, key, entry)}" for name, entry in value.items()]
    elif isinstance(value, list) and parameter.multiple:
        texts = [_text(path, key, entry) for entry in value]
    else:
        texts = [_text(path, key, value)]
    for text in texts:
        if "\0" in text:
            raise typer.BadParameter(f"{path}: {key} must be text without zero bytes; got {_shown(text)}")
    return texts if parameter.multiple else texts[0]


def _text(path: Path, key: str, value: Any) -> str:
    return ",".join(_word(path, key, entry) for entry in (value if isinstance(value, list) else [value]))


def _word(path: Path, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise typer.BadParameter(f"{path}: {key} must be text or numbers; got {_shown(value)}")
    try:
        return str(value)
    except ValueError:  # Python writes no integer of thousands of digits
        raise typer.BadParameter(f"{path}: {key} must be a number that fits; got one too long") from None


def _shown(value: Any) -> str:
    """The value, but not a whole file of it."""
    if isinstance(value, (list, Mapping)):
        return "a table" if isinstance(value, Mapping) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
