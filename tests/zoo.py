"""Trained models of different kinds on scikit-learn's handwritten digits: [N, 1, 8, 8] in [0, 1].

Each model is trained once per process, on one thread and from a fixed seed, so that every run on a machine
has the same weights. Torch's random state and its number of threads stay as they were. Callers get copies of
their own, in evaluation mode.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from brittle.demo import digits
from torch import Tensor, nn

_BATCH = 64

# In the pixels' units, of an Linf ball: what the robust model is trained against.
_TRAINING_EPS, _TRAINING_STEPS = 0.2, 4


def digits_cnn() -> nn.Module:
    """Two convolutions and two linear layers, trained without any thought of robustness."""
    return copy.deepcopy(_digits_cnn())


def adversarial_digits_cnn() -> nn.Module:
    """The architecture of ``digits_cnn``, twice as wide, trained on PGD's images instead of the clean ones.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
    """
    return copy.deepcopy(_adversarial_digits_cnn())


def small_resnet() -> nn.Module:
    """A stem and three residual blocks of 16, 32 and 32 channels, with batch-norm after every convolution."""
    return copy.deepcopy(_small_resnet())


def small_vit() -> nn.Module:
    """A transformer of two layers on the 16 patches of 2 x 2 pixels."""
    return copy.deepcopy(_small_vit())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits_cnn": digits_cnn,
    "adversarial_digits_cnn": adversarial_digits_cnn,
    "small_resnet": small_resnet,
    "small_vit": small_vit,
}


def test_digits() -> tuple[Tensor, Tensor]:
    """The 500 digits that no model was trained on: float32 [500, 1, 8, 8] and int64 [500]."""
    _, test = digits()
    return test.x, test.y


test_digits.__test__ = False  # type: ignore[attr-defined]  # data, not a test


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Linf PGD in steps of 2.5 eps / steps from a random start, in a dozen lines of torch alone.

    It draws from torch's global random state.
    """
    adversarial = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = F.cross_entropy(model(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + 2.5 * eps / steps * gradient.sign()
        adversarial = adversarial.clamp(x - eps, x + eps).clamp(0, 1)
    return adversarial


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions, with batch-norm after every convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _Embedding(nn.Module):
    """Patches of 2 x 2 pixels as tokens [N, 16, width], each with its place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.1 * torch.randn(16, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).mT + self.places


class _TokenMean(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def _cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def _vit(width: int) -> nn.Module:
    layers = [
        nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(2)
    ]
    return nn.Sequential(_Embedding(width), *layers, nn.LayerNorm(width), _TokenMean(), nn.Linear(width, 10))


@functools.cache
def _digits_cnn() -> nn.Module:
    return _trained(lambda: _cnn(16), epochs=25, rate=5e-3)


@functools.cache
def _adversarial_digits_cnn() -> nn.Module:
    return _trained(lambda: _cnn(32), epochs=20, rate=5e-3, eps=_TRAINING_EPS)


@functools.cache
def _small_resnet() -> nn.Module:
    return _trained(_resnet, epochs=12, rate=1e-2)


@functools.cache
def _small_vit() -> nn.Module:
    return _trained(lambda: _vit(32), epochs=30, rate=3e-3)


def _trained(make: Callable[[], nn.Module], epochs: int, rate: float, eps: float = 0.0) -> nn.Module:
    """Trained with Adam on one cycle of the learning rate; on PGD's images where ``eps`` > 0."""
    train, _ = digits()
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters())
        steps = math.ceil(len(train.x) / _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=steps)
        for epoch in range(epochs):
            # From no perturbation to all of it over the first third, or training never gets off the ground.
            radius = eps * min(1.0, 3 * epoch / epochs)
            for rows in torch.split(torch.randperm(len(train.x)), _BATCH):
                x, y = train.x[rows], train.y[rows]
                if radius > 0:
                    x = plain_pgd(model, x, y, radius, _TRAINING_STEPS)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
