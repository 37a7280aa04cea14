"""The parts of a training loop: the order of samples, the model's modes, an epoch, a look at other data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Optimizer

from brittle.data import Data, batches
from brittle.repair.state import Batch, MakeOptimizer, MakeSchedule, Regularizer, Schedule, Step, Training
from brittle.target import Target

Samples = tuple[Tensor, Tensor, Tensor]

_PEAK_RATE = 3e-3


def derived_seed(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each purpose and number: torch's CPU generator looks at 32 bits alone, so sums
    and exclusive-ors of small numbers would meet again."""
    digest = hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Order:
    """The batches of every epoch.

    Args:
        op: the operator to name in error messages.
        data, batch_size, seed: as :func:`brittle.repair.train` takes them.
        model: where the batches go.

    Attributes:
        count: of an epoch's batches; None where the data has no length.
    """

    def __init__(self, op: str, data: Data, batch_size: int, seed: int, model: nn.Module) -> None:
        self.op, self.data, self.seed, self.target = op, data, seed, Target.of(model, op)
        self.batch_size = batch_size
        self.count: int | None
        if isinstance(data, tuple):
            # Looks at the pair, and says what is wrong with it.
            for _ in batches(op, data, max(1, len(data[0])), self.target):
                break
            else:
                raise ValueError(f"{op}: data must hold samples; got none")
            self.count = math.ceil(len(data[0]) / batch_size)
            return
        try:
            self.count = len(data)  # type: ignore[arg-type]
        except TypeError:
            self.count = None

    def epoch(self, number: int) -> Iterator[Samples]:
        """An epoch's batches, on the model's device."""
        if not isinstance(self.data, tuple):
            for part in (self.data, getattr(self.data, "sampler", None)):
                set_epoch = getattr(part, "set_epoch", None)
                if set_epoch is not None:
                    set_epoch(number)
            yield from batches(self.op, self.data, self.batch_size, self.target)
            return
        x, y = self.data
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", number))
        rows = torch.randperm(len(x), generator=generator).to(x.device)
        device = self.target.device or x.device
        for part in torch.tensor_split(rows, self.count or 1):
            yield x[part].detach().to(device), y[part.to(y.device)].to(device), part.to(device)


def chosen_parameters(
    op: str, model: nn.Module, optimizer: MakeOptimizer | Optimizer | None, names: Iterable[str] | None
) -> list[nn.Parameter]:
    """Those of the model's parameters that are to be trained."""
    named = dict(model.named_parameters())
    if isinstance(optimizer, Optimizer):
        if names is not None:
            raise ValueError(f"{op}: parameters are those of the optimizer given; got others beside it")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        chosen = [p for p in named.values() if id(p) in held]
    elif names is None:
        chosen = [p for p in named.values() if p.requires_grad]
    else:
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if not any(_within(known, name) for known in named):
                got = repr(name) if isinstance(name, str) else type(name).__name__
                raise ValueError(f"{op}: parameters must name parameters or modules with some; got {got}")
        chosen = [p for known, p in named.items() if any(_within(known, name) for name in names)]
    if not chosen:
        raise ValueError(f"{op}: model must have parameters to train; got none")
    return chosen


