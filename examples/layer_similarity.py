"""What do layers see? Similarity of layers and of samples in a network for handwritten digits.

    python examples/layer_similarity.py

Trains a small network on scikit-learn's 8 x 8 digits and compares it with itself before training. First layer
by layer, by linear CKA on unseen digits: the trained network's layers with each other, the untrained one's,
and the ones with the others. Then the digits as each layer sees them: how alike they are on average, how many
directions they use, and whether clusters found without any label are the ten classes. Prints the figures and
writes two pictures. Takes about 15 seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from brittle.similarity import (
    Clusters,
    LayerFeatures,
    LayerSimilarity,
    cluster,
    effective_rank,
    layer_cosine,
    layer_similarity,
    plot_layers,
    plot_matrix,
    redundancy,
)
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

NAMES = ("trained", "untrained")


@dataclass(frozen=True)
class Result:
    """The three comparisons of layers, and what each layer of either network makes of the digits.

    Attributes:
        within_trained, within_untrained, between: CKA; of the last, rows are the trained network's layers.
        agreement: for either network, the adjusted Rand index of each layer's clusters with the classes.
        redundancy: the mean cosine of two different digits in each layer.
        effective_rank: how many directions the digits use in each layer.
    """

    within_trained: LayerSimilarity
    within_untrained: LayerSimilarity
    between: LayerSimilarity
    agreement: dict[str, list[float]]
    redundancy: dict[str, list[float]]
    effective_rank: dict[str, list[float]]

    def table(self) -> str:
        """A line for each layer, the trained network's figures beside the untrained one's."""
        columns = {
            "clusters are classes": self.agreement,
            "redundancy": self.redundancy,
            "effective rank": self.effective_rank,
        }
        lines = [f"{'':<8}" + "".join(f"{title:>24}" for title in columns)]
        lines.append(f"{'layer':<8}" + "".join(f"{a:>14}{b:>10}" for a, b in [NAMES] * len(columns)))
        for i, layer in enumerate(self.between.layers_a):
            pairs = ((values[NAMES[0]][i], values[NAMES[1]][i]) for values in columns.values())
            lines.append(f"{layer:<8}" + "".join(f"{a:>14.2f}{b:>10.2f}" for a, b in pairs))
        return "\n".join(lines)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test digits ``[N, 1, 8, 8]`` in [0, 1] with their classes, always split the same way."""
    data = load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)
    train, test = train_test_split(np.arange(len(y)), test_size=500, stratify=data.target, random_state=0)
    return (x[train], y[train]), (x[test], y[test])


def network() -> nn.Sequential:
    """Two convolutional and two linear layers."""
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


def networks(data: tuple[Tensor, Tensor], epochs: int, seed: int) -> dict[str, nn.Sequential]:
    """The network trained on ``data``, and as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained, untrained = network(), network()
        untrained.load_state_dict(trained.state_dict())
        x, y = data
        optimizer = torch.optim.Adam(trained.parameters(), 2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(trained(x[rows]), y[rows]).backward()
                optimizer.step()
    return dict(zip(NAMES, (trained.eval(), untrained.eval()), strict=True))


def experiment(out: Path, epochs: int = 20, samples: int = 500, seed: int = 0) -> Result:
    """Train, compare on ``samples`` test digits, and write ``cka.png`` and ``clusters.png`` into ``out``."""
    train, (x, y) = digits()
    x, y = x[:samples], y[:samples]
    models = networks(train, epochs, seed)
    trained, untrained = models.values()
    clusters: dict[str, list[Clusters]] = {}
    cosines, alike, rank = {}, {}, {}
    for name, model in models.items():
        cosines[name] = list(layer_cosine(model, x).values())
        clusters[name] = [cluster(matrix, k=10, seed=seed) for matrix in cosines[name]]
        alike[name] = [redundancy(matrix) for matrix in cosines[name]]
        rank[name] = list(LayerFeatures(model, keep=effective_rank).of(x).values())
    result = Result(
        layer_similarity(trained, x, batch_size=samples),
        layer_similarity(untrained, x, batch_size=samples),
        layer_similarity(trained, x, untrained, batch_size=samples),
        {name: [found.agreement(y) for found in several] for name, several in clusters.items()},
        alike,
        rank,
    )
    draw_layers(result).savefig(out / "cka.png", dpi=120)
    draw_samples(
        {
            f"{name} network, layer {layer}": (cosines[name][layer], clusters[name][layer])
            for name, layer in (("trained", 0), ("trained", 8), ("untrained", 8))
        },
        result,
    ).savefig(out / "clusters.png", dpi=120)
    return result


def draw_layers(result: Result) -> Figure:
    """The three comparisons side by side."""
    figure = Figure(figsize=(16, 5), layout="constrained")
    titles = "trained with trained", "untrained with untrained", "trained (rows) with untrained (columns)"
    values = result.within_trained, result.within_untrained, result.between
    for ax, title, similarity in zip(figure.subplots(1, 3), titles, values, strict=True):
        plot_layers(similarity, ax).set_title(title)
    return figure


def draw_samples(matrices: dict[str, tuple[Tensor, Clusters]], result: Result) -> Figure:
    """Three matrices ordered by cluster, and the clusters' agreement with the classes layer by layer."""
    figure = Figure(figsize=(12, 10), layout="constrained")
    *above, last = figure.subplots(2, 2).flat
    for ax, (title, (matrix, clusters)) in zip(above, matrices.items(), strict=True):
        plot_matrix(matrix, clusters, ax=ax).set_title(title)
    for name, values in result.agreement.items():
        last.plot(result.between.layers_a, values, marker="o", label=name)
    last.set(xlabel="layer", ylabel="adjusted Rand index", ylim=(-0.05, 1.05))
    last.set_title("10 clusters against 10 classes")
    last.legend()
    return figure


def main() -> None:
    """Run the experiment and print what came out."""
    parser = argparse.ArgumentParser(description="Similarity of layers and samples, on digits.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("layer-similarity"), help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = experiment(arguments.out, arguments.epochs, seed=arguments.seed)
    print("linear CKA, trained network")
    print(result.within_trained.table())
    print("\nlinear CKA, trained (rows) with untrained network (columns)")
    print(result.between.table())
    print(f"\n{result.table()}")
    print(f"\npictures: {arguments.out}/cka.png, {arguments.out}/clusters.png")


if __name__ == "__main__":
    main()
