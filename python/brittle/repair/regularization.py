"""What training can be made to pay for: large weights, input gradients, units that repeat one another."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from brittle import _checks as check
from brittle import ops
from brittle.repair.duplicates import centred, unit_rows
from brittle.repair.state import Batch
from brittle.repair.structure import NORMS, norm_after


class Strengths(NamedTuple):
    """Of the penalties on one layer."""

    l1: float = 0.0
    l2: float = 0.0
    elastic: tuple[float, float] = (0.0, 0.0)
    redundancy: float = 0.0

    @property
    def absolute(self) -> float:
        """The factor of the sum of absolute values."""
        return self.l1 + self.elastic[0] * self.elastic[1]

    @property
    def squared(self) -> float:
        """The factor of the sum of squares."""
        return self.l2 + self.elastic[0] * (1 - self.elastic[1]) / 2


class Penalty:
    """What :func:`regularizer` returns: a function of the model, and of a batch where that is needed.

    Attributes:
        strengths: of layers that ``layers`` does not name.
        layers: strengths of the layers under each name.
        gradient_penalty: strength of the penalty on input gradients.
        redundancy_of: ``"weights"`` or ``"activations"``.
        norms_and_biases: whether they count as weights.
    """

    def __init__(
        self,
        strengths: Strengths,
        layers: Mapping[str, Strengths],
        gradient_penalty: float,
        redundancy_of: str,
        norms_and_biases: bool,
    ) -> None:
        self.strengths = strengths
        self.layers = dict(layers)
        self.gradient_penalty = gradient_penalty
        self.redundancy_of = redundancy_of
        self.norms_and_biases = norms_and_biases
        self._watched: MutableMapping[nn.Module, dict[str, str]] = weakref.WeakKeyDictionary()
        active = any(each.redundancy for each in (strengths, *layers.values()))
        self._looks_at_activations = active and redundancy_of == "activations"

    @property
    def needs_batch(self) -> bool:
        """Whether the penalty is a function of the batch too."""
        return self.gradient_penalty > 0 or self._looks_at_activations

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty on the weights, a scalar.

        Raises:
            ValueError: a layer that was named is not the model's; the penalty needs a batch.
        """
        if self.needs_batch:
            raise ValueError(
                "Penalty: on_batch must be called, as brittle.repair.train does; it needs a batch"
            )
        return self._of_weights(model)

    def on_batch(self, batch: Batch) -> Tensor:
        """The penalty on the weights and on what the model does with the batch, a scalar.

        Runs the model once more, if it has to. Buffers are not updated by that.
        """
        total = self._of_weights(batch.model)
        return total + self._of_outputs(batch) if self.needs_batch else total

    def _of_weights(self, model: nn.Module) -> Tensor:
        known = {name for name, _ in model.named_modules(remove_duplicate=False)}
        for name in self.layers:
            if name not in known:
                raise ValueError(
                    f"regularizer: layers must be names of model.named_modules(); got {name!r}, which is none"
                )
        first = next(model.parameters(), torch.zeros(()))
        total = first.new_zeros(())
        for name, module, key, tensor in _tensors(model):
            strength = self._at(name)
            if self.norms_and_biases or (tensor.dim() > 1 and not isinstance(module, NORMS)):
                if strength.absolute:
                    total = total + strength.absolute * tensor.abs().sum()
                if strength.squared:
                    total = total + strength.squared * tensor.square().sum()
            if strength.redundancy and self.redundancy_of == "weights" and key == "weight":
                rows = _weight_rows(module, tensor)
                if rows is not None:
                    total = total + strength.redundancy * squared_cosine(rows)
        return total

    def _at(self, name: str) -> Strengths:
        """Those of the nearest module around ``name`` that has its own."""
        while name not in self.layers:
            if not name:
                return self.strengths
            name = name.rpartition(".")[0]
        return self.layers[name]

    def _of_outputs(self, batch: Batch) -> Tensor:
        model, total = batch.model, torch.zeros((), device=batch.x.device)
        outputs: dict[str, Tensor] = {}
        handles = []
        for name, watched in self._watched_in(model).items():

            def hook(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                outputs[name] = output[0] if isinstance(output, tuple) else output

            handles.append(model.get_submodule(watched).register_forward_hook(hook))
        x = batch.x.detach().requires_grad_(self.gradient_penalty > 0)
        # Norms average over this pass too, but keep the average to themselves.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            logits = functional_call(model, buffers, (x,))
        finally:
            for handle in handles:
                handle.remove()
        if self.gradient_penalty > 0:
            loss = F.cross_entropy(logits, batch.y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            total = total + self.gradient_penalty * gradient.square().sum() / len(x)
        for name, output in outputs.items():
            rows = unit_rows(model.get_submodule(name), output)
            total = total + self._at(name).redundancy * squared_cosine(centred(rows))
        return total

    def _watched_in(self, model: nn.Module) -> dict[str, str]:
        """By name of a layer whose outputs are compared, the module that gives them: its norm or itself."""
        if not self._looks_at_activations:
            return {}
        if model not in self._watched:
            self._watched[model] = {
                name: norm_after(model, name) or name
                for name, module in model.named_modules()
                if isinstance(module, (nn.Linear, _ConvNd)) and self._at(name).redundancy
            }
        return self._watched[model]


def regularizer(
    l1: float = 0.0,
    l2: float = 0.0,
    elastic: tuple[float, float] = (0.0, 0.0),
    *,
    redundancy: float = 0.0,
    redundancy_of: str = "weights",
    gradient_penalty: float = 0.0,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    norms_and_biases: bool = False,
) -> Penalty:
    r"""A penalty to train with: ``brittle.repair.train(model, data, regularizer=regularizer(l2=1e-4))``.

    The sum of what is asked for, over all layers:

    - ``l1``: :math:`l_1 \sum |w|`. By gradient descent weights become small, not exactly zero.
    - ``l2``: :math:`l_2 \sum w^2`. With plain SGD that is weight decay of :math:`2 l_2`; with Adam it is not.
    - ``elastic = (strength, ratio)``: :math:`s (r \sum |w| + (1 - r) / 2 \sum w^2)`, as scikit-learn has it.
    - ``redundancy``: the mean of the squared cosines between different units of a layer, by
      :func:`brittle.ops.pairwise_cosine`, of their incoming weights or of what they give on the batch.
    - ``gradient_penalty``: the mean over the batch of :math:`\|\nabla_x \mathrm{CE}(x, y)\|^2`, through which
      training differentiates once more (double backpropagation).

    The last, and redundancy of activations, cost another pass over each batch. Weights are what layers
    compute with: under :func:`mask`, silenced ones are zero.

    Args:
        l1, l2, redundancy, gradient_penalty: finite and >= 0.
        elastic: a strength, finite and >= 0, and a ratio in [0, 1].
        redundancy_of: ``"weights"``, or ``"activations"``: outputs of linear layers and convolutions, after
            the norm that follows and less their means, as :func:`duplicate_units` compares them.
        layers: by name of a module, what is to be different in it and below: any of ``l1``, ``l2``,
            ``elastic`` and ``redundancy``. Of several names around a layer the nearest counts.
        norms_and_biases: whether ``l1``, ``l2`` and ``elastic`` count norms' parameters and one-dimensional
            ones too.

    Returns:
        A function from a model to a scalar; its ``on_batch(batch)`` is what
        :func:`brittle.repair.train` calls.

    Raises:
        ValueError: a strength or ratio is out of range; ``layers`` has other keys.

    References:
        Zou and Hastie, "Regularization and variable selection via the elastic net", 2005.
        Drucker and LeCun, "Improving generalization performance using double backpropagation", 1992.
        Ross and Doshi-Velez, "Improving the adversarial robustness and interpretability of deep neural
        networks by regularizing their input gradients", AAAI 2018.
        Rodríguez et al., "Regularizing CNNs with locally constrained decorrelations", ICLR 2017 (weights).
        Cogswell et al., "Reducing overfitting in deep networks by decorrelating representations", ICLR 2016
        (activations).

    Example:
        >>> import torch
        >>> from brittle.repair import regularizer
        >>> model = torch.nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     model.weight.copy_(torch.tensor([[3.0, 4.0], [4.0, 3.0]])).sum().item()
        14.0
        >>> round(regularizer(l1=0.1, l2=0.01)(model).item(), 4)
        1.9
        >>> round(regularizer(redundancy=1.0)(model).item(), 4)  # 0.96 ** 2
        0.9216
    """
    op = "regularizer"
    own = _checked(op, {"l1": l1, "l2": l2, "elastic": elastic, "redundancy": redundancy}, Strengths())
    check.check_scalar(op, "gradient_penalty", gradient_penalty)
    check.check_choice(op, "redundancy_of", redundancy_of, ("weights", "activations"))
    special = {name: _checked(op, terms, own) for name, terms in (layers or {}).items()}
    return Penalty(own, special, gradient_penalty, redundancy_of, norms_and_biases)


def squared_cosine(rows: Tensor) -> Tensor:
    """The mean squared cosine of two different rows; 0 for a single one."""
    count = len(rows)
    if count < 2:
        return rows.new_zeros(())
    squares = ops.pairwise_cosine(rows).square()
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))


