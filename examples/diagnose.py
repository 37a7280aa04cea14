"""A digit classifier with three flaws put into it, and what the diagnosis says of each.

    python examples/diagnose.py [FOLDER]

Writes FOLDER/diagnosis.png, layers against kinds of flaw with the measurements beside them.
"""

import copy
import sys
from pathlib import Path

import torch
from brittle.demo import digits
from brittle.diagnosis import Diagnosis, diagnose
from brittle.repair import train
from torch import nn


def network() -> nn.Sequential:
    """Four convolutions and two linear layers; by the names of what is put into them."""
    torch.manual_seed(0)
    layers = {
        "first": nn.Conv2d(1, 16, 3, padding=1),
        "frozen": nn.Conv2d(16, 32, 3, padding=1),
        "copied": nn.Conv2d(32, 32, 3, padding=1, stride=2),
        "fourth": nn.Conv2d(32, 32, 3, padding=1),
        "starved": nn.Linear(32 * 16, 64),
        "last": nn.Linear(64, 10),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        if name == "starved":
            model.append(nn.Flatten())
        model.add_module(name, layer)
        if name != "last":
            model.append(nn.ReLU())
    return model


def flawed() -> tuple[nn.Module, nn.Module]:
    """The network after training, and as it was before."""
    model = network()
    with torch.no_grad():
        # Equal weights in and out have equal gradients, so that copies remain copies.
        model.copied.weight[16:], model.copied.bias[16:] = model.copied.weight[:16], model.copied.bias[:16]
        model.fourth.weight[:, 16:] = model.fourth.weight[:, :16]
        model.starved.bias[:48] = -10
    untrained = copy.deepcopy(model)
    data, _ = digits()
    train(model, (data.x, data.y), epochs=6, parameters=["first", "copied", "fourth", "starved", "last"])
    return model, untrained


def main(folder: Path) -> Diagnosis:
    """Look, print, draw."""
    model, untrained = flawed()
    data, test = digits()
    found = diagnose(model, (data.x, data.y), (test.x, test.y), untrained)
    print(found.table())
    folder.mkdir(parents=True, exist_ok=True)
    found.plot(folder / "diagnosis.png")
    print(f"picture: {folder / 'diagnosis.png'}")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "brittle-diagnosis"))
