"""On linear models the nearest adversarial point is known: PGD finds one within 1 % of its distance."""

import math

import brittle
import pytest
import torch
from brittle.attacks import PGD, attack
from torch import Tensor, nn


class TwoClasses(nn.Module):
    """Logits ``(m, -m)`` with margin ``m = w.x + b``."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight + self.bias
        return torch.stack([margin, -margin], 1)


def nearest(gain: Tensor, room: Tensor, needed: Tensor, norm: str) -> Tensor:
    """The least distance at which moves within ``room`` gain as much as is ``needed``; inf where none do.

    Every element is best moved along its gain: in L1 those of largest gain first, up to their room; in L2 by
    ``min(t * gain, room)``, in Linf by ``min(t, room)``, for the least t that suffices.
    """
    if norm == "l1":
        order = gain.argsort(1, descending=True)
        gain, room = gain.gather(1, order), room.gather(1, order)
        total = (gain * room).cumsum(1)
        before = total - gain * room
        taken = ((needed[:, None] - before) / gain).clamp(min=0).minimum(room)
        found = taken.sum(1)
        return torch.where(total[:, -1] >= needed, found, math.inf)
    per_unit = gain if norm == "l2" else torch.ones_like(gain)
    low, high = torch.zeros_like(needed), torch.full_like(needed, 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        enough = ((middle[:, None] * per_unit).minimum(room) * gain).sum(1) >= needed
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    moves = (high[:, None] * per_unit).minimum(room)
    distance = moves.norm(dim=1) if norm == "l2" else moves.amax(1)
    return torch.where((room * gain).sum(1) >= needed, distance, math.inf)


def problem(
    features: int, seed: int, spread: float, dtype: torch.dtype = torch.float64
) -> tuple[TwoClasses, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A model, samples and labels; and each sample's gains, room and need."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(features, generator=generator, dtype=torch.float64)
    weight = weight.sign() * weight.abs() ** spread
    weight /= weight.abs().sum() / 20  # far from the flat ends of the softmax, and from its middle
    x = torch.rand(60, features, generator=generator, dtype=torch.float64)
    x[:, ::3] = x[:, ::3].round()  # many elements at a bound
    # Between two samples, so that none is on the boundary.
    model = TwoClasses(weight.to(dtype), -float((x @ weight).sort().values[29:31].mean())).eval()
    x = x.to(dtype)
    margin = (x.double() @ weight) + model.bias
    y = (margin < 0).long()
    away = torch.where(y == 0, -1.0, 1.0).double()[:, None] * weight
    room = torch.where(away > 0, 1 - x.double(), x.double())
    return model, x, y, away.abs(), room, margin.abs()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("features", "spread"), [(5, 1.0), (60, 1.0), (60, 3.0), (700, 1.0)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_finds_what_there_is(norm: str, features: int, spread: float, random_start: bool) -> None:
    if norm == "l1" and random_start and features > 60:
        pytest.skip("few elements a step take long to undo a random start in many dimensions")
    model, x, y, gain, room, needed = problem(features, 7, spread)
    distance = nearest(gain, room, needed, norm)
    there = distance.isfinite()
    assert there.sum() > 40
    distance = torch.where(there, distance, 1.0)
    eps = 1.01 * distance
    # In L1 the best is to move one element at a time, which is the limit of few elements a step.
    how = {"steps": 300, "l1_quantile": 0.999} if norm == "l1" else {"steps": 100}
    rules = PGD(eps, norm=norm, step_size=eps / 10, random_start=random_start, **how)
    found = attack(model, rules, (x, y), slots=60)
    assert found.success[there].all(), (~found.success[there]).sum()
    # And nothing that is not there.
    below = attack(model, PGD(0.999 * distance, norm=norm, steps=30), (x, y), slots=60)
    assert not below.success.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype_stays_in_the_ball(norm: str, dtype: torch.dtype) -> None:
    model, x, y, *_ = problem(60, 3, 1.0, dtype)
    for eps in (0.01, 0.3, 1.0 if norm == "linf" else 2.0):
        adv = brittle.pgd(model, x, y, eps, norm=norm, steps=10, early_stop=False)
        moved = (adv - x) if norm == "linf" else adv.float() - x.float()
        order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
        assert (torch.linalg.vector_norm(moved.double(), order, dim=1) <= eps).all()
        assert ((adv >= 0) & (adv <= 1)).all()
        assert not torch.equal(adv, x)
