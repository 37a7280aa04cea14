"""Models and data for tests of the command line, and how to run it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brittle.cli import app
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

CODE = """
import time
from pathlib import Path

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, change=lambda logits: logits, mean=0.0, classes=3):
        super().__init__()
        torch.manual_seed(19)
        self.layer = nn.Linear(36, 16)
        self.head = nn.Linear(16, classes)
        self.change = change
        self.mean = mean

    def forward(self, x):
        return self.change(20 * self.head(torch.relu(self.layer(x.flatten(1) - 0.5 + self.mean))))

def build():
    return Net()

def normalised():
    return Net(mean=0.5)

def probabilities():
    return Net(lambda logits: logits.softmax(1))

def nan():
    return Net(lambda logits: logits * float("nan"))

def infinite():
    return Net(lambda logits: logits / 0)

def random():
    return Net(lambda logits: logits + torch.rand_like(logits))

def elsewhere():
    return Net(lambda logits: logits + torch.zeros(3, device="meta"))

def waits():
    # Once a run has begun, stands still at a gradient while there is a file "wait".
    def wait(logits):
        while logits.requires_grad and Path("wait").exists() and Path("brittle-run", "run.sqlite").exists():
            Path("waiting").touch()
            time.sleep(0.01)
        return logits
    return Net(wait)

def two_classes():
    return Net(classes=2)

def wide():
    return nn.Linear(5, 3)

def confused():
    return Net(lambda logits: [logits])

def raises():
    return Net(lambda logits: logits.absent)
"""

# Fast, and enough for a verdict.
FEW = ("--views", "classification", "--norm", "linf")


def prepare() -> None:
    """``net.py``, and 40 grey images that it is right about as ``data.npz`` and as ``images/``."""
    Path("net.py").write_text(CODE)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    y = answers(pixels)
    np.savez("data.npz", x=pixels, y=y)
    for row, (image, label) in enumerate(zip(pixels, y, strict=True)):
        place = Path("images", "abc"[label], f"{row:02}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    assert set(y) == {0, 1, 2}


def answers(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    names: dict[str, Any] = {}
    exec(CODE, names)
    with torch.no_grad():
        return names["build"]()(torch.from_numpy(pixels).float() / 255).argmax(1).numpy()


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"}, catch_exceptions=False)


def evaluated(*arguments: str, model: str = "net.py:build", data: str = "data.npz") -> Result:
    return command("evaluate", "--model", model, "--data", data, *arguments)


def process(*arguments: str) -> "subprocess.Popen[str]":
    """A real one, in the working directory."""
    python = [sys.executable, "-m", "brittle", *arguments]
    return subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
