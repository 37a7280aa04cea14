"""The installed peers' results, bit for bit where `compat` promises it. `make test` installs them."""

import brittle
import models
import pytest
import torch
from samples import assert_same_bits

torchattacks = pytest.importorskip("torchattacks")

EPS = 8 / 255


class TestTorchattacks:
    """The same bits as the installed library, float32 on the CPU."""

    @pytest.mark.parametrize("name", models.MODELS)
    @pytest.mark.parametrize("targeted", [False, True])
    def test_pgd(self, name: str, targeted: bool) -> None:
        model, (x, y) = models.make(name).eval(), models.data()
        for eps, step_size, steps in [(EPS, 2 / 255, 10), (0.1, 0.03, 7), (0.3, 0.01, 3)]:
            peer = torchattacks.PGD(model, eps=eps, alpha=step_size, steps=steps, random_start=False)
            if targeted:
                peer.set_mode_targeted_by_label(quiet=True)
            ours = brittle.pgd(
                model,
                x,
                y,
                eps,
                steps=steps,
                step_size=step_size,
                targeted=targeted,
                random_start=False,
                compat="torchattacks",
            )
            assert_same_bits(ours, peer(x, y))
            assert not torch.equal(ours, x)

    @pytest.mark.parametrize("name", models.MODELS)
    def test_fgsm(self, name: str) -> None:
        model, (x, y) = models.make(name).eval(), models.data()
        for eps in (EPS, 0.1, 0.3):
            ours = brittle.fgsm(model, x, y, eps, compat="torchattacks")
            assert_same_bits(ours, torchattacks.FGSM(model, eps=eps)(x, y))

    def test_default_step_size_is_theirs(self) -> None:
        model, (x, y) = models.make("convolutional").eval(), models.data()
        peer = torchattacks.PGD(model, random_start=False)(x, y)
        ours = brittle.pgd(model, x, y, EPS, steps=10, random_start=False, compat="torchattacks")
        assert_same_bits(ours, peer)

    def test_no_higher_robust_accuracy_than_theirs_by_default(self) -> None:
        for name in models.MODELS:
            model, (x, _) = models.make(name).eval(), models.data(200)
            y = models.own_labels(model, x)
            eps = 0.02
            peer = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=20, random_start=False)(x, y)
            ours = brittle.pgd(model, x, y, eps, steps=20, step_size=eps / 4, restarts=2)
            assert (model(ours).argmax(1) == y).sum() <= (model(peer).argmax(1) == y).sum()
