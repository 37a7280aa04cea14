"""How the wrappers hand arguments to the operators."""

import torch
from torch import Tensor


def per_row(value: float | Tensor, like: Tensor) -> Tensor:
    """A value for all samples, or one for each, as the contiguous float64 ``[N]`` that the kernels take."""
    if isinstance(value, Tensor):
        value = value.to(torch.float64)
        return (value if value.dim() else value.expand(like.shape[:1])).contiguous()
    return torch.full(like.shape[:1], value, dtype=torch.float64, device=like.device)


def choice(op: str, name: str, given: str, known: tuple[str, ...]) -> int:
    """The place of a choice among those that are known."""
    if given not in known:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, known))}; got {given!r}")
    return known.index(given)


def signed64(op: str, seed: int) -> int:
    """The 64 bits of a seed given as a signed or an unsigned number."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{op}: seed must fit 64 bits; got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def written(tensor: Tensor, *others: Tensor | None) -> Tensor:
    """Tell autograd that a kernel wrote to the tensor, and to others where given; returns it.

    A graph that saved the old values then refuses to use them. While compiling, the mutation is
    declared by the schema.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([t for t in (tensor, *others) if t is not None])
    return tensor
