"""How small may a network be that reads digits as well as a larger one? Distillation, over five seeds.

    python examples/distillation.py

Trains a convolutional network on 1297 of scikit-learn's 8 x 8 digits. Then students with a fifth and with a
thirtieth of its parameters: by themselves, on the teacher's answers, and on the teacher's answers and
features; and by themselves from 100 labels, beside the teacher's answers to all 1297 without any label. Each
from the same initial weights, with the same optimizer and number of epochs. Tells their accuracy on 500 other
digits, for each seed and as mean and standard deviation. Takes about four minutes.
"""

from __future__ import annotations

import argparse
from statistics import fmean, stdev

import torch
from brittle.repair import distill, train
from brittle.repair.state import TrainingOptions
from brittle.sources import digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

Pair = tuple[Tensor, Tensor]

# Channels of the first convolution, and features before the last layer.
TEACHER, STUDENTS = (16, 64), ((4, 48), (2, 16))

RATE = (
    1e-2  # the students' peak: a third of it and less was worse for both on digits held out of the training
)


def network(width: int, hidden: int, seed: int) -> nn.Sequential:
    """Two convolutions of ``width`` and twice as many channels, and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 16, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )


def size(model: nn.Module) -> int:
    """How many numbers the model has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def accuracy(model: nn.Module, data: Pair) -> float:
    """The share of ``data`` that the model reads rightly."""
    x, y = data
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).double().mean().item()


def experiment(seed: int, epochs: int, data: Pair, test: Pair) -> dict[str, float]:
    """Accuracy of the teacher and of the students."""
    teacher = network(*TEACHER, seed)
    train(teacher, data, epochs=epochs, batch_size=64, seed=seed)
    options: TrainingOptions = {
        "epochs": epochs,
        "batch_size": 64,
        "seed": seed,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=RATE),
        "schedule": lambda adam, steps: OneCycleLR(adam, RATE, total_steps=steps + 1),
    }
    found = {"teacher": accuracy(teacher, test)}
    for sizes in STUDENTS:
        students = [network(*sizes, seed + 1000) for _ in range(3)]
        train(students[0], data, **options)
        distill(students[1], teacher, data, **options)
        distill(students[2], teacher, data, features={"4": "4"}, **options)
        share = f"{size(students[0]) / size(teacher):.0%}"
        for name, student in zip(("alone", "distilled", "and features"), students, strict=True):
            found[f"student of {share}, {name}"] = accuracy(student, test)
    few, untaught = network(*STUDENTS[0], seed + 1000), network(*STUDENTS[0], seed + 1000)
    labelled = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))[:100]
    # As many steps, of which each sees a few of the hundred.
    train(few, (data[0][labelled].repeat(13, 1, 1, 1), data[1][labelled].repeat(13)), **options)
    distill(untaught, teacher, (data[0], torch.zeros_like(data[1])), alpha=1.0, **options)
    found["the larger, 100 labels, alone"] = accuracy(few, test)
    found["the larger, no labels, distilled"] = accuracy(untaught, test)
    return found


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description="Distillation of a network for handwritten digits.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    rest, new = digits()
    data, test = (rest.x, rest.y), (new.x, new.y)
    sizes = ", ".join(str(size(network(*each, 0))) for each in (TEACHER, *STUDENTS))
    print(f"parameters of teacher and students: {sizes}\n")
    results = [experiment(seed, arguments.epochs, data, test) for seed in range(arguments.seeds)]
    print(
        f"{'accuracy by seed':<34}" + "".join(f"{seed:>8}" for seed in range(len(results))) + "    mean   sd"
    )
    for name in results[0]:
        values = [100 * result[name] for result in results]
        spread = stdev(values) if len(values) > 1 else 0.0
        shown = "".join(f"{value:>8.1f}" for value in values)
        print(f"{name:<34}{shown}{fmean(values):>8.2f}{spread:>5.2f}")


if __name__ == "__main__":
    main()
