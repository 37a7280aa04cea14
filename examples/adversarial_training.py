"""Does training on adversarial examples help? A digits network, before and after.

    python examples/adversarial_training.py --method pgd --seeds 1

Trains a small network on scikit-learn's 8 x 8 digits as usual, then goes on from its weights with adversarial
training at eps 0.2 in Linf, and compares the two on 500 unseen digits: clean accuracy; accuracy under FGSM;
under PGD of 40 steps; and under the strongest of PGD with three losses and three restarts, sample by sample.
The last column looks for gradient masking: an attacker who may change every pixel at will must succeed.
Takes a minute a seed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import brittle
import torch
from brittle.attacks import FGSM, PGD
from brittle.demo import digits
from brittle.losses import LOSSES
from brittle.repair import Training, adversarial_train, train
from torch import Tensor, nn

EPS = 0.2
EPOCHS = {"fgsm": 40, "pgd": 25, "free": 20, "trades": 25}
Pair = tuple[Tensor, Tensor]


def network(seed: int) -> nn.Module:
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
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """The learning rate up to 0.01 and down again."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)


def usual_training(data: Pair, seed: int) -> nn.Module:
    """25 epochs on the clean digits."""
    model = network(seed)
    train(model, data, epochs=25, batch_size=64, optimizer=torch.optim.Adam, schedule=one_cycle, seed=seed)
    return model.eval()


def robust_training(model: nn.Module, data: Pair, method: str, seed: int) -> Training:
    """Goes on from the model's weights."""
    return adversarial_train(
        model,
        data,
        eps=EPS,
        method=method,
        epochs=EPOCHS[method],
        batch_size=64,
        optimizer=torch.optim.Adam,
        schedule=one_cycle,
        seed=seed,
    )


def figures(model: nn.Module, data: Pair, seed: int) -> dict[str, float]:
    """Shares of the test digits that are still classified rightly."""
    strongest = torch.ones(len(data[1]), dtype=torch.bool)
    for loss in LOSSES:
        attack = PGD(EPS, restarts=3, loss=loss)
        strongest &= ~brittle.attack(model, attack, data, seed=seed).success
    once = brittle.attack(model, PGD(EPS), data, seed=seed)
    return {
        "clean": once.clean_accuracy,
        "fgsm": brittle.attack(model, FGSM(EPS), data).robust_accuracy,
        "pgd": once.robust_accuracy,
        "strongest": strongest.double().mean().item(),
        "eps = 1": brittle.attack(model, PGD(1.0), data, seed=seed).robust_accuracy,
    }


def main() -> None:
    """Run it and print a line for each network, then mean and spread over the seeds."""
    parser = argparse.ArgumentParser(description="Adversarial training on digits.")
    parser.add_argument("--method", choices=EPOCHS, action="append", help="may be given again")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = digits()
    data, test = (train_set.x, train_set.y), (test_set.x, test_set.y)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        usual = usual_training(data, seed)
        rows = {"usual": figures(usual, test, seed)}
        for method in arguments.method or ["pgd"]:
            model = network(seed)
            model.load_state_dict(usual.state_dict())
            begin = time.thread_time()
            training = robust_training(model, data, method, seed)
            seconds = time.thread_time() - begin
            rows[method] = {**figures(model.eval(), test, seed), "seconds": seconds}
            print(f"seed {seed}  {method:<8}{training.stopped or 'trained to the end'}")
        for name, row in rows.items():
            found.setdefault(name, []).append(row)
            print(f"seed {seed}  {name:<8}" + "".join(f"{key}: {value:<9.3f}" for key, value in row.items()))
    print(f"\nmean over {arguments.seeds} seeds (smallest to largest)")
    for name, runs in found.items():
        cells = []
        for key in runs[0]:
            values = [run[key] for run in runs]
            cells.append(f"{key}: {statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{name:<8}" + "  ".join(cells))


if __name__ == "__main__":
    main()