def _checked(op: str, terms: Mapping[str, Any], others: Strengths) -> Strengths:
    for name, value in terms.items():
        check.check_choice(op, "layers' terms", name, Strengths._fields)
        if name != "elastic":
            check.check_scalar(op, name, value)
            continue
        try:
            strength, ratio = value
        except (TypeError, ValueError):
            raise ValueError(f"{op}: elastic must be (strength, ratio); got {value!r}") from None
        check.check_scalar(op, "elastic's strength", strength)
        if not 0 <= ratio <= 1:
            raise ValueError(f"{op}: elastic's ratio must be in [0, 1]; got {ratio}")
    return others._replace(**terms)


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every parameter once, as it is computed with; before it its module's name, its module, its own name."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if ".parametrizations." in f".{name}.":
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, module, key, parameter
        for key in cast("dict[str, nn.Module]", getattr(module, "parametrizations", {})):
            yield name, module, key, getattr(module, key)


def _weight_rows(module: nn.Module, weight: Tensor) -> Tensor | None:
    """A row of incoming weights for each unit; None for a module of another kind."""
    if isinstance(module, _ConvTransposeNd):
        # [inputs, outputs of a group, ...]: each group has its own outputs.
        weight = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1) if isinstance(module, (nn.Linear, _ConvNd)) else None
