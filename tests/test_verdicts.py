"""On trained models: no higher robust accuracy than the peers', whatever the slots, copy or precision."""

from collections.abc import Callable
from functools import lru_cache

import brittle
import peers
import pytest
import torch
import zoo
from brittle.attacks import MIFGSM, PGD, Attack, attack
from scipy.stats import binomtest
from torch import Tensor, nn

STEPS = 20
# Where the models' accuracies are far from 0 and 1.
EPS = {"digits_cnn": 0.1, "adversarial_digits_cnn": 0.2, "small_resnet": 0.08, "small_vit": 0.08}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return some_digits()


def some_digits() -> tuple[Tensor, Tensor]:
    x, y = zoo.test_digits()
    return x[:250], y[:250]


@lru_cache  # for all peers at once
def ours(name: str, rules: Attack) -> float:
    """What our attack leaves of a model's accuracy."""
    result = attack(brittle.Target(zoo.MODELS[name]()), rules, some_digits(), slots=100)
    assert 0 < result.robust_accuracy < result.clean_accuracy
    assert torch.equal(result.success, result.certified)
    return result.robust_accuracy


def leaves(name: str, peer: Callable[..., Tensor], *settings: float, **more: float) -> float:
    """What a peer's leaves; skipped where the peer is missing."""
    model, (x, y) = zoo.MODELS[name](), some_digits()
    return robust_accuracy(model, peer(model, x, y, *settings, **more), y)


def robust_accuracy(model: nn.Module, adv: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(adv).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("name", zoo.MODELS)
class TestAgainstPeers:
    """Same eps, step size and steps, no random start, on the prepared copy, in a fraction of the slots."""

    @pytest.mark.parametrize("peer", ["torchattacks_pgd", "foolbox_pgd", "cleverhans_pgd", "art_pgd"])
    def test_pgd_linf(self, name: str, peer: str) -> None:
        eps = EPS[name]
        theirs = leaves(name, getattr(peers, peer), eps, eps / 4, STEPS)
        assert ours(name, PGD(eps, steps=STEPS, step_size=eps / 4, random_start=False)) <= theirs

    @pytest.mark.parametrize("peer", ["torchattacks_pgd_l2", "foolbox_pgd_l2"])
    def test_pgd_l2(self, name: str, peer: str) -> None:
        eps = 5 * EPS[name]
        theirs = leaves(name, getattr(peers, peer), eps, eps / 4, STEPS)
        rules = PGD(eps, norm="l2", steps=STEPS, step_size=eps / 4, random_start=False)
        assert ours(name, rules) <= theirs

    def test_mifgsm(self, name: str) -> None:
        eps = EPS[name]
        theirs = leaves(name, peers.torchattacks_mifgsm, eps, eps / 4, 10, decay=1.0)
        assert ours(name, MIFGSM(eps, steps=10, step_size=eps / 4)) <= theirs


@pytest.mark.parametrize("name", zoo.MODELS)
class TestOneVerdict:
    """These models' forwards round by the batch they are in, which may decide a sample at the boundary."""

    def test_slots_and_shortcuts(self, name: str, digits: tuple[Tensor, Tensor]) -> None:
        model, rules = zoo.MODELS[name](), PGD(EPS[name], steps=STEPS)
        expected = attack(model, rules, digits, slots=250)
        for slots, shortcuts in ((64, True), (7, True), (64, False)):
            found = attack(model, rules, digits, slots=slots, shortcuts=shortcuts)
            assert (found.success != expected.success).sum() <= 2

    def test_a_search_in_bfloat16_is_certified_in_float32(
        self, name: str, digits: tuple[Tensor, Tensor]
    ) -> None:
        model, rules = zoo.MODELS[name](), PGD(EPS[name], steps=STEPS)
        single = attack(model, rules, digits)
        half = attack(brittle.Target(model, precision="bfloat16"), rules, digits)
        assert torch.equal(half.success, half.certified)
        assert half.adversarial is not None
        with torch.no_grad():
            assert (model(half.adversarial).argmax(1) != digits[1])[half.success].all()
        # A little weaker, since its gradients are rounded.
        assert abs(half.robust_accuracy - single.robust_accuracy) <= 0.03

    def test_margin_and_targets_do_not_find_less_together(
        self, name: str, digits: tuple[Tensor, Tensor]
    ) -> None:
        model, eps = zoo.MODELS[name](), EPS[name]
        plain = attack(model, PGD(eps, steps=STEPS), digits)
        strong = attack(model, PGD(eps, steps=STEPS, loss="margin", targets=3, restarts=2), digits)
        # Each processor trains another model, and either search may miss samples that the other one finds:
        # not more of them than a fair coin would give once in ten thousand times.
        lost, gained = (
            int((one.success & ~other.success).sum()) for one, other in ((plain, strong), (strong, plain))
        )
        assert binomtest(lost, max(lost + gained, 1), alternative="greater").pvalue > 1e-4
        assert int(strong.attempt.max()) == 6


def test_every_adversarial_counts_the_calls_it_took(digits: tuple[Tensor, Tensor]) -> None:
    """A sample that falls costs what it needed; the others go round in circles and are let go."""
    model = zoo.MODELS["adversarial_digits_cnn"]()
    result = attack(model, PGD(0.2, steps=100, step_size=0.05, random_start=False), digits)
    assert result.backwards.double().mean() <= 20
    assert result.cycled[~result.success].double().mean() > 0.9
    standard = attack(
        zoo.MODELS["digits_cnn"](), PGD(0.2, steps=100, step_size=0.05, random_start=False), digits
    )
    assert standard.backwards.double().mean() <= 6
