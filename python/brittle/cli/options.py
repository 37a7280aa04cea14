"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL, _DATA = "Model", "Data"

MODEL_HELP = "Your code, which is run: FUNCTION returns the module. With --trust-checkpoint also NET.pt2."
WEIGHTS_HELP = "Its weights: safetensors; with --trust-checkpoint also a torch checkpoint or a .pt2."
DATA_HELP = (
    "A folder of class folders of images, an .npz file with x and y, or 'digits'. Repeat it for several "
    "sets; the first is the main one."
)
GROUPS_HELP = (
    "The segment of each sample, whose name or row number is in the CSV file's first column. COLUMN is the "
    "second by default, NAME the main set."
)

Model = Annotated[
    str, typer.Option("--model", metavar="FILE.py:FUNCTION", help=MODEL_HELP, rich_help_panel=_MODEL)
]
Weights = Annotated[Path | None, typer.Option("--weights", help=WEIGHTS_HELP, rich_help_panel=_MODEL)]
TrustCheckpoint = Annotated[
    bool,
    typer.Option(
        "--trust-checkpoint",
        help="Read torch checkpoints and .pt2 files, although reading them can run their maker's code.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="'cpu', 'cuda:1', ...; 'auto' is a GPU where there is one.", rich_help_panel=_MODEL
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Per channel, if the model expects (x - mean) / std: 0.485,0.456,0.406", rich_help_panel=_MODEL
    ),
]
Std = Annotated[str | None, typer.Option(help="Per channel, with --mean.", rich_help_panel=_MODEL)]
Data = Annotated[
    list[str], typer.Option("--data", metavar="[NAME=]PLACE", help=DATA_HELP, rich_help_panel=_DATA)
]
Groups = Annotated[
    list[str] | None,
    typer.Option("--groups", metavar="[NAME=]CSV[:COLUMN]", help=GROUPS_HELP, rich_help_panel=_DATA),
]
Bounds = Annotated[
    str,
    typer.Option(help="Smallest and largest value of the inputs.", metavar="LO,HI", rich_help_panel=_DATA),
]
Size = Annotated[
    str | None, typer.Option(help="Resize images to this.", metavar="H,W", rich_help_panel=_DATA)
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out samples that cannot be read, and list them.", rich_help_panel=_DATA
    ),
]
FixedBatch = Annotated[
    int | None,
    typer.Option(
        min=1, help="Samples in each call of the model; 32 on a CPU, 256 on a GPU.", rich_help_panel="Run"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]
