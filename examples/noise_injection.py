"""Does training with noise help? The noise-injection experiment on handwritten digits.

    python examples/noise_injection.py

Trains a small network on scikit-learn's 8 x 8 digits twice from one seed, once as usual and once with
Gaussian noise on its inputs. Then compares the two on unseen digits (in distribution), on the same digits
rotated by 90 degrees and inverted (out of distribution, with labels), on patches of two photographs, which
are no digits at all, and under growing noise. Takes about 20 seconds.
"""

from __future__ import annotations

import argparse
from statistics import fmean

import brittle
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from brittle.evaluation import NoiseSweep, NoiseTrainingTable, noise_sweep, noise_training_table
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset


def digits() -> TensorDataset:
    """1797 handwritten digits ``[1, 8, 8]`` in [0, 1] and their classes."""
    data = load_digits()
    return TensorDataset(
        torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)
    )


def split(data: TensorDataset) -> tuple[list[int], tuple[Tensor, Tensor]]:
    """Indices to train on, and 500 digits to test with: always the same, classes in proportion."""
    x, y = data.tensors
    train, test = train_test_split(np.arange(len(y)), test_size=500, stratify=y.numpy(), random_state=0)
    return train.tolist(), (x[test], y[test])


def unlike_digits(test: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Every test digit twice, turned by 90 degrees and with black and white exchanged."""
    x, y = test
    return torch.cat([x.rot90(1, (2, 3)), 1 - x]), torch.cat([y, y])


def photograph_patches(count: int = 1000) -> Tensor:
    """Grey 8 x 8 patches ``[count, 1, 8, 8]`` spread evenly over scikit-learn's two photographs."""
    patches = []
    for image in load_sample_images().images:
        grey = torch.tensor(image.mean(2) / 255, dtype=torch.float32)
        patches.append(grey.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 1, 8, 8))
    everything = torch.cat(patches)
    return everything[torch.linspace(0, len(everything) - 1, count).long()]


def train(data: TensorDataset, rows: list[int], sigma: float, epochs: int, seed: int) -> nn.Module:
    """A small convolutional network, trained with Gaussian noise of ``sigma`` on its inputs (0 for none)."""
    injection = brittle.noise.NoiseInjection("gaussian", sigma, seed=seed, bounds=(0.0, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            injection,
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
        loader = DataLoader(Subset(brittle.noise.WithIds(data), rows), batch_size=64, shuffle=True)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(loader))
        for _ in range(epochs):
            for x, y, ids in loader:
                optimizer.zero_grad()
                with injection.using_ids(ids):
                    F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def mean_confidence(model: nn.Module, x: Tensor) -> float:
    """How sure the model is on average of the class it names."""
    with torch.no_grad():
        return model(x).softmax(1).amax(1).mean().item()


def experiment(
    sigma: float = 0.2, epochs: int = 30, seed: int = 0
) -> tuple[NoiseTrainingTable, dict[str, float], dict[str, NoiseSweep]]:
    """The two-by-two table, each model's mean confidence on photographs, and each model's noise sweep."""
    data = digits()
    rows, test = split(data)
    original, noise_trained = (train(data, rows, s, epochs, seed) for s in (0.0, sigma))
    table = noise_training_table(original, noise_trained, test, unlike_digits(test))
    models, patches = {"original": original, "noise-trained": noise_trained}, photograph_patches()
    confidence = {name: mean_confidence(model, patches) for name, model in models.items()}
    # Other noise than in training.
    sweeps = {name: noise_sweep(model, test, seed=seed + 1) for name, model in models.items()}
    return table, confidence, sweeps


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description="Training with and without noise, on digits.")
    parser.add_argument("--sigma", type=float, default=0.2, help="standard deviation of the training noise")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table, confidence, sweeps = experiment(arguments.sigma, arguments.epochs, arguments.seed)
    print(f"Gaussian noise of sigma {arguments.sigma:g} on the training digits\n")
    print(table.table())
    print(f"\nmean confidence on 1000 patches of photographs (guessing: {1 / 10:.2%}):")
    for name, value in confidence.items():
        print(f"  {name:<14}{value:.2%}")
    for name, sweep in sweeps.items():
        print(f"\n{name} under noise")
        print(sweep.table())
    print("\nmean log-loss over all levels of noise:")
    for name, sweep in sweeps.items():
        print(f"  {name:<14}{fmean(level.scores.log_loss for level in sweep.levels[1:]):.4f}")


if __name__ == "__main__":
    main()
