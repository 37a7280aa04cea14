"""Training on adversarial examples: FGSM from a random start, PGD, free, and the TRADES loss."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from brittle import _checks as check
from brittle.data import Data
from brittle.noise._state import stream
from brittle.repair.ascent import NORMS, Ascent, Bounds, Loss
from brittle.repair.checkpoints import Arguments
from brittle.repair.early_stopping import CollapseGuard
from brittle.repair.folded import FoldedCopy
from brittle.repair.loop import derived_seed, undisturbed
from brittle.repair.state import Batch, Training, TrainingOptions
from brittle.repair.training import train
from brittle.target import PRECISIONS, in_bfloat16

if TYPE_CHECKING:
    from typing_extensions import Unpack

METHODS = ("pgd", "fgsm", "free", "trades")
MODES = ("eval", "train")

_NAME = "adversarial_train"


def adversarial_train(
    model: nn.Module,
    data: Data,
    *,
    eps: float,
    method: str = "pgd",
    norm: str = "linf",
    steps: int | None = None,
    step_size: float | None = None,
    random_start: bool = True,
    ramp: float = 1 / 3,
    beta: float = 6.0,
    replays: int = 4,
    mode: str = "eval",
    precision: str = "float32",
    fold_batchnorm: bool = True,
    bounds: Bounds = (0.0, 1.0),
    validation: Data | float | None = 0.1,
    epochs: int = 40,
    seed: int = 0,
    callbacks: Iterable[Any] = (),
    **options: Unpack[TrainingOptions],
) -> Training:
    """Train a model in place on the worst samples that an attacker makes of the given ones.

    ======== ============================== ============================================== ==================
    method   the attack                     the loss                                       passes a step
    ======== ============================== ============================================== ==================
    pgd      ``steps`` from a random start  cross-entropy of the adversarial samples       ``steps`` + 1
    fgsm     one, longer than the ball      the same                                       2
    free     one between two steps          the same; ``replays`` steps on each batch,     1
                                            whose gradients serve model and attack
    trades   ``steps`` on the divergence    cross-entropy of the clean samples + ``beta``  ``steps`` + 3
             from the clean prediction      times that divergence
    ======== ============================== ============================================== ==================

    A pass is a forward and a backward pass; those of the attack make no weight gradients and touch no buffer.

    After each epoch :class:`~brittle.repair.CollapseGuard` attacks held-out samples with PGD of 10 steps:
    where their robust accuracy collapses, as FGSM's may within an epoch, training stops and the model has the
    best epoch's weights.

    Args:
        model: a classifier with logits ``[N, C]``, changed in place.
        data: samples inside ``bounds`` and int64 labels, as :func:`brittle.repair.train` takes them.
        eps: radius of the ball in the samples' units.
        method: ``"pgd"``, ``"fgsm"``, ``"free"`` or ``"trades"``.
        norm: of the ball, ``"linf"`` or ``"l2"``.
        steps: of the attack of ``"pgd"`` and ``"trades"``, by default 7.
        step_size: of the attack at full ``eps``; by default ``2.5 * eps / steps`` for ``"pgd"`` and
            ``"trades"``, ``1.25 * eps`` for ``"fgsm"``, ``eps`` for ``"free"``.
        random_start: start at a random point of the ball; without, at the clean point. ``"free"`` starts from
            the last batch's perturbation, whatever this says; ``"trades"`` needs it.
        ramp: share of the epochs over which the radius grows from 0 to ``eps``, in equal steps an epoch.
            Large radii are not learnt without.
        beta: weight of TRADES' divergence.
        replays: of ``"free"``: steps on a batch before the next. An epoch takes so many times as long.
        mode: the modules' while they are attacked: ``"eval"``, or ``"train"`` for batch-norm's own batch
            statistics and dropout.
        precision: of the attack's passes: ``"float32"`` is the model's own; ``"bfloat16"`` runs its layers in
            that, ``"auto"`` where the device multiplies it natively and the model is float32. The optimizer's
            own pass is always the model's. Not for ``"free"``, which has no others.
        fold_batchnorm: attack, in mode ``"eval"``, a copy whose batch-norms are folded into the convolutions
            before them: the same function to the rounding, in less time.
        bounds: the smallest and the largest value of the samples.
        validation: held-out data; or the share of ``data``, a pair of tensors, to hold out; or None, for no
            look and no early stopping.
        epochs, seed, callbacks, options: of :func:`brittle.repair.train`. ``seed`` is also that of the random
            starts and of what is held out.

    Returns:
        The training; ``history`` has ``robust_accuracy`` of the held-out samples, ``eps``, and in
        ``accuracy`` the share of adversarial samples that were classified rightly.

    Raises:
        ValueError: an argument is out of range, or data does not fit.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018 (pgd).
        Wong, Rice and Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020 (fgsm).
        Shafahi et al., "Adversarial training for free!", NeurIPS 2019 (free).
        Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019 (trades;
        here from a random point of the ball, there from one 0.001 away from the clean sample).

    Example:
        >>> import torch, brittle
        >>> x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0.5).long()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> training = brittle.repair.adversarial_train(
        ...     model, (x, y), eps=0.1, epochs=9, batch_size=20, optimizer=lambda p: torch.optim.Adam(p, 0.02)
        ... )
        >>> training.stopped, training.history[-1]["robust_accuracy"] > 0.5
        (None, True)
    """
    check.check_choice(_NAME, "method", method, METHODS)
    check.check_choice(_NAME, "norm", norm, NORMS)
    check.check_choice(_NAME, "mode", mode, MODES)
    check.check_choice(_NAME, "precision", precision, PRECISIONS)
    check.check_scalar(_NAME, "eps", eps)
    check.check_inside(_NAME, "eps", eps, norm, bounds)
    check.check_scalar(_NAME, "beta", beta)
    check.check_count(_NAME, "epochs", epochs)
    check.check_count(_NAME, "replays", replays)
    check.check_seed(_NAME, seed)
    if not 0 <= ramp <= 1:
        raise ValueError(f"{_NAME}: ramp must be in [0, 1]; got {ramp}")
    if steps is not None and method not in ("pgd", "trades"):
        raise ValueError(f"{_NAME}: steps is for the methods 'pgd' and 'trades'; got {steps} for {method!r}")
    if method == "trades" and not random_start:
        raise ValueError(f"{_NAME}: method 'trades' needs random_start: its divergence is flat at the sample")
    steps = (
        check.check_count(_NAME, "steps", 7 if steps is None else steps) if method in ("pgd", "trades") else 1
    )
    usual = {"fgsm": 1.25, "free": 1.0}.get(method, 2.5 / steps) * eps
    length = usual if step_size is None else check.check_scalar(_NAME, "step_size", step_size)
    if method == "free" and precision == "bfloat16":
        raise ValueError(f"{_NAME}: precision must be 'float32' for method 'free'; got {precision!r}")
    half = in_bfloat16(precision, model, next((p.device for p in model.parameters()), None))
    held_out, data = _held_out(data, validation, seed)
    ascent = Ascent(norm, steps, random_start, bounds, stream(seed, b"attack"), half)
    growing = round(ramp * epochs) + 1
    radii = [(eps * share, length * share) for share in (min(1.0, (e + 1) / growing) for e in range(epochs))]
    step = {"free": _Free, "trades": _Trades}.get(method, _Standard)(ascent, radii, mode, beta)
    if fold_batchnorm and mode == "eval" and method != "free":
        step.folded = FoldedCopy.of(model)
    settings = {"method": method, "norm": norm, "steps": steps, "random_start": random_start, "radii": radii}
    settings |= {"half": half, "folded": step.folded is not None}
    arguments = Arguments(_NAME, **settings, beta=beta, mode=mode, bounds=tuple(bounds))
    listeners: list[Any] = [arguments, step]
    if held_out is not None:
        listeners.append(CollapseGuard(held_out, eps, norm, bounds, seed, _NAME))
    return train(
        model,
        data,
        step=step,
        epochs=epochs,
        validation=held_out,
        seed=seed,
        callbacks=[*listeners, *callbacks],
        replays=replays if method == "free" else 1,
        name=_NAME,
        **options,
    )


def _held_out(data: Data, validation: Data | float | None, seed: int) -> tuple[Data | None, Data]:
    """What to look at, and what to train on."""
    if not isinstance(validation, (int, float)):
        return validation, data
    if not 0 < validation < 1:
        raise ValueError(f"{_NAME}: validation must be data, a share in (0, 1) or None; got {validation}")
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (None, None)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(
            f"{_NAME}: data must be a pair of tensors for a share of it to be held out; "
            "for other data give validation"
        )
    count = round(validation * len(x))
    if len(x) != len(y) or not 0 < count < len(x):
        raise ValueError(f"{_NAME}: data must have samples to hold out; got {len(x)} and {len(y)} labels")
    generator = torch.Generator().manual_seed(derived_seed(seed, "held out", 0))
    rows = torch.randperm(len(x), generator=generator)
    out, kept = rows[:count].to(x.device), rows[count:].sort().values.to(x.device)
    return (x[out], y[out.to(y.device)]), (x[kept], y[kept.to(y.device)])


class _Standard:
    """Cross-entropy of adversarial samples: Madry's, and with one step Wong's.

    Args:
        ascent: the attack.
        radii: for each epoch eps and step size.
        mode: of the model while it is attacked.
        beta: of TRADES.

    Attributes:
        folded: what is attacked in the model's place, or None.
    """

    def __init__(self, ascent: Ascent, radii: list[tuple[float, float]], mode: str, beta: float) -> None:
        self.ascent, self.radii, self.mode, self.beta = ascent, radii, mode, beta
        self.folded: FoldedCopy | None = None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        y = batch.y
        with undisturbed(batch.model, self.mode) if self.folded is None else nullcontext():
            adv = self.attacked(batch, lambda logits: F.cross_entropy(logits, y, reduction="sum"))
        logits = batch.model(adv)
        return F.cross_entropy(logits, y), logits

    def attacked(self, batch: Batch, loss: Loss) -> Tensor:
        """The batch's samples after the attack."""
        self.check(batch)
        model = batch.model if self.folded is None else self.folded.refreshed()
        return self.ascent(model, batch.x, batch.ids, batch.step, loss, *self.radii[batch.epoch])

    def check(self, batch: Batch) -> None:
        """Raise ValueError for samples or labels that an attack cannot take."""
        check.check_images(_NAME, batch.x, self.ascent.bounds)
        check.check_labels(_NAME, batch.y, batch.x)

    def on_epoch(self, training: Training) -> None:
        """Tell the radius."""
        training.history[-1]["eps"] = self.radii[len(training.history) - 1][0]


