"""How a command ends: its exit code, and what it says about it."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from brittle._extras import UnusablePackage

HELD, MISSED, BAD_INPUT, FAILED = 0, 1, 2, 3

_PACKAGE = str(Path(__file__).parent.parent)
# torchrun stops every process once one has ended; by then the first one has said what there is to say.
_GRACE = 10.0  # seconds


def rank() -> int:
    """This process among those that torchrun has started; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


@contextmanager
def exit_codes(command: str, *, resumes: bool = False) -> Iterator[None]:
    """Turn what a command's body raises into one sentence on stderr and an exit code.

    Args:
        command: its name.
        resumes: the same command goes on where an interrupted one stopped.
    """
    goes_on = "; the same command goes on from there" if resumes else ""
    try:
        with _warnings_as_lines():
            yield
    except (typer.Exit, typer.BadParameter, ModuleNotFoundError):  # the last is brittle.__main__'s affair
        raise
    except KeyboardInterrupt:
        _end(FAILED, f"{command}: interrupted{goes_on}")
    except BrokenPipeError:
        # Whoever read the output has gone; what Python still holds of it must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(FAILED, f"{command}: the output's reader has gone")
    except Exception as error:
        if _is_bad_input(error):
            _end(BAD_INPUT, str(error))
        if _is_out_of_memory(error):
            _end(FAILED, f"{command}: out of memory; take a smaller --batch-size or --fixed-batch{goes_on}")
        _end(
            FAILED,
            f"{traceback.format_exc()}\n{command}: an internal error{goes_on}. Unless it comes from your own "
            "code, please report it as a bug, with the lines above and the output of `python -m brittle env`",
        )


def _end(code: int, text: str) -> None:
    if rank():
        time.sleep(_GRACE)
    typer.echo(text, err=True)
    raise typer.Exit(code)


def _is_bad_input(error: Exception) -> bool:
    """Whether brittle itself found fault with what it was given, and says so in a sentence for users."""
    if isinstance(error, UnusablePackage):
        return True
    if not isinstance(error, (ValueError, OSError)):
        return False
    if any(kind.__name__ in ("BadSample", "RunStoreError") for kind in type(error).__mro__):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return raised_in.startswith(_PACKAGE) and re.match(r"[\w.]+: \S", str(error)) is not None


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(error, (MemoryError, *([torch.OutOfMemoryError] if torch else [])))


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """A warning is a line on stderr, without the place in our code that it came from."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: Any = None,
    ) -> None:
        if not rank():
            typer.echo(f"warning: {' '.join(str(message).split())}", err=True)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
