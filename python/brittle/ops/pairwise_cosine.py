"""Cosine similarity of every row with every other, normalisation included in the product.

No normalised copy is made, a symmetric product is computed once and mirrored, and rows of any finite length
count alike: each is scaled by a power of two, which is exact, before anything is squared or summed.
"""

from typing import Any

import torch
from torch import Tensor

import brittle._library  # noqa: F401  (registers the operators)
from brittle.ops._arguments import constant, overwritten, register_fake, transformed, written
from brittle.triton import register

_ops = torch.ops.brittle


def pairwise_cosine(a: Tensor, b: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """The cosine of the angle between every row of ``a`` and every row of ``b``.

    A zero row has no direction: its cosine is 0 with every row, itself included. A row that holds a NaN or
    an infinity gives NaN, in its row and its column only. Every other row is normalised exactly, however
    small or large its norm; without ``b`` the diagonal is exactly 1 and the matrix exactly symmetric.

    Differentiable with respect to ``a`` and ``b`` where ``out`` is not given, as often as you like, in both
    directions and under ``torch.func``'s transforms; the gradient of a
    zero row, and of one that holds a NaN or an infinity, is 0.

    Args:
        a: ``[N, D]``, float32, float64, float16 or bfloat16, any strides.
        b: ``[M, D]`` of ``a``'s dtype; by default ``a`` itself, at half the cost.
        out: ``[N, M]`` of the result's dtype, any strides, to write into.

    Returns:
        ``out``, or a new tensor ``[N, M]`` with values in [-1, 1]: float64 for float64 input, else float32,
        float16 and bfloat16 too: near 1 their steps are 2^-11 and 2^-8, too coarse to tell near-duplicates
        from duplicates. Products are summed in float32. On a GPU, TF32 is used for float32 only where
        ``torch.get_float32_matmul_precision()`` is not ``"highest"``.

    Raises:
        ValueError: an argument is of wrong shape, dtype or device.

    Example:
        >>> import torch, brittle
        >>> features = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]])
        >>> brittle.ops.pairwise_cosine(features)
        tensor([[1.0000, 0.9600, 0.0000],
                [0.9600, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    if b is a:
        b = None
    if out is None:
        return _cosine(a, b)
    overwritten("pairwise_cosine", (a, b), out=out)
    _ops.pairwise_cosine_out.default(a, b, out)
    return written(out)


def pairwise_cosine_topk(a: Tensor, b: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``b`` of the largest cosine with each row of ``a``, without ever holding ``[N, M]``.

    Memory beyond the arguments and the result is a few tens of megabytes, whatever N and M are.

    Args:
        a: ``[N, D]``, float32, float64, float16 or bfloat16, any strides.
        b: ``[M, D]`` of ``a``'s dtype; by default ``a`` itself, where a row is not its own neighbour.
        k: neighbours of each row, at most M (without ``b``, N - 1).

    Returns:
        ``(cosines, indices)``, ``[N, k]`` each, descending; of equal cosines the lower index first. Cosines
        as in :func:`pairwise_cosine`, indices int64. Rows that hold a NaN or an infinity are nobody's
        neighbours and have none; NaN and index -1 stand for a neighbour that is missing.

    Raises:
        ValueError: an argument is of wrong shape, dtype, device or range.

    Example:
        >>> import torch, brittle
        >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> cosines, indices = brittle.ops.pairwise_cosine_topk(torch.tensor([[2.0, 1.9]]), train, k=2)
        >>> indices
        tensor([[2, 0]])
    """
    if b is a:
        b = None
    constant("pairwise_cosine_topk", a, b)
    cosines, indices = _ops.pairwise_cosine_topk.default(a, b, k)
    return cosines, indices


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(a: Tensor, b: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[0], (a if b is None else b).shape[0], dtype=_result_dtype(a.dtype))


def _fake_topk(a: Tensor, b: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    shape = a.shape[0], k
    return a.new_empty(shape, dtype=_result_dtype(a.dtype)), a.new_empty(shape, dtype=torch.int64)


def directions(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of length 1, and one over the length that they had; 0 for a zero or lost row."""
    x = x.to(dtype)
    # A power of two, the largest element's: the squares are then neither too large nor too small.
    largest = x.detach().abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(x.shape[0], 1)
    exponent = -torch.frexp(largest).exponent
    # In two steps: a power of two alone may be out of range where the product is not. As factors:
    # torch.ldexp's own gradient is 0 where the exponent is negative.
    one = torch.ones_like(largest)
    first, second = torch.ldexp(one, exponent // 2), torch.ldexp(one, exponent - exponent // 2)
    scaled = x * first * second
    some = (largest > 0) & largest.isfinite()
    norm = torch.where(some, scaled, 1.0).square().sum(1, keepdim=True).sqrt()
    reciprocal = (1 / norm * first * second).clamp(max=torch.finfo(dtype).max)
    return torch.where(some, scaled / norm, 0.0), torch.where(some, reciprocal, 0.0)


def _through(direction: Tensor, reciprocal: Tensor, towards: Tensor) -> Tensor:
    """The gradient of a row, given the gradient of its direction: what is along the row changes nothing."""
    along = (direction * towards).sum(1, keepdim=True)
    largest = torch.finfo(towards.dtype).max  # a subnormal row's gradient may be larger still
    return ((towards - along * direction) * reciprocal).clamp(-largest, largest)


def _cosine(a: Tensor, b: Tensor | None) -> Tensor:
    operator: Any = _Cosine.apply if transformed() else _ops.pairwise_cosine.default
    result: Tensor = operator(a, b)
    return result


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    rows, row_reciprocal = directions(a, grad.dtype)
    if b is None:
        grad = grad + grad.T
        grad = grad - torch.diag(grad.diagonal())  # the diagonal is constant
        return _through(rows, row_reciprocal, grad @ rows).to(a.dtype), None
    columns, column_reciprocal = directions(b, grad.dtype)
    grad_a = grad_b = None
    if ctx.needs_input_grad[0]:
        grad_a = _through(rows, row_reciprocal, grad @ columns).to(a.dtype)
    if ctx.needs_input_grad[1]:
        grad_b = _through(columns, column_reciprocal, grad.T @ rows).to(b.dtype)
    return grad_a, grad_b


class _Cosine(torch.autograd.Function):
    """The operator for tensors that carry tangents or that ``torch.func`` has wrapped."""

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)

    @staticmethod
    def forward(a: Tensor, b: Tensor | None) -> Tensor:
        result: Tensor = _ops.pairwise_cosine.default(a, b)
        return result

    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None) -> Tensor:
        a, b = ctx.saved_tensors
        dtype = _result_dtype(a.dtype)
        rows, row_reciprocal = directions(a, dtype)
        columns, column_reciprocal = (rows, row_reciprocal) if b is None else directions(b, dtype)
        change = rows.new_zeros(rows.shape[0], columns.shape[0])
        if a_tangent is not None:
            change = change + _through(rows, row_reciprocal, a_tangent.to(dtype)) @ columns.T
        if b is None:
            change = change + change.T
            return change - torch.diag(change.diagonal())
        if b_tangent is not None:
            change = change + rows @ _through(columns, column_reciprocal, b_tangent.to(dtype)).T
        return change

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor | None) -> tuple[Tensor, int]:
        a_dim, b_dim = in_dims
        return torch.stack(
            [
                _cosine(
                    a if a_dim is None else a.select(a_dim, i),
                    b if b is None or b_dim is None else b.select(b_dim, i),
                )
                for i in range(info.batch_size)
            ]
        ), 0


register_fake("pairwise_cosine", _fake)
register_fake("pairwise_cosine_out")
register_fake("pairwise_cosine_topk", _fake_topk)
torch.library.register_autograd("brittle::pairwise_cosine", _backward, setup_context=_save)
register()
