"""A student taught by a teacher: by its answers, and by what its layers see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer

from brittle import _checks as check
from brittle.data import Data, batches
from brittle.repair.loop import adam, derived_seed, one_cycle
from brittle.repair.state import AllTrainingOptions, Batch, Training
from brittle.repair.structure import layer_named
from brittle.repair.training import train
from brittle.target import Model, Target

if TYPE_CHECKING:
    from typing_extensions import Unpack


def distill(
    student: nn.Module,
    teacher: Model | Target,
    data: Data,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    features: Mapping[str, str] | None = None,
    feature_weight: float = 1.0,
    **options: Unpack[AllTrainingOptions],
) -> Training:
    r"""Train a student in place to answer as a teacher does.

    The loss is :math:`\alpha T^2 \mathrm{KL}(p_T \| q_T) + (1 - \alpha) \mathrm{CE}`, where :math:`p_T` and
    :math:`q_T` are the teacher's and the student's probabilities at temperature T, and CE is the student's
    cross-entropy with the labels. With ``features``, for each pair of layers the mean squared difference
    between the teacher's output and a learned linear projection of the student's is added, ``feature_weight``
    times. All terms are trained together (the paper on hints trains them one after another).

    Args:
        student: changed in place.
        teacher: maps ``x`` to logits of the same classes; in evaluation mode meanwhile, and given back as it
            was (see :func:`brittle.fgsm`).
        data: as for :func:`brittle.repair.train`. With ``alpha=1`` labels count for nothing but the accuracy
            shown.
        temperature: finite and > 0; higher ones show more of how the teacher ranks the wrong classes.
        alpha: in [0, 1]: the weight of the teacher against the labels.
        features: names of the student's layers and of the teacher's that they are to match. Outputs are
            ``[N, C]``, ``[N, T, C]`` with equal T, or ``[N, C, H, W]``, where the larger map is averaged down
            to the smaller. Projections (1 x 1 convolutions for maps) are trained along and then dropped.
        feature_weight: finite and >= 0.
        options: the other arguments of :func:`brittle.repair.train`. With ``features``, ``optimizer`` must
            be None or a function.

    Returns:
        The training.

    Raises:
        ValueError: an argument is out of range; layers that do not exist or cannot match; the models differ
            in the number of classes; the teacher gives NaN; as for :func:`brittle.repair.train`.

    References:
        Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
        Romero et al., "FitNets: hints for thin deep nets", ICLR 2015 (features).

    Example:
        >>> import torch, brittle
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> def teacher(x):
        ...     return 5 * x  # sure of the larger one
        >>> student, answers = torch.nn.Linear(2, 2), (x, x.argmax(1))
        >>> training = brittle.repair.distill(student, teacher, answers, batch_size=20, alpha=1.0)
        >>> training.history[-1]["loss"] < training.history[0]["loss"]
        True
    """
    op = "distill"
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"{op}: temperature must be finite and > 0; got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"{op}: alpha must be in [0, 1]; got {alpha}")
    check.check_scalar(op, "feature_weight", feature_weight)
    target = Target.of(teacher, op)
    if target.model is student:
        raise ValueError(f"{op}: teacher must be another model than the student; got the same")
    with ExitStack() as undo:
        hints = None
        if features:
            hints = _Hints(op, student, target, features)
            undo.callback(hints.remove)
            hints.fit(data, options.get("batch_size", 128), options.get("seed", 0))
            _train_along(op, hints.projections, options)

        def step(batch: Batch) -> tuple[Tensor, Tensor]:
            soft = target.logits(batch.x, batch.ids)
            logits = batch.model(batch.x)
            if logits.shape != soft.shape:
                raise ValueError(
                    f"{op}: the student must give logits {list(soft.shape)} as the teacher does; "
                    f"got {list(logits.shape)}"
                )
            answers, wanted = ((part / temperature).log_softmax(1) for part in (logits, soft))
            divergence = F.kl_div(answers, wanted, reduction="batchmean", log_target=True)
            loss = alpha * temperature**2 * divergence
            if alpha < 1:
                loss = loss + (1 - alpha) * F.cross_entropy(logits, batch.y)
            if hints is not None:
                loss = loss + feature_weight * hints.loss()
            return loss, logits

        undo.enter_context(target)
        return train(student, data, step=step, name=op, **options)


class _Hints:
    """What the chosen layers of both models gave last, and the projections from the one to the other."""

    def __init__(self, op: str, student: nn.Module, teacher: Target, pairs: Mapping[str, str]) -> None:
        if not isinstance(teacher.model, nn.Module):
            raise ValueError(f"{op}: teacher must be an nn.Module for features; got a function")
        self.op, self.student, self.teacher, self.pairs = op, student, teacher, dict(pairs)
        self.projections = nn.ModuleList()
        self._seen: dict[tuple[str, str], Tensor] = {}
        layers = [("student", name, layer_named(op, student, name)) for name in self.pairs]
        layers += [("teacher", name, layer_named(op, teacher.model, name)) for name in self.pairs.values()]
        self._handles = [layer.register_forward_hook(self._note(who, name)) for who, name, layer in layers]

    def _note(self, who: str, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._seen[who, name] = output[0] if isinstance(output, tuple) else output

        return note

    def remove(self) -> None:
        """Watch no more."""
        for handle in self._handles:
            handle.remove()

    def fit(self, data: Data, batch_size: int, seed: int) -> None:
        """Make the projections, of the sizes that the first batch has in the layers."""
        if isinstance(data, Iterator):
            raise ValueError(f"{self.op}: data must be iterable anew to match features; got an iterator")
        student = Target.of(self.student, self.op)
        found = batches(self.op, data, batch_size, student)
        x, ids = next(((x, ids) for x, _, ids in found if len(x)), (None, None))
        if x is None or ids is None:
            raise ValueError(f"{self.op}: data must hold samples; got none")
        for target in (student, self.teacher):
            with target:
                target.logits(x[:2], ids[:2])
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(derived_seed(seed, "projections", 0))
            for own, other in self._outputs():
                if own.dim() == 4:
                    made: nn.Module = nn.Conv2d(own.shape[1], other.shape[1], 1)
                else:
                    made = nn.Linear(own.shape[-1], other.shape[-1])
                self.projections.append(made.to(own.device, own.dtype))

    def loss(self) -> Tensor:
        """How far the projected outputs are from the teacher's: mean squares, summed over the pairs."""
        losses = []
        for projection, (own, other) in zip(self.projections, self._outputs(), strict=True):
            losses.append(F.mse_loss(projection(own), other.to(own.dtype)))
        return torch.stack(losses).sum()

    def _outputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name, others in self.pairs.items():
            for key in (("student", name), ("teacher", others)):
                if key not in self._seen:
                    raise ValueError(f"{self.op}: layer {key[1]!r} of the {key[0]} must run; it did not")
            own, other = self._seen["student", name], self._seen["teacher", others].detach()
            if own.dim() == other.dim() == 4:
                size = min(own.shape[2], other.shape[2]), min(own.shape[3], other.shape[3])
                own, other = (F.adaptive_avg_pool2d(part, size) for part in (own, other))
            elif own.dim() not in (2, 3) or own.shape[:-1] != other.shape[:-1]:
                raise ValueError(
                    f"{self.op}: features must be [N, C], [N, T, C] with one T or [N, C, H, W] in both; "
                    f"got {list(own.shape)} of {name!r} and {list(other.shape)} of {others!r}"
                )
            yield own, other


def _train_along(op: str, projections: nn.ModuleList, options: AllTrainingOptions) -> None:
    """Give the projections to the optimizer, and as something with a state to the checkpoint."""
    make = options.get("optimizer")
    if isinstance(make, Optimizer):
        raise ValueError(f"{op}: optimizer must be a function where features are matched; got an optimizer")
    if make is None:
        make = adam
        options["schedule"] = options.get("schedule") or one_cycle
    make_for_both = make
    options["optimizer"] = lambda parameters: make_for_both([*parameters, *projections.parameters()])
    options["callbacks"] = [*options.get("callbacks", ()), projections]
