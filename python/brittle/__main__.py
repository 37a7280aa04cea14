"""The command ``brittle``, also as ``python -m brittle``."""

import sys

# What the extra `brittle[eval]` brings.
_EXTRAS = {"jinja2", "matplotlib", "rich", "sklearn", "typer"}


def main() -> None:
    """Run the command line; without the extra packages only what needs none of them."""
    try:
        from brittle.cli import app

        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        _minimal(sys.argv[1:], error.name)


def _minimal(arguments: list[str], missing: str | None) -> None:
    if arguments == ["--version"]:
        from brittle import __version__

        print(f"brittle {__version__}")
    elif arguments in (["env"], ["env", "--json"]):
        from brittle import environment

        print(environment.as_json() if arguments[1:] else environment.as_text())
    else:
        sys.exit(f"brittle: this command needs {missing}; install `brittle[eval]`.")


if __name__ == "__main__":
    main()
