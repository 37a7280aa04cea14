"""Does training with noise lower the loss on shifted digits?

    python examples/noise_training.py --seeds 5

Trains a small network on scikit-learn's 8 x 8 digits as usual, and its twin with Gaussian noise on the
inputs. Compares their log-loss on unseen digits, and on the same digits under shifts that neither has seen,
all at severity 3 of 5: other kinds of noise, blur, brightness and contrast. Takes half a minute a seed.
"""

from __future__ import annotations

import argparse
from statistics import fmean

import torch
from brittle.demo import digits
from brittle.evaluation import NoiseTrainingTable, noise_training_table
from brittle.evaluation.shifts import apply_shift, kinds_for
from brittle.repair import noise_train, train
from torch import Tensor, nn

SEVERITY = 3
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


def shifted(test: Pair, kind: str) -> Pair:
    """The test digits under a shift, at the severity."""
    x, y = test
    scale = kinds_for(x.shape)[kind][SEVERITY - 1]
    return apply_shift(kind, scale, x, seed=1), y


def compare(
    data: Pair, test: Pair, sigma: float, seed: int, epochs: int = 30
) -> dict[str, NoiseTrainingTable]:
    """For each shift that training has not seen, and for all of them together."""
    usual, noisy = network(seed), network(seed)
    train(usual, data, epochs=epochs, batch_size=64, seed=seed)
    noise_train(noisy, data, scale=sigma, epochs=epochs, batch_size=64, seed=seed)
    kinds = [kind for kind in kinds_for(test[0].shape) if kind != "gaussian"]
    sets = {kind: shifted(test, kind) for kind in kinds}
    sets["all"] = tuple(torch.cat(parts) for parts in zip(*sets.values(), strict=True))  # type: ignore[assignment]
    return {kind: noise_training_table(usual, noisy, test, out) for kind, out in sets.items()}


def main() -> None:
    """Run it for some seeds and print mean and spread of the losses."""
    parser = argparse.ArgumentParser(description="Noise training on digits.")
    parser.add_argument("--sigma", type=float, default=0.2, help="standard deviation of the training noise")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_set, test_set = digits()
    data, test = (train_set.x, train_set.y), (test_set.x, test_set.y)
    runs = [compare(data, test, arguments.sigma, seed) for seed in range(arguments.seeds)]
    first = [run["all"] for run in runs]
    rows = {"in distribution": [(t.original_in.scores, t.noise_trained_in.scores) for t in first]}
    for kind in runs[0]:
        tables = [run[kind] for run in runs]
        rows[kind] = [(t.original_out.scores, t.noise_trained_out.scores) for t in tables]
    print(f"{'':<18}{'log-loss, usual':>24}{'noise-trained':>24}{'lower in':>10}{'accuracy':>18}")
    for name, pairs in rows.items():
        losses = list(zip(*((a.log_loss, b.log_loss) for a, b in pairs), strict=True))
        shown = "".join(f"{f'{fmean(v):.3f} ({min(v):.3f} to {max(v):.3f})':>24}" for v in losses)
        lower = sum(b < a for a, b in zip(*losses, strict=True))
        before, after = (fmean(pair[k].accuracy for pair in pairs) for k in (0, 1))
        print(f"{name:<18}{shown}{f'{lower} of {len(pairs)}':>10}{before:>9.1%}{after:>9.1%}")


if __name__ == "__main__":
    main()