def _within(parameter: str, name: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.") or name == ""


def adam(parameters: list[nn.Parameter]) -> Optimizer:
    """The optimizer by default."""
    return torch.optim.Adam(parameters, lr=_PEAK_RATE)


def one_cycle(optimizer: Optimizer, steps: int) -> Schedule:
    """The schedule of the optimizer by default."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=steps + 1)


def optimizer_and_schedule(
    op: str,
    optimizer: MakeOptimizer | Optimizer | None,
    schedule: MakeSchedule | None,
    parameters: list[nn.Parameter],
    total: int | None,
) -> tuple[Optimizer, Schedule | None]:
    """As given, or the default ones; ``total`` is the number of steps, if it is known."""
    if (optimizer is None or schedule is not None) and total is None:
        raise ValueError(f"{op}: data must have a length for a schedule of the learning rate; got none")
    if optimizer is None:
        made: Optimizer = torch.optim.Adam(parameters, lr=_PEAK_RATE)
        schedule = schedule or (
            lambda adam, steps: torch.optim.lr_scheduler.OneCycleLR(adam, _PEAK_RATE, total_steps=steps)
        )
    else:
        made = optimizer if isinstance(optimizer, Optimizer) else optimizer(parameters)
    return made, None if schedule is None or total is None else schedule(made, total)


@contextmanager
def prepared(model: nn.Module, chosen: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block ``chosen`` alone requires gradients; afterwards each module's mode, each parameter's
    ``requires_grad`` and ``.grad``, and torch's random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    held = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    device = chosen[0].device
    with ExitStack() as undo:
        undo.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        try:
            model.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_()
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad, grad in held:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad


@contextmanager
def channels_last(model: nn.Module, data: Data, wanted: bool | None) -> Iterator[bool]:
    """Inside the block the weights of two-dimensional convolutions are laid out with their channels last; or
    not, as the value tells.

    Args:
        model: a module.
        data: as for training.
        wanted: None for where it is faster, on a CPU, and does no harm: code that takes a view of features
            refuses them in another layout, so one sample of a pair of tensors is tried.
    """
    weights = [m._parameters.get("weight") for m in model.modules() if isinstance(m, nn.Conv2d)]
    plain = [weight for weight in weights if weight is not None and weight.is_contiguous()]
    tried = data[0][:1] if isinstance(data, tuple) else None
    if wanted is None:
        wanted = bool(plain) and tried is not None and plain[0].device.type == "cpu"
    else:
        tried = None
    try:
        if wanted:
            for weight in plain:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        if wanted and tried is not None and not _runs(model, tried):
            wanted = False
            _lay_out_plainly(plain)
        yield wanted
    finally:
        _lay_out_plainly(plain)


def _lay_out_plainly(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous()


def _runs(model: nn.Module, x: Tensor) -> bool:
    with undisturbed(model, "eval"), torch.no_grad():
        try:
            model(x)
        except Exception:  # steps of the caller's own may call the model with more than x
            return False
    return True


@contextmanager
def undisturbed(model: nn.Module, mode: str) -> Iterator[None]:
    """Inside the block the parameters are frozen, so that no backward pass makes weight gradients; afterwards
    they, the modes and the buffers are as before.

    Args:
        model: a module.
        mode: ``"eval"`` for evaluation mode meanwhile, ``"train"`` for the modes that the modules are in.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    in_training = [module for module in model.modules() if module.training] if mode == "eval" else []
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for module in in_training:
            # nn.Module's own __setattr__ looks for parameters first: 2 % of FGSM training on a small network.
            object.__setattr__(module, "training", False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
        for module in in_training:
            object.__setattr__(module, "training", True)
        with torch.no_grad():
            for buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)


def to_training_mode(model: nn.Module) -> None:
    """Every module trains, but those with parameters of their own that are all frozen."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.training = False


def run_epoch(
    training: Training,
    samples: Iterable[Samples],
    step: Step,
    *,
    regularizer: Regularizer | None,
    schedule: Schedule | None,
    max_grad_norm: float | None,
    after_step: Callable[[], None],
) -> dict[str, float]:
    """Take a step on each batch and tell the means of what was seen; ends early where training is stopped."""
    model, optimizer = training.model, training.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loss_sum = penalty_sum = 0.0
    count = judged = 0
    correct: Tensor | int = 0
    record = {"epoch": float(training.epochs)}
    for x, y, ids in samples:
        if len(x) == 0:
            continue
        optimizer.zero_grad()
        batch = Batch(model, x, y, ids, training.epochs, training.steps)
        found = step(batch)
        loss, logits = found if isinstance(found, tuple) else (found, None)
        penalty = None if regularizer is None else _penalty(regularizer, batch)
        objective = loss if penalty is None else loss + penalty
        value = objective.item()
        if not math.isfinite(value):
            training.stop(f"the loss was {value} in epoch {training.epochs}, step {training.steps}")
            break
        objective.backward()  # type: ignore[no-untyped-call]
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        record["learning_rate"] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if schedule is not None:
            schedule.step()
        training.steps += 1
        count += len(x)
        extra = 0.0 if penalty is None else penalty.item()
        loss_sum += (value - extra) * len(x)
        penalty_sum += extra * len(x)
        if logits is not None:
            judged += len(x)
            correct = correct + (logits.detach().argmax(1) == y).sum()
        after_step()
        if training.stopped is not None:
            break
    if count:
        record["loss"] = loss_sum / count
        if regularizer is not None:
            record["penalty"] = penalty_sum / count
    if judged:
        record["accuracy"] = int(correct) / judged
    return record


def _penalty(regularizer: Regularizer, batch: Batch) -> Tensor:
    """Of the model, or of what it does with the batch, if the regularizer looks at that."""
    on_batch = getattr(regularizer, "on_batch", None)
    found: Tensor = regularizer(batch.model) if on_batch is None else on_batch(batch)
    return found


@torch.no_grad()
def look(op: str, model: nn.Module, data: Data, batch_size: int) -> dict[str, float]:
    """Mean cross-entropy and accuracy on ``data`` in evaluation mode."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    for x, y, _ in batches(op, data, batch_size, Target.of(model, op)):
        logits = model(x)
        loss += F.cross_entropy(logits, y, reduction="sum").item()
        correct += int((logits.argmax(1) == y).sum())
        count += len(x)
    if count == 0:
        raise ValueError(f"{op}: validation must hold samples; got none")
    return {"validation_loss": loss / count, "validation_accuracy": correct / count}
