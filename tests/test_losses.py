"""Each loss against its formula written out sample by sample."""

import pytest
import torch
from brittle.losses import LOSSES, attack_loss
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def by_hand(name: str, z: list[float], y: int | None, goal: int | None) -> float:
    if name == "ce":
        log_sum = torch.tensor(z, dtype=torch.float64).logsumexp(0).item()
        return z[goal] - log_sum if goal is not None else log_sum - z[y]
    if goal is None:
        difference = max(v for j, v in enumerate(z) if j != y) - z[y]
    elif y is None:
        difference = z[goal] - max(v for j, v in enumerate(z) if j != goal)
    else:
        difference = z[goal] - z[y]
    if name == "margin":
        return difference
    top = sorted(z, reverse=True)
    return difference / (top[0] - (top[2] if goal is None else (top[2] + top[3]) / 2) + 1e-12)


@given(
    name=st.sampled_from(LOSSES),
    classes=st.integers(4, 12),
    kind=st.sampled_from(["away", "towards", "both"]),
    seed=st.integers(0, 2**31),
)
def test_values(name: str, classes: int, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(5, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (5,), generator=generator)
    goals = (labels + 1 + torch.randint(classes - 1, (5,), generator=generator)) % classes
    y = labels if kind != "towards" else None
    goal = goals if kind != "away" else None
    expected = [
        by_hand(
            name,
            z[i].tolist(),
            None if y is None else int(y[i]),
            None if goal is None else int(goal[i]),
        )
        for i in range(5)
    ]
    assert torch.allclose(
        attack_loss(name, z, y, goal), torch.tensor(expected, dtype=torch.float64), rtol=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    z = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    y = torch.arange(6)

    def away(logits: Tensor) -> Tensor:
        return attack_loss(name, logits, y)

    def towards(logits: Tensor) -> Tensor:
        return attack_loss(name, logits, None, y)

    assert torch.autograd.gradcheck(away, z)
    assert torch.autograd.gradcheck(towards, z)


def test_the_margin_is_positive_exactly_where_the_label_is_left() -> None:
    z = torch.randn(500, 10)
    y = torch.randint(10, (500,))
    assert torch.equal(attack_loss("margin", z, y) > 0, z.argmax(1) != y)
    assert torch.equal(attack_loss("margin", z, None, y) > 0, z.argmax(1) == y)


def test_a_saturated_softmax_stops_cross_entropy_alone() -> None:
    z = torch.tensor([[200.0, 0.0, -50.0, -60.0]], requires_grad=True)
    y = torch.tensor([0])
    gradients = {name: torch.autograd.grad(attack_loss(name, z, y).sum(), z)[0] for name in LOSSES}
    assert not gradients["ce"].any()
    assert gradients["margin"].any()
    assert gradients["dlr"].any()


def test_dlr_does_not_depend_on_the_scale_of_the_logits() -> None:
    z, y = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    assert torch.allclose(attack_loss("dlr", 1e4 * z, y), attack_loss("dlr", z, y))


def test_three_equal_largest_logits_give_a_finite_dlr() -> None:
    z = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert attack_loss("dlr", z, torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize(
    ("name", "goal", "needed"), [("margin", False, 2), ("dlr", False, 3), ("dlr", True, 4)]
)
def test_too_few_classes(name: str, goal: bool, needed: int) -> None:
    y = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"needs at least {needed} classes; got {needed - 1}"):
        attack_loss(name, torch.rand(3, needed - 1), None if goal else y, y if goal else None)
