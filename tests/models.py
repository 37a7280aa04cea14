"""Small models of different kinds, seeded, and data for them."""

import copy

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.conv(torch.relu(self.norm(x))))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """4 x 4 patches, one transformer layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x).flatten(2).mT).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 10))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 10))


class RowLinear(nn.Linear):
    """One product a sample: a row's bits do not depend on how many there are, as those of one product do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.unsqueeze(1), self.weight.T.expand(len(x), -1, -1)).squeeze(1) + self.bias


def row_independent() -> nn.Module:
    """An MLP in float64 that gives each sample the same bits in any batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Flatten(), RowLinear(192, 64), nn.Tanh(), RowLinear(64, 10)
        return nn.Sequential(*layers).double().eval()


MODELS = {
    "convolutional": convolutional,
    "residual with batch norm": Residual,
    "attention": Attention,
    "perceptron": perceptron,
}


def make(name: str, seed: int = 0) -> nn.Module:
    """Batch statistics, where there are any, have seen data; the model is left in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]()
        for _ in range(3):
            model(torch.rand(16, 3, 8, 8))
    return model


def data(n: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def own_labels(model: nn.Module, x: Tensor) -> Tensor:
    """The model's own predictions: labels that it gets all right."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).argmax(1)
