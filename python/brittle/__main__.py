"""The command ``brittle``, also as ``python -m brittle``."""

import sys
import traceback

# What the extra `brittle[eval]` brings.
_EXTRAS = {"PIL", "jinja2", "matplotlib", "rich", "safetensors", "sklearn", "torchmetrics", "typer"}
_BAD_INPUT, _FAILED = 2, 3


def main() -> None:
    """Run the command line; without the extra packages only what needs none of them."""
    try:
        from brittle.cli import app

        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            traceback.print_exc()
            sys.exit(_FAILED)
        _minimal(sys.argv[1:], error.name)
    except Exception:
        traceback.print_exc()
        sys.exit(_FAILED)


def _minimal(arguments: list[str], missing: str | None) -> None:
    if arguments == ["--version"]:
        from brittle import __version__

        print(f"brittle {__version__}")
    elif arguments in (["env"], ["env", "--json"]):
        from brittle import environment

        print(environment.as_json() if arguments[1:] else environment.as_text())
    else:
        print(
            f"brittle: this command needs {missing}; `pip install '.[eval]'` in its folder installs it.",
            file=sys.stderr,
        )
        sys.exit(_BAD_INPUT)


if __name__ == "__main__":
    main()
