"""Find what is wrong with a network, mend it, and see what that was worth.

    python examples/mend.py [FOLDER]

A convolutional network has learned scikit-learn's 8 x 8 digits. Then half of its first layer's channels
become copies of the others, and most of the second layer's never answer again, as after a learning rate that
was too high for a moment. The diagnosis names both layers; each gets its repair, chosen on one half of the
digits that the network never saw, and the other half tells whether it helped. With FOLDER, weights,
evaluations and pages are written there. Takes about fifteen seconds, and as long again with FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from brittle.demo import trained_network
from brittle.repair import Mending, mend
from brittle.sources import digits
from torch import nn


def harmed(seed: int = 0) -> nn.Module:
    """The network with the two flaws."""
    model = trained_network(digits()[0], seed, lambda stage, done, total: None)
    first, second = model.get_submodule("0"), model.get_submodule("2")
    with torch.no_grad():
        for tensor in (first.get_parameter("weight"), first.get_parameter("bias")):
            tensor[8:] = tensor[:8]
        second.get_parameter("bias")[:28] = -10.0
    return model


def mended(out: Path | None = None, seed: int = 0) -> Mending:
    """What diagnosing and mending gives."""
    train, new = digits()
    return mend(
        harmed(seed),
        (train.x, train.y),
        (new.x[::2], new.y[::2]),
        test=(new.x[1::2], new.y[1::2]),
        eps=0.05,
        seed=seed,
        out=out,
        title="Digits with two planted flaws",
    )


def main() -> None:
    """Mend the network and print what came of it."""
    parser = argparse.ArgumentParser(description="Mend a network that reads handwritten digits.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    mending = mended(arguments.folder, arguments.seed)
    print(mending.before.table(), end="\n\n")
    print(mending.table())
    if arguments.folder is not None:
        print(f"page: {arguments.folder / 'mend.html'}")


if __name__ == "__main__":
    main()
