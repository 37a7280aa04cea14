"""The installed peers' attacks behind one signature, random start off (RFGSM has no such switch).

Every function returns what the peer gives, detached and on x's device. A peer is imported when it
is first used; where it is missing or cannot be imported, the test that asked for it is skipped, and no other.
Where a function takes no ``bounds``, the peer knows only [0, 1]. ``step_size`` and ``steps`` default to the
peer's own.
"""

import math
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Bounds = tuple[float, float]


class Peer:
    """A module of a peer's, imported where it is first asked for something."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # they use old names of scipy and distutils
            return getattr(pytest.importorskip(self._module, exc_type=ImportError), name)


class _AdvLib(Peer):
    """adv-lib imports all its attacks, and those visdom for logging and torchvision for LPIPS; nothing of
    either runs here, so empty modules stand in for them during the import, also where they exist."""

    def __getattr__(self, name: str) -> Any:
        if self._module in sys.modules:
            return getattr(sys.modules[self._module], name)
        names = ("visdom", "torchvision")
        hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
        sys.modules.update({name: types.ModuleType(name) for name in names})
        sys.modules["torchvision"].models = None
        try:
            return super().__getattr__(name)
        finally:
            for module in names:
                del sys.modules[module]
            sys.modules.update(hidden)


foolbox = Peer("foolbox")
torchattacks = Peer("torchattacks")
art_attacks = Peer("art.attacks.evasion")
_art_estimators = Peer("art.estimators.classification")
_cleverhans_fgm = Peer("cleverhans.torch.attacks.fast_gradient_method")
cleverhans_pgd_module = Peer("cleverhans.torch.attacks.projected_gradient_descent")
advlib = _AdvLib("adv_lib.attacks.projected_gradient_descent")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, then with the modes and ``.grad`` it had; the random state too.

    Several peers leave weight gradients and evaluation mode behind; ART's data loader draws a number.
    """
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in grads if parameter.is_cuda}
    for parameter, _ in grads:
        parameter.grad = None
    model.eval()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, grad in grads:
            parameter.grad = grad


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what is None, which the peer then chooses."""
    return {name: value for name, value in settings.items() if value is not None}


# --- torchattacks: mean loss, bounds [0, 1], images of four dimensions for PGDL2 and MIFGSM ---


def _torchattacks(
    attack: type,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    targeted: bool,
    seed: int | None = None,
    **settings: Any,
) -> Tensor:
    with undisturbed(model):
        if seed is not None:
            torch.manual_seed(seed)
        peer = attack(model, **_given(settings))
        if targeted:
            peer.set_mode_targeted_by_label(quiet=True)
        return peer(x, y)


def torchattacks_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, targeted: bool = False
) -> Tensor:
    return _torchattacks(torchattacks.FGSM, model, x, y, targeted, eps=eps)


def torchattacks_rfgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
    seed: int = 0,
) -> Tensor:
    """Starts at ``clip(x + step_size * sign(randn_like(x)))``, drawn right after ``manual_seed(seed)``."""
    settings = {"eps": eps, "alpha": step_size, "steps": steps}
    return _torchattacks(torchattacks.RFGSM, model, x, y, targeted, seed=seed, **settings)


def torchattacks_bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
) -> Tensor:
    return _torchattacks(torchattacks.BIM, model, x, y, targeted, eps=eps, alpha=step_size, steps=steps)


def torchattacks_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
) -> Tensor:
    settings = {"eps": eps, "alpha": step_size, "steps": steps, "random_start": False}
    return _torchattacks(torchattacks.PGD, model, x, y, targeted, **settings)


def torchattacks_pgd_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
) -> Tensor:
    settings = {"eps": eps, "alpha": step_size, "steps": steps, "random_start": False}
    return _torchattacks(torchattacks.PGDL2, model, x, y, targeted, **settings)


def torchattacks_mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    decay: float = 1.0,
    targeted: bool = False,
) -> Tensor:
    settings = {"eps": eps, "alpha": step_size, "steps": steps, "decay": decay}
    return _torchattacks(torchattacks.MIFGSM, model, x, y, targeted, **settings)


# --- foolbox: summed loss; the fast gradient attacks refuse targets ---


def _foolbox(
    attack: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float, targeted: bool, bounds: Bounds
) -> Tensor:
    with undisturbed(model):
        peer = foolbox.PyTorchModel(model, bounds=bounds, device=x.device)
        criterion = (
            foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
        )
        last, _clipped, _success = attack(peer, x, criterion(y), epsilons=eps)
        return last


def _schedule(step_size: float | None, steps: int | None) -> dict[str, Any]:
    return _given({"abs_stepsize": step_size, "steps": steps})


def foolbox_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, bounds: Bounds = (0.0, 1.0)
) -> Tensor:
    return _foolbox(foolbox.attacks.LinfFastGradientAttack(), model, x, y, eps, False, bounds)


def foolbox_fgm_l2(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, bounds: Bounds = (0.0, 1.0)
) -> Tensor:
    return _foolbox(foolbox.attacks.L2FastGradientAttack(), model, x, y, eps, False, bounds)


def foolbox_bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    attack = foolbox.attacks.LinfBasicIterativeAttack(**_schedule(step_size, steps))
    return _foolbox(attack, model, x, y, eps, targeted, bounds)


def foolbox_bim_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    attack = foolbox.attacks.L2BasicIterativeAttack(**_schedule(step_size, steps))
    return _foolbox(attack, model, x, y, eps, targeted, bounds)


def foolbox_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
        random_start=False, **_schedule(step_size, steps)
    )
    return _foolbox(attack, model, x, y, eps, targeted, bounds)


def foolbox_pgd_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(
        random_start=False, **_schedule(step_size, steps)
    )
    return _foolbox(attack, model, x, y, eps, targeted, bounds)


def foolbox_mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    decay: float = 1.0,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    attack = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(
        momentum=decay, **_schedule(step_size, steps)
    )
    return _foolbox(attack, model, x, y, eps, targeted, bounds)


# --- ART: the loss given to its classifier, here the mean over each chunk of batch_size; float32 only ---


def _art(
    attack: Any,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    batch_size: int | None,
    bounds: Bounds,
    **settings: Any,
) -> Tensor:
    with undisturbed(model):
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        classifier = _art_estimators.PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            classes,
            clip_values=bounds,
            device_type="gpu" if x.is_cuda else "cpu",
        )
        peer = attack(classifier, batch_size=batch_size or len(x), **_given(settings))
        adv = peer.generate(x.detach().cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(adv).to(x.device)


def art_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: float = math.inf,
    targeted: bool = False,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """``norm`` is inf or 2; ``batch_size`` defaults to the whole batch in one chunk (theirs: 32)."""
    settings = {"norm": norm, "eps": eps, "targeted": targeted}
    return _art(art_attacks.FastGradientMethod, model, x, y, batch_size, bounds, **settings)


def art_bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    settings = {"eps": eps, "eps_step": step_size, "max_iter": steps, "targeted": targeted, "verbose": False}
    return _art(art_attacks.BasicIterativeMethod, model, x, y, batch_size, bounds, **settings)


def art_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    norm: float = math.inf,
    targeted: bool = False,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """``norm`` is inf or 2."""
    settings = {"eps": eps, "eps_step": step_size, "max_iter": steps, "targeted": targeted, "verbose": False}
    return _art(art_attacks.ProjectedGradientDescent, model, x, y, batch_size, bounds, norm=norm, **settings)


def art_mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    decay: float = 1.0,
    norm: float = math.inf,
    targeted: bool = False,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """``norm`` is inf or 2, of the step and the ball; the momentum is normalised in L1 in either."""
    settings = {"eps": eps, "eps_step": step_size, "max_iter": steps, "targeted": targeted, "verbose": False}
    attack = art_attacks.MomentumIterativeMethod
    return _art(attack, model, x, y, batch_size, bounds, norm=norm, decay=decay, **settings)


# --- cleverhans: mean loss, float32 inside ---


def cleverhans_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: float = math.inf,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """``norm`` is inf or 2."""
    with undisturbed(model):
        lo, hi = bounds
        return _cleverhans_fgm.fast_gradient_method(
            model, x, eps, norm, lo, hi, y=y, targeted=targeted
        ).detach()


def cleverhans_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    *,
    norm: float = math.inf,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """``norm`` is inf or 2; ``step_size`` must not exceed ``eps``."""
    with undisturbed(model):
        lo, hi = bounds
        return cleverhans_pgd_module.projected_gradient_descent(
            model, x, eps, step_size, steps, norm, lo, hi, y=y, targeted=targeted, rand_init=False
        ).detach()


# --- adv-lib: summed loss, bounds [0, 1] ---


def advlib_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    step_size: float | None = None,
    steps: int | None = None,
    *,
    targeted: bool = False,
) -> Tensor:
    """The latest fooled iterate, else the clean point; where the last step leads is never tried."""
    with undisturbed(model):
        settings = _given({"steps": steps, "absolute_step_size": step_size})
        return advlib.pgd_linf(model, x, y, eps, targeted=targeted, random_init=False, **settings)
