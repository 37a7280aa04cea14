"""Similarity of layers against doing every pair by itself, and against the model's bare forward pass.

The per-pair side is CKA as public implementations have it: for each pair of layers both Gram matrices,
centred by two products with the centring matrix wherever HSIC is taken. It is spared the half of the pairs
below the diagonal.
"""

import itertools

import pytest
import torch
import zoo
from brittle.similarity import LayerFeatures, layer_similarity, linear_cka
from conftest import Versus
from torch import Tensor, nn

LAYERS, SAMPLES, WIDTH = 50, 256, 1024


def features(device: torch.device, layers: int = LAYERS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SAMPLES, WIDTH, generator=generator).to(device) for _ in range(layers)]


def hsic(k: Tensor, m: Tensor, centring: Tensor) -> Tensor:
    return ((centring @ k @ centring) * (centring @ m @ centring).T).sum()


def cka(k: Tensor, m: Tensor, centring: Tensor) -> Tensor:
    both = hsic(k, k, centring) * hsic(m, m, centring)
    return hsic(k, m, centring) / both.sqrt()


def bench_all_pairs(versus: Versus, device: torch.device) -> None:
    given = features(device)
    grams = [x @ x.T for x in given]
    centring = torch.eye(SAMPLES, device=device) - 1 / SAMPLES

    def pair_by_pair() -> None:
        for x, y in itertools.combinations_with_replacement(given, 2):
            cka(x @ x.T, y @ y.T, centring)

    def from_grams() -> None:
        for k, m in itertools.combinations_with_replacement(grams, 2):
            cka(k, m, centring)

    def grams_alone() -> None:
        for x in given:
            torch.mm(x, x.T, out=grams[0])

    versus(
        f"linear CKA of all pairs, {LAYERS} layers, {SAMPLES} samples of {WIDTH}",
        lambda: linear_cka(given),
        {
            "pair by pair": pair_by_pair,
            "pair by pair, Grams given": from_grams,
            "the Grams alone": grams_alone,
        },
        {"pair by pair": ">= 50"},
        rounds=7,
        warm_up=1,
    )


@pytest.mark.parametrize("metric", ["cka", "cosine", "correlation", "js"])
def bench_whole_model(versus: Versus, device: torch.device, metric: str) -> None:
    """Every layer of a small ResNet, on the 500 test digits in two batches."""
    model = zoo.small_resnet().to(device)
    x = zoo.test_digits()[0].to(device)

    def forward() -> None:
        with torch.no_grad():
            for batch in x.split(250):
                model(batch)

    def features_held() -> list[dict[str, Tensor]]:
        return list(LayerFeatures(model).stream(x, 250))

    layers = len(layer_similarity(model, x, metric=metric, batch_size=250).layers_a)
    versus(
        f"{metric} of all {layers} layers of a small ResNet, 500 samples",
        lambda: layer_similarity(model, x, metric=metric, batch_size=250),
        {"bare forward": forward, "features copied, nothing compared": features_held},
        rounds=7,
        warm_up=1,
    )


def bench_hooks(versus: Versus, device: torch.device) -> None:
    """What watching costs, beside the model's own passes, where next to nothing is kept."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(25))).to(device)
    x = torch.rand(1024, 256, generator=torch.Generator().manual_seed(0)).to(device)
    watch = LayerFeatures(model, keep=lambda rows: rows[0, 0])

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    assert len(watch.of(x)) == 50
    versus("50 layers watched", lambda: watch.of(x), {"bare forward": forward})
