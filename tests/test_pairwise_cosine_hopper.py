"""The kernels compiled for Hopper, which needs none: they use its tensor cores and fit its memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
HOPPER = ("cuda", 90, 32)
SHARED_MEMORY = 227 * 1024


@pytest.fixture(autouse=True)
def _compiled_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int) -> Any:
    """`types` of arguments known to be divisible by 16 end in an exclamation mark."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr").rstrip("!") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(n),): [["tt.divisibility", 16]] for n, kind in types.items() if kind.endswith("!")
        },
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget(*HOPPER), options=options)


def compiled_product(dtype: torch.dtype, precision: str, n: int, d: int, symmetric: bool = True) -> Any:
    """The product of n rows of d elements, contiguous, as the launcher would have it compiled."""
    from brittle.triton import pairwise_cosine, pairwise_cosine_kernels
    from brittle.triton.pairwise_cosine_tilings import H200_MULTIPROCESSORS, tiling_for

    tiling = tiling_for(n, n, d, dtype, symmetric, precision, H200_MULTIPROCESSORS)
    result = NAMES[pairwise_cosine.result_dtype(dtype)]
    types = {"a": f"*{NAMES[dtype]}!", "b": f"*{NAMES[dtype]}!"}
    types |= dict.fromkeys(["a_scales", "b_scales", "out"], f"*{result}!")
    types |= dict.fromkeys(["n", "m", "a_step", "b_step", "out_row", "plane"], "i32!")
    types |= dict.fromkeys(["d_units", "a_row_units", "b_row_units", "share_steps"], "i32")
    constants = pairwise_cosine.constants(dtype, precision, n, d, d, d, symmetric, tiling)
    constants |= {"a_column": 1, "b_column": 1, "out_column": 1}
    return tiling, compiled(
        pairwise_cosine_kernels.product_kernel, types, constants, tiling.num_warps, tiling.num_stages
    )


CASES = [
    # type, precision, D, the instruction that multiplies
    (torch.float16, "tf32", 512, "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16"),
    (torch.bfloat16, "tf32", 1000, "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"),
    (torch.bfloat16, "tf32", 8192, "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"),
    (torch.float32, "tf32", 512, "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32"),
    (torch.float32, "ieee", 512, "fma.rn.f32"),
    (torch.float64, "ieee", 512, "mma.sync.aligned"),
]


@pytest.mark.parametrize(("dtype", "precision", "d", "instruction"), CASES, ids=str)
def test_product(dtype: torch.dtype, precision: str, d: int, instruction: str) -> None:
    tiling, kernel = compiled_product(dtype, precision, 16_384, d)
    code = kernel.asm["ptx"]
    assert instruction in code
    assert kernel.metadata.shared <= SHARED_MEMORY
    assert ("tf32" in code) == (dtype == torch.float32 and precision == "tf32"), (
        "rounded operands where asked for"
    )
    # Operands travel 16 bytes at a time, past the registers; cosines leave 16 at a time, in both halves.
    assert "cp.async.cg.shared.global" in code
    assert "cp.async.ca" not in code
    stores = [line for line in code.splitlines() if "st.global.v" in line]
    assert len(stores) >= 2 * tiling.block_m * tiling.block_n // (32 * tiling.num_warps) // 4
