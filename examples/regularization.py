"""What penalties do to a network that reads digits: accuracy, robustness, redundancy. Over five seeds.

    python examples/regularization.py

Trains the same convolutional network on 1297 of scikit-learn's 8 x 8 digits, without a penalty and with each
of several. Tells, on 500 other digits: accuracy, clean, under FGSM and under PGD; the norm of the input
gradient; of the second convolution how alike units are, by their weights and by what they give (mean absolute
cosine); how many weights are next to nothing; and the processor time of training. Takes about six minutes.
"""

from __future__ import annotations

import argparse
from statistics import fmean, stdev
from time import process_time

import torch
import torch.nn.functional as F  # noqa: N812
from brittle import fgsm, pgd
from brittle.ops import pairwise_cosine
from brittle.repair import Penalty, regularizer, train
from brittle.repair.duplicates import centred, unit_outputs
from brittle.sources import digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]

LAYER, EPS = "2", 0.1

# Not of the layer that tells the classes apart: there are as many units as there have to be.
UNITS = {"8": {"redundancy": 0.0}}

PENALTIES: dict[str, Penalty | None] = {
    "none": None,
    "l1 1e-4": regularizer(l1=1e-4),
    "l1 1e-3": regularizer(l1=1e-3),
    "l2 1e-3": regularizer(l2=1e-3),
    "elastic 1e-3, 0.5": regularizer(elastic=(1e-3, 0.5)),
    "gradients 0.1": regularizer(gradient_penalty=0.1),
    "gradients 1": regularizer(gradient_penalty=1.0),
    "weights alike 1": regularizer(redundancy=1.0, layers=UNITS),
    "weights alike 10": regularizer(redundancy=10.0, layers=UNITS),
    "units alike 1": regularizer(redundancy=1.0, redundancy_of="activations", layers=UNITS),
    "units alike 10": regularizer(redundancy=10.0, redundancy_of="activations", layers=UNITS),
}


def network(seed: int) -> nn.Sequential:
    """Two convolutions and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def alike(rows: Tensor) -> float:
    """The mean absolute cosine of two different rows."""
    cosines = pairwise_cosine(rows.detach()).abs()
    return ((cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1))).item()


def experiment(penalty: Penalty | None, seed: int, epochs: int, data: Pair, test: Pair) -> dict[str, float]:
    """Train once, and measure."""
    model, (x, y) = network(seed), test
    begin = process_time()
    train(model, data, epochs=epochs, batch_size=64, seed=seed, regularizer=penalty)
    seconds = process_time() - begin
    model.eval()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    with torch.no_grad():
        clean = model(x).argmax(1) == y
        by_fgsm = model(fgsm(model, x, y, EPS)).argmax(1) == y
        by_pgd = model(pgd(model, x, y, EPS)).argmax(1) == y
    weights = torch.cat([part.detach().flatten() for part in model.parameters() if part.dim() > 1])
    return {
        "clean, %": 100 * clean.double().mean().item(),
        "FGSM, %": 100 * by_fgsm.double().mean().item(),
        "PGD, %": 100 * by_pgd.double().mean().item(),
        "gradient": gradient.flatten(1).norm(dim=1).mean().item(),
        "weights alike": alike(model.get_submodule(LAYER).weight.flatten(1)),
        "units alike": alike(centred(unit_outputs("regularization", model, LAYER, x))),
        "|w| < 1e-3, %": 100 * (weights.abs() < 1e-3).double().mean().item(),
        "seconds": seconds,
    }


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description="Penalties, on a network for handwritten digits.")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    rest, new = digits()
    data, test = (rest.x, rest.y), (new.x, new.y)
    for name, penalty in PENALTIES.items():
        runs = [experiment(penalty, seed, arguments.epochs, data, test) for seed in range(arguments.seeds)]
        if name == "none":
            head = f"mean (sd) of {len(runs)} seeds"
            print(f"{head:<20}" + "".join(f"{column:>16}" for column in runs[0]))
        cells = []
        for column in runs[0]:
            values = [run[column] for run in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{fmean(values):.3g} ({spread:.2g})")
        print(f"{name:<20}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
