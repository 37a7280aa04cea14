"""Before training, and before believing the labels: checks on handwritten digits.

    python examples/training_checks.py [FOLDER]

A small network has a softmax too many and a frozen layer; the checks before training name both, and nothing
once it is mended. Then 5 % of the digits get wrong labels, and are searched for in three ways. Pictures (the
learning-rate range, the margins, the most suspicious digits) go to FOLDER. Takes about a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from brittle.diagnosis import checks
from brittle.noise import noise_labels
from brittle.sources import Digits, digits
from torch import nn


def network(seed: int = 0) -> nn.Sequential:
    """Two convolutions and two linear layers, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def with_bugs() -> nn.Sequential:
    """The same with its first layer frozen, and a softmax that cross-entropy will apply again."""
    model = network()
    model[0].requires_grad_(False)
    return nn.Sequential(*model, nn.Softmax(1))


def before(train: Digits) -> tuple[checks.BeforeTraining, checks.BeforeTraining]:
    """The checks of the broken network and of the sound one."""
    data = train.x, train.y
    return checks.before_training(with_bugs(), data), checks.before_training(network(), data)


def search(train: Digits, folder: Path, rate: float = 0.05, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Precision and recall of three searches for flipped labels; of the highest losses, among the first."""
    y = noise_labels(train.y, 10, rate, seed=seed)
    wrong = (y != train.y).nonzero().squeeze(1)
    data = train.x, y

    margins = checks.area_under_margin(network(seed), data, seed=seed)
    margins.plot(folder / "margins.png")
    first = margins.ids[:32]
    columns = zip(first.tolist(), margins.labels[:32].tolist(), margins.suggested[:32].tolist(), strict=True)
    captions = [f"{sample}: {label}, like {other}" for sample, label, other in columns]
    title = "Labels most likely to be wrong: sample: label, and what it is like"
    checks.contact_sheet(train.x[first], folder / "suspects.png", captions, title=title)

    p = checks.cross_validated_probabilities(network(seed), data, seed=seed)
    confident = checks.confident_learning(y, p)
    # By the loss of samples held out: the logarithms of their probabilities will do as logits.
    losses = checks.highest_losses(nn.Identity(), (p.clamp(min=1e-30).log(), y))
    among = float(torch.isin(losses.ids[: len(wrong)], wrong).double().mean())
    return {
        "area under the margin": margins.precision_recall(wrong),
        "confident learning": confident.precision_recall(wrong),
        "highest losses": (among, among),
    }


def main() -> None:
    """Run the checks and print what they say."""
    parser = argparse.ArgumentParser(description="Checks before training, on handwritten digits.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("brittle-run-checks"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    train, test = digits()
    for name, result in zip(("with two bugs", "mended"), before(train), strict=True):
        print(f"{name}\n{result.table()}\n")
    rates = checks.learning_rate_range(network(), (train.x, train.y))
    rates.plot(folder / "rates.png")
    print(f"learning rate: {rates.suggested:.2g} suggested\n")
    print(f"shuffled labels\n{checks.shuffled_labels(network(), train[:2], test[:2]).table()}\n")
    print(f"{'5 % of the labels wrong':<26}{'precision':>10}{'recall':>8}")
    for name, (precision, recall) in search(train, folder).items():
        print(f"{name:<26}{precision:>10.2f}{recall:>8.2f}")
    print(f"\npictures: {folder}")


if __name__ == "__main__":
    main()
