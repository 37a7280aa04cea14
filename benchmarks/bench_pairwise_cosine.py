"""Pairwise cosines against the multiply-adds that they need at least, and against what people call."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from brittle import ops
from conftest import Versus
from torch import Tensor
from torch.nn import functional


@pytest.fixture(scope="module")
def multiply_adds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Callable[[], object]]:
    """`multiply_adds(count)` is a function that does so many on registers: in one core its share of them.

    As if all cores were as fast, and woke at once: nothing that shares out work can be below that.
    """
    library = tmp_path_factory.mktemp("fma") / "fma_peak.so"
    source = Path(__file__).with_name("fma_peak.cpp")
    flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).multiply_add
    function.argtypes, function.restype = [ctypes.c_double], ctypes.c_float
    return lambda count: lambda: function(count / torch.get_num_threads())


def normalize_mm(x: Tensor) -> Tensor:
    y = functional.normalize(x)
    return y @ y.T


SHAPES = [(1024, 1024), (1024, 4096), (2048, 1024), (4096, 4096)]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def bench_symmetric(versus: Versus, multiply_adds: Callable, n: int, d: int) -> None:
    if versus.device.type != "cpu":
        pytest.skip("see bench_symmetric_on_the_gpu")
    from torchmetrics.functional import pairwise_cosine_similarity

    x, out = torch.randn(n, d), torch.empty(n, n)
    versus(
        f"float32 {n}x{d}",
        lambda: ops.pairwise_cosine(x, out=out),
        {
            "half the multiply-adds, in registers": multiply_adds(n * n * d / 2),
            "torch normalize + mm": lambda: normalize_mm(x),
            "torchmetrics": lambda: pairwise_cosine_similarity(x, zero_diagonal=False),
            "brittle, new output": lambda: ops.pairwise_cosine(x),
        },
        {
            "half the multiply-adds, in registers": ">= 0.8",
            "torch normalize + mm": ">= 4",
        },
        rounds=9 if d * n < 1 << 24 else 7,
        settle=0.05,
    )


@pytest.mark.parametrize(("n", "d"), SHAPES)
def bench_symmetric_and_sklearn(versus: Versus, n: int, d: int) -> None:
    """By itself: the threads of its BLAS spin on after each call, for more than 50 ms."""
    if versus.device.type != "cpu":
        pytest.skip("sklearn has no GPU")
    from sklearn.metrics.pairwise import cosine_similarity

    x, out = torch.randn(n, d), torch.empty(n, n)
    array = x.numpy()
    versus(
        f"float32 {n}x{d}, sklearn",
        lambda: ops.pairwise_cosine(x, out=out),
        {"sklearn": lambda: cosine_similarity(array)},
        {"sklearn": ">= 2"},
        rounds=7,
        settle=0.5,
    )


@pytest.mark.parametrize(("n", "d"), SHAPES)
def bench_symmetric_bfloat16(versus: Versus, n: int, d: int) -> None:
    if versus.device.type != "cpu":
        pytest.skip("see bench_symmetric_on_the_gpu")
    x, out = torch.randn(n, d), torch.empty(n, n)
    half = x.bfloat16()
    versus(
        f"bfloat16 {n}x{d}",
        lambda: ops.pairwise_cosine(half, out=out),
        {
            "brittle, float32": lambda: ops.pairwise_cosine(x, out=out),
            "torch normalize + mm, bfloat16": lambda: normalize_mm(half),
        },
        {"brittle, float32": ">= 1.6"},
        rounds=9 if d * n < 1 << 24 else 7,
        settle=0.05,
    )


@pytest.mark.parametrize(("n", "m", "d"), [(1024, 1024, 1024), (256, 8192, 512), (1, 20000, 512)])
def bench_two_matrices(versus: Versus, multiply_adds: Callable, n: int, m: int, d: int) -> None:
    if versus.device.type != "cpu":
        pytest.skip("see bench_symmetric_on_the_gpu")
    a, b, out = torch.randn(n, d), torch.randn(m, d), torch.empty(n, m)
    versus(
        f"float32 {n}x{d} and {m}x{d}",
        lambda: ops.pairwise_cosine(a, b, out=out),
        {
            "the multiply-adds, in registers": multiply_adds(float(n) * m * d),
            "torch normalize + mm": lambda: functional.normalize(a) @ functional.normalize(b).T,
        },
        settle=0.05,
    )


# The shapes that have targets, few long rows (a batch's features of one layer), many short rows, an odd D.
GPU_SHAPES = [(1024, 4096), (4096, 4096), (8192, 4096), (512, 100_352), (40_000, 256), (16_384, 1000)]
GPU_TARGETS = {1024: ">= 1", 4096: ">= 1.6", 8192: ">= 1.9"}
GPU_KINDS = [(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest")]


@pytest.mark.parametrize(("dtype", "setting"), GPU_KINDS, ids=["float32", "TF32", "bfloat16"])
@pytest.mark.parametrize(("n", "d"), GPU_SHAPES)
def bench_symmetric_on_the_gpu(versus: Versus, n: int, d: int, dtype: torch.dtype, setting: str) -> None:
    if versus.device.type != "cuda":
        pytest.skip("see bench_symmetric")
    x = torch.randn(n, d, device="cuda").to(dtype)
    out, product = torch.empty(n, n, device="cuda"), torch.empty(n, n, device="cuda", dtype=dtype)
    target = GPU_TARGETS[n] if dtype == torch.bfloat16 and d == 4096 else ""
    name = f"{str(dtype).removeprefix('torch.')}{' (TF32)' if setting == 'high' else ''}"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        versus(
            f"{name} {n}x{d}",
            lambda: ops.pairwise_cosine(x, out=out),
            {
                "torch mm alone, whole matrix": lambda: torch.mm(x, x.T, out=product),
                "torch normalize + mm": lambda: normalize_mm(x),
                "one write of the result": lambda: out.fill_(0.5),
                "brittle, x and a copy": lambda: ops.pairwise_cosine(x, x.clone(), out=out),
            },
            {"torch normalize + mm": target} if target else {},
        )
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("n", [100_000, 400_000])
def bench_topk_on_the_gpu(versus: Versus, n: int) -> None:
    if versus.device.type != "cuda":
        pytest.skip("see bench_topk")
    x = torch.randn(n, 512, device="cuda").bfloat16()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.pairwise_cosine_topk(x, k=10)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    versus(
        f"bfloat16 top 10 of {n}x512",
        lambda: ops.pairwise_cosine_topk(x, k=10),
        {"torch blocks + topk": lambda: blocks_and_topk(x, 10, side=4096)},
        notes={"torch blocks + topk": f"ours: peak above the input {peak:.0f} MB"},
        rounds=3,
        warm_up=1,
    )


def blocks_and_topk(x: Tensor, k: int, side: int = 2048) -> tuple[Tensor, Tensor]:
    """What people write: a block of rows against everything, then torch.topk."""
    y = functional.normalize(x)
    found = []
    for i in range(0, len(y), side):
        block = y[i : i + side] @ y.T
        block[torch.arange(len(block)), torch.arange(i, i + len(block))] = -2
        found.append(block.topk(k, dim=1))
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def bench_topk(versus: Versus, multiply_adds: Callable) -> None:
    if versus.device.type != "cpu":
        pytest.skip("see bench_topk_on_the_gpu")
    n, d, k = 20_000, 512, 10
    x = torch.randn(n, d)
    versus(
        f"top {k} of {n}x{d}",
        lambda: ops.pairwise_cosine_topk(x, k=k),
        {
            "half the multiply-adds, in registers": multiply_adds(n * n * d / 2),
            "torch blocks + topk": lambda: blocks_and_topk(x, k),
        },
        rounds=5,
        warm_up=1,
    )


# VmHWM, not getrusage, whose peak is inherited from the process that starts this one.
PEAK = """
import re, sys, torch
from brittle import ops
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
n, d, k = map(int, sys.argv[1:])
x = torch.randn(n, d)
ops.pairwise_cosine_topk(x[:1000], k=k)
before = peak()
ops.pairwise_cosine_topk(x, k=k)
print(peak() - before)
"""


def bench_topk_of_a_hundred_thousand(versus: Versus, multiply_adds: Callable) -> None:
    """In a process of its own, whose peak of memory is the call's."""
    if versus.device.type != "cpu":
        pytest.skip("see bench_topk_on_the_gpu")
    n, d, k = 100_000, 512, 10
    peaks = []

    def ours() -> None:
        command = [sys.executable, "-c", PEAK, *map(str, (n, d, k))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout))

    notes: dict[str, str] = {}
    limit = "half the multiply-adds, in registers"

    def count() -> None:
        multiply_adds(n * n * d / 2)()
        if peaks:
            notes[limit] = f"peak above the input {max(peaks):.0f} MB"

    versus(
        f"top {k} of {n}x{d}, process start included",
        ours,
        {limit: count},
        rounds=1,
        warm_up=1,
        notes=notes,
    )
