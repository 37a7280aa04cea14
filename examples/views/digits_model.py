"""What the scripts beside this one share: handwritten digits, a network that reads them, and their start."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from brittle.demo import trained_network
from brittle.evaluation import Report
from brittle.sources import Digits, digits
from torch import nn

TRAIN, TEST = digits()


def trained(data: Digits) -> nn.Module:
    """A small convolutional network that has learned these digits; the same weights each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return trained_network(data, 0, lambda stage, done, total: None)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def network() -> nn.Module:
    """One that has learned all of ``TRAIN``; it is trained once in a process, in a few seconds."""
    return trained(TRAIN)


def run(look: Callable[[Path], Report], about: str | None) -> None:
    """Start a script: evaluate in the folder that was named, and say where the report is."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Path("brittle-views", Path(sys.argv[0]).stem)
    parser.add_argument("folder", type=Path, nargs="?", default=usual, help=f"of the run ({usual})")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)  # so small a network gains nothing from more
    print(f"report: {look(folder).out / 'report.html'}")
