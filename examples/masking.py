"""Half of a layer's channels repeat the other half: found, masked, and no digit read worse. Over five seeds.

    python examples/masking.py

Trains a convolutional network on 1297 of scikit-learn's 8 x 8 digits, then doubles the channels of its second
convolution: each new one is a copy of an old one, up to 2 % noise on its weights, and the two share the
weights that read them, so that the network computes what it did (Net2Net's widening). Of that network the
units that `duplicate_units` finds are masked, with and without handing their outgoing weights on, and as a
control as many units at random. Tells, for the units that are left, how alike they are (mean absolute cosine)
and how many directions they use (effective rank, over their number); and the accuracy on 500 other digits.
Takes about a minute.
"""

from __future__ import annotations

import argparse
from statistics import fmean, stdev

import torch
from brittle.ops import pairwise_cosine
from brittle.repair import duplicate_units, mask, train
from brittle.repair.duplicates import centred, unit_outputs
from brittle.similarity import effective_rank
from brittle.sources import digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]

LAYER, NEXT = "2", "6"  # of the network: the second convolution, and the layer that reads it


def network(channels: int, seed: int) -> nn.Sequential:
    """Two convolutions, the second of ``channels``, and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * channels, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def widened(model: nn.Sequential, seed: int, noise: float = 0.02) -> nn.Sequential:
    """A network with a noisy copy of every channel of the second convolution, and the same function."""
    channels = model.get_submodule(LAYER).out_channels
    wide = network(2 * channels, seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight, bias, reading = (state[name] for name in (f"{LAYER}.weight", f"{LAYER}.bias", f"{NEXT}.weight"))
    generator = torch.Generator().manual_seed(seed)
    disturbed = weight + noise * weight.std() * torch.randn(weight.shape, generator=generator)
    state[f"{LAYER}.weight"], state[f"{LAYER}.bias"] = torch.cat([weight, disturbed]), torch.cat([bias, bias])
    state[f"{NEXT}.weight"] = torch.cat([reading, reading], 1) / 2
    wide.load_state_dict(state)
    return wide.eval()


def measured(model: nn.Module, live: list[int], test: Pair) -> dict[str, float]:
    """Accuracy, and redundancy and effective rank of the units that are left."""
    x, y = test
    cosines = pairwise_cosine(centred(unit_outputs("masking", model, LAYER, x)))[live][:, live]
    off_diagonal = ~torch.eye(len(live), dtype=torch.bool)
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).double().mean().item()
    return {
        "units": len(live),
        "mean |cosine|": cosines[off_diagonal].abs().mean().item(),
        "rank / units": effective_rank(cosines, gram=True) / len(live),
        "accuracy, %": 100 * accuracy,
    }


def experiment(seed: int, epochs: int, data: Pair, test: Pair) -> dict[str, dict[str, float]]:
    """What is measured before and after each way of masking."""
    small = network(16, seed)
    train(small, data, epochs=epochs, batch_size=64, seed=seed)
    model, everything = widened(small.eval(), seed), list(range(32))
    found = duplicate_units(model, LAYER, data[0])
    left = [unit for unit in everything if unit not in found.channels]
    results = {
        "as trained, 16 channels": measured(small, everything[:16], test),
        "with copies": measured(model, everything, test),
    }
    with mask(model, LAYER, found=found):
        results["found units masked"] = measured(model, left, test)
    with mask(model, LAYER, found=found, data=data[0], merge=True):
        results["found units merged"] = measured(model, left, test)
    with mask(model, LAYER, fraction=len(found.channels) / 32, seed=seed) as by_chance:
        left = [unit for unit in everything if unit not in by_chance.units]
        results["random units masked"] = measured(model, left, test)
    return results


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description="Masking duplicated channels.")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    rest, new = digits()
    data, test = (rest.x, rest.y), (new.x, new.y)
    runs = [experiment(seed, arguments.epochs, data, test) for seed in range(arguments.seeds)]
    columns = list(runs[0]["with copies"])
    print(f"{'mean (sd) over ' + str(len(runs)) + ' seeds':<26}" + "".join(f"{name:>18}" for name in columns))
    for name in runs[0]:
        cells = []
        for column in columns:
            values = [run[name][column] for run in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{fmean(values):.3g} ({spread:.2g})")
        print(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
