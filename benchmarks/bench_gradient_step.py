"""The gradient_step room against copying, torch.compile, eager code, and the peers' expressions."""

import pytest
import torch
from brittle import ops
from conftest import Versus
from torch import Tensor

EPS, STEP = 8 / 255, 2 / 255


def tensors(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=generator)
    adv = (clean + EPS * (2 * torch.rand(shape, generator=generator) - 1)).clamp(0, 1)
    return adv.to(device), torch.randn(shape, generator=generator).to(device), clean.to(device)


def eager(adv: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
    """What torchattacks computes after the backward pass."""
    adv = adv + STEP * grad.sign()
    return torch.clamp(clean + torch.clamp(adv - clean, -EPS, EPS), 0, 1)


def three_reads_one_write(adv: Tensor, grad: Tensor, clean: Tensor) -> object:
    """The same traffic with the least arithmetic, where Triton is at hand: the physical limit."""
    import triton
    import triton.language as tl

    @triton.jit
    def stream(a, b, c, n, block: tl.constexpr):  # type: ignore[no-untyped-def]
        i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = i < n
        total = tl.load(a + i, inside) + tl.load(b + i, inside) + tl.load(c + i, inside)
        tl.store(a + i, total * 0.25, inside)

    n = adv.numel()
    return lambda: stream[(triton.cdiv(n, 4096),)](adv, grad, clean, n, block=4096, num_warps=8)


@pytest.mark.parametrize("shape", [(64, 3, 224, 224), (128, 3, 32, 32)], ids=str)
def bench_linf_step(versus: Versus, device: torch.device, shape: tuple[int, ...]) -> None:
    if device.type == "cuda" and shape[0] == 64:
        shape = (512, 3, 224, 224)  # 308 MB a tensor: well past any cache
    adv, grad, clean = tensors(shape, device)
    target = torch.empty_like(adv)
    compiled = torch.compile(eager)
    lo, hi = (clean - EPS).clamp_(min=0), (clean + EPS).clamp_(max=1)
    a, b, c = adv.clone(), grad.clone(), adv.clone()

    def in_place() -> None:
        b.sign_()
        a.add_(b, alpha=STEP)
        torch.clamp(a, lo, hi, out=a)

    others = {
        "copy of one tensor": lambda: target.copy_(adv),
        "torch.compile": lambda: compiled(adv, grad, clean),
        "eager, out of place": lambda: eager(adv, grad, clean),
        "eager, in place": in_place,
    }
    large = shape[0] != 128
    targets = {}
    if device.type == "cpu" and large:
        # At most 2.4 copies: copy / ours is at least 1 / 2.4.
        targets = {
            "copy of one tensor": ">= 0.417",
            "torch.compile": ">= 3",
            "eager, out of place": ">= 15",
            "eager, in place": ">= 1.3",
        }
    if device.type == "cuda":
        graphed = torch.compile(eager, mode="reduce-overhead")
        x, y, z = adv.clone(), grad.clone(), clean.clone()
        others["3 reads, 1 write"] = three_reads_one_write(x, y, z)  # type: ignore[assignment]
        others["torch.compile, CUDA graphs"] = lambda: graphed(adv, grad, clean)
        targets = (
            {
                "3 reads, 1 write": ">= 0.95",
                "eager, out of place": ">= 3.8",
                "torch.compile, CUDA graphs": ">= 1",
            }
            if large
            else {"torch.compile": ">= 2", "torch.compile, CUDA graphs": ">= 1"}
        )
    versus(f"Linf step {shape}", lambda: ops.linf_step_(c, grad, clean, STEP, EPS), others, targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def bench_linf_step_half(versus: Versus, device: torch.device, dtype: torch.dtype) -> None:
    adv, grad, clean = (t.to(dtype) for t in tensors((64, 3, 224, 224), device))
    target, c = torch.empty_like(adv), adv.clone()
    versus(
        f"Linf step, {str(dtype).removeprefix('torch.')}",
        lambda: ops.linf_step_(c, grad, clean, STEP, EPS),
        {
            "copy of one tensor": lambda: target.copy_(adv),
            "eager, out of place": lambda: eager(adv, grad, clean),
        },
    )


def bench_linf_step_channels_last_gradient(versus: Versus, device: torch.device) -> None:
    """The image contiguous, the gradient channels-last, as convolutions often return it."""
    adv, grad, clean = tensors((64, 3, 224, 224), device)
    grad = grad.contiguous(memory_format=torch.channels_last)
    c = adv.clone()
    versus(
        "Linf step, channels-last gradient",
        lambda: ops.linf_step_(c, grad, clean, STEP, EPS),
        {"eager, out of place": lambda: eager(adv, grad, clean)},
    )


def bench_linf_start(versus: Versus, device: torch.device) -> None:
    _, _, x = tensors((64, 3, 224, 224), device)
    out, noise = torch.empty_like(x), torch.empty_like(x)

    def in_place() -> None:
        noise.uniform_(-EPS, EPS)
        torch.clamp(noise.add_(x), 0, 1, out=noise)

    versus(
        "uniform start in the ball",
        lambda: ops.linf_start(x, EPS, out=out),
        {
            "copy of one tensor": lambda: out.copy_(x),
            "eager, out of place": lambda: torch.clamp(x + torch.empty_like(x).uniform_(-EPS, EPS), 0, 1),
            "eager, in place": in_place,
        },
    )


def bench_sign_sweep(versus: Versus, device: torch.device) -> None:
    _, grad, x = tensors((64, 3, 224, 224), device)
    epsilons = [k / 255 for k in (1, 2, 4, 6, 8, 12, 16, 32)]
    out = torch.empty(8, *x.shape, device=device)
    one = torch.empty_like(x)

    def one_by_one() -> None:
        for k, eps in enumerate(epsilons):
            out[k] = torch.clamp(x + eps * grad.sign(), 0, 1)

    def by_steps() -> None:
        for eps in epsilons:
            ops.linf_step_(one.copy_(x), grad, x, eps, eps)

    versus(
        "sign sweep, 8 epsilons",
        lambda: ops.sign_sweep(x, grad, epsilons, out=out),
        {
            "copy of one tensor": lambda: one.copy_(x),
            "eager FGSM for each epsilon": one_by_one,
            "linf_step_ for each epsilon": by_steps,
        },
        targets={"eager FGSM for each epsilon": ">= 3"},
    )


def bench_linf_step_with_trace(versus: Versus, device: torch.device) -> None:
    """What the engine's turn takes: an amount for each row, and a fingerprint of each."""
    adv, grad, clean = tensors((64, 3, 224, 224), device)
    target, a, b = torch.empty_like(adv), adv.clone(), adv.clone()
    step, eps = (torch.full((64,), v, dtype=torch.float64, device=device) for v in (STEP, EPS))
    trace = torch.empty(64, 3, dtype=torch.int64, device=device)

    versus(
        "Linf step with trace",
        lambda: ops.linf_step_(a, grad, clean, step, eps, trace=trace),
        {
            "copy of one tensor": lambda: target.copy_(adv),
            "without the trace": lambda: ops.linf_step_(b, grad, clean, STEP, EPS),
            "eager, out of place": lambda: eager(adv, grad, clean),
        },
    )


def eager_l2(adv: Tensor, grad: Tensor, clean: Tensor, step: float, eps: float) -> Tensor:
    """The operations of torchattacks' PGDL2 after the backward pass."""

    def norms(t: Tensor) -> Tensor:
        return torch.norm(t.view(len(t), -1), p=2, dim=1).view(-1, 1, 1, 1)

    adv = adv + step * (grad / (norms(grad) + 1e-10))
    delta = adv - clean
    factor = torch.min(eps / norms(delta), torch.ones_like(norms(delta)))
    return torch.clamp(clean + delta * factor, 0, 1)


def eager_l1(adv: Tensor, grad: Tensor, clean: Tensor, step: float, eps: float, k: int) -> Tensor:
    """The k largest elements move; then foolbox's projection, by sorting, and its clipping."""
    n = len(adv)
    flat = grad.flatten(1)
    at_least = flat.abs().topk(k, dim=1).values[:, -1:]
    adv = adv + (flat.sign() * (flat.abs() >= at_least)).view_as(adv) * (step / k)
    delta = (adv - clean).flatten(1)
    size = delta.abs()
    ordered = size.sort(dim=1, descending=True).values
    ranks = torch.arange(1, size.shape[1] + 1, device=adv.device)
    excess = (ordered.cumsum(1) - eps) / ranks
    count = (ordered > excess).sum(1, keepdim=True)
    shrunk = delta.sign() * (size - excess.gather(1, count - 1)).clamp(min=0)
    inside = size.sum(1, keepdim=True) <= eps
    return torch.clamp(clean + torch.where(inside, delta, shrunk).view(n, *adv.shape[1:]), 0, 1)


def eager_momentum(adv: Tensor, grad: Tensor, momentum: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The operations of torchattacks' MIFGSM after the backward pass."""
    momentum = momentum * 1.0 + grad / grad.abs().mean((1, 2, 3), keepdim=True)
    return eager(adv, momentum, clean), momentum


SHAPES = pytest.mark.parametrize("shape", [(64, 3, 224, 224), (128, 3, 32, 32)], ids=str)


@SHAPES
def bench_l2_step(versus: Versus, device: torch.device, shape: tuple[int, ...]) -> None:
    adv, grad, clean = tensors(shape, device)
    target, a = torch.empty_like(adv), adv.clone()
    eps = 0.5 * EPS * clean[0].numel() ** 0.5  # the iterate is at its edge: every step projects
    versus(
        f"L2 step {shape}",
        lambda: ops.l2_step_(a, grad, clean, eps / 4, eps),
        {
            "copy of one tensor": lambda: target.copy_(adv),
            "eager, out of place": lambda: eager_l2(adv, grad, clean, eps / 4, eps),
        },
    )


@SHAPES
def bench_l1_step(versus: Versus, device: torch.device, shape: tuple[int, ...]) -> None:
    adv, grad, clean = tensors(shape, device)
    target, a = torch.empty_like(adv), adv.clone()
    elements = clean[0].numel()
    eps, k = 0.25 * EPS * elements, elements // 100
    versus(
        f"L1 step {shape}",
        lambda: ops.l1_step_(a, grad, clean, eps / 4, eps, k),
        {
            "copy of one tensor": lambda: target.copy_(adv),
            "eager, out of place": lambda: eager_l1(adv, grad, clean, eps / 4, eps, k),
        },
        rounds=9,
        warm_up=1,
    )


@SHAPES
def bench_momentum_step(versus: Versus, device: torch.device, shape: tuple[int, ...]) -> None:
    adv, grad, clean = tensors(shape, device)
    target, a, momentum = torch.empty_like(adv), adv.clone(), torch.zeros_like(adv)
    theirs = torch.zeros_like(adv)
    versus(
        f"momentum step {shape}",
        lambda: ops.momentum_step_(a, grad, momentum, clean, STEP, EPS, normalize="mean"),
        {
            "copy of one tensor": lambda: target.copy_(adv),
            "eager, out of place": lambda: eager_momentum(adv, grad, theirs, clean),
        },
    )