class _Trades(_Standard):
    """Cross-entropy of clean samples, and the divergence of the adversarial predictions from theirs."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        model, x = batch.model, batch.x
        with undisturbed(model, self.mode):
            with torch.no_grad():
                usual = model(x.clone()).softmax(1)
            adv = self.attacked(batch, lambda logits: _divergence(logits, usual))
        clean = model(x.clone())
        logits = model(adv)
        loss = F.cross_entropy(clean, batch.y)
        return loss + self.beta * _divergence(logits, clean.softmax(1)) / len(x), logits


class _Free(_Standard):
    """One backward pass for model and attack: the perturbation goes on from step to step, batch to batch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.delta = torch.zeros(0)
        self.now: tuple[Tensor, Tensor, float, float] | None = None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.check(batch)
        x = batch.x
        eps, step_size = self.radii[batch.epoch]
        missing = max(0, len(x) - len(self.delta))
        delta = torch.cat([self.delta.to(x).reshape(-1, *x.shape[1:]), x.new_zeros(missing, *x.shape[1:])])
        adv = x + delta[: len(x)]
        self.ascent.step_(adv, adv, x, 0.0, eps)  # into this batch's bounds and this epoch's ball
        adv.requires_grad_()
        self.delta, self.now = delta, (x, adv, eps, step_size)
        logits = batch.model(adv)
        return F.cross_entropy(logits, batch.y), logits

    def on_step(self, training: Training) -> None:
        """Move the perturbation by the gradient of the step just taken."""
        assert self.now is not None
        x, adv, eps, step_size = self.now
        assert adv.grad is not None
        moved = self.ascent.step_(adv.detach(), adv.grad, x, step_size, eps)
        self.delta[: len(x)] = moved - x

    def state_dict(self) -> dict[str, Tensor]:
        """The perturbation, which the next epoch goes on from."""
        return {"delta": self.delta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.delta = state["delta"]


def _divergence(logits: Tensor, usual: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the usual predictions, summed over samples."""
    return F.kl_div(logits.log_softmax(1), usual, reduction="sum")
