"""How the wrappers hand arguments to the operators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


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


def transformed() -> bool:
    """Whether tangents may travel with tensors, or ``torch.func`` has wrapped them.

    Neither reaches an operator of the dispatcher: it would see plain numbers, and its result be a constant.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def overwritten(op: str, read: tuple[object, ...] = (), **outputs: Tensor | None) -> None:
    """Refuse what autograd would get wrong in silence: an output in a graph, an argument with a tangent."""
    for name, output in outputs.items():
        if output is not None and output.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{op}: {name} must not require grad, since it is overwritten with what has no gradient; got "
                f"a tensor that does: give {name}.detach()"
            )
    constant(op, *read, *outputs.values())


def constant(op: str, *arguments: object) -> None:
    """Refuse tangents: an operator without a derivative would drop them in silence."""
    if not transformed():
        return
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    unpacked = (forward_ad.unpack_dual(tensor) for tensor in tensors)  # type: ignore[no-untyped-call]
    if any(part.tangent is not None for part in unpacked):
        raise ValueError(
            f"{op}: arguments must not carry tangents of forward-mode differentiation, since what comes out "
            "has no derivative with respect to them; give them detached"
        )


def register_fake(name: str, fake: Callable[..., Any] = lambda *_: None) -> None:
    """What an operator returns where no numbers are computed; by default nothing, as where it writes to out.

    Tensors on several devices are refused here as the kernels refuse them: one tensor on ``meta`` is enough
    for torch to come here instead.
    """
    packet, _, overload = name.partition(".")
    known = getattr(getattr(torch.ops.brittle, packet), overload or "default")._schema.arguments
    op = packet.removesuffix("_out").removesuffix("_backward")

    def checked(*arguments: Any) -> Any:
        given = [
            (a.name, tensor)
            for a, tensor in zip(known, arguments, strict=False)
            if isinstance(tensor, Tensor)
        ]
        first, like = given[0]
        for other, tensor in given:
            if tensor.device != like.device:
                raise ValueError(
                    f"{op}: {other} must be on {first}'s device {like.device}; got {tensor.device}"
                )
        return fake(*arguments)

    torch.library.register_fake(f"brittle::{name}", checked)


def written(tensor: Tensor, *others: Tensor | None) -> Tensor:
    """Tell autograd that a kernel wrote to the tensor, and to others where given; returns it.

    A graph that saved the old values then refuses to use them. While compiling, the mutation is
    declared by the schema.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([t for t in (tensor, *others) if t is not None])
    return tensor
