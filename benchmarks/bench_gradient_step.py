"""The gradient_step room against copying, torch.compile, eager code, and the peers' expressions."""

import brittle
import pytest
import torch
from brittle import ops
from conftest import Versus
from torch import Tensor, nn

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


def network(device: torch.device) -> nn.Module:
    """Untrained, its logits centred, so that predictions hang on the input and can be changed."""
    torch.manual_seed(0)
    head = nn.Linear(64, 10)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        head,
    ).eval()
    with torch.no_grad():
        head.bias -= model(torch.rand(256, 3, 32, 32)).mean(0)
    return model.to(device)


def bench_fgsm_curve(versus: Versus, device: torch.device) -> None:
    """A whole accuracy-versus-epsilon curve against the peer's FGSM at each epsilon."""
    torchattacks = pytest.importorskip("torchattacks")
    model = network(device)
    x = torch.rand(256, 3, 32, 32, device=device)
    y = model(x).argmax(1)
    epsilons = [k / 255 for k in (1, 2, 4, 6, 8, 12, 16, 32)]

    def ours() -> list[float]:
        return brittle.evaluation.accuracy_vs_epsilon(model, (x, y), epsilons).accuracy

    def theirs() -> list[float]:
        accuracy = []
        for eps in epsilons:
            adv = torchattacks.FGSM(model, eps=eps)(x, y)
            with torch.no_grad():
                accuracy.append((model(adv).argmax(1) == y).double().mean().item())
        return accuracy

    note = f"accuracy at 8/255: ours {ours()[4]:.3f}, theirs {theirs()[4]:.3f}"
    # 1 forward-backward and 8 forwards, against 8 of each and 8 forwards.
    versus(
        "FGSM curve, 8 epsilons, small CNN",
        ours,
        {"torchattacks": theirs},
        targets={"torchattacks": ">= 2"},
        rounds=9,
        notes={"torchattacks": note},
    )


def bench_pgd(versus: Versus, device: torch.device) -> None:
    """PGD-10, every step for every sample: what the loop costs beside the model's own passes."""
    torchattacks = pytest.importorskip("torchattacks")
    model = network(device)
    x = torch.rand(128, 3, 32, 32, device=device)
    y = model(x).argmax(1)

    def bare() -> None:
        model.requires_grad_(False)
        leaf = x.clone().requires_grad_()
        for _ in range(10):
            torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        model.requires_grad_(True)

    peer = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=10)
    versus(
        "PGD-10, small CNN, every step",
        lambda: brittle.pgd(model, x, y, EPS, steps=10, step_size=STEP, compat="torchattacks"),
        {"bare forward + input gradient": bare, "torchattacks": lambda: peer(x, y)},
        rounds=9,
    )
