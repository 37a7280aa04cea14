"""Times every tiling that the GPU's pairwise cosine may choose: python benchmarks/sweep_tilings.py

Prints the five fastest for each shape and type, and the one that is chosen. The table to edit by it is
`_TILINGS` in python/brittle/triton/pairwise_cosine_tilings.py. Needs a CUDA device.
"""

import torch
import triton
from brittle.triton import pairwise_cosine, pairwise_cosine_tilings
from brittle.triton.pairwise_cosine_tilings import Tiling

KINDS = [
    (torch.bfloat16, "tf32"),
    (torch.float16, "tf32"),
    (torch.float32, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "tf32x3"),
    (torch.float64, "ieee"),
]
SHAPES = [(16_384, 1024), (8192, 4096), (4096, 4096), (16_384, 256), (1024, 4096), (512, 100_352)]


def sweep(n: int, d: int, dtype: torch.dtype, precision: str) -> None:
    """Print the times of one shape and type."""
    x = torch.randn(n, d, device="cuda").to(dtype)
    out = torch.empty(n, n, device="cuda", dtype=pairwise_cosine.result_dtype(dtype))
    scales = pairwise_cosine.row_scales(x)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    chosen = pairwise_cosine_tilings.tiling_for(n, n, d, dtype, True, precision, processors)
    rows = []
    for candidate in {chosen, *pairwise_cosine_tilings.candidates(dtype, precision)}:
        tiles = pairwise_cosine_tilings.tile_count(n, n, candidate, True)
        shares = max(1, min(d // pairwise_cosine_tilings.LEAST_SHARE, -(-processors // tiles)))
        tiling = candidate._replace(shares=shares)

        def product(tiling: Tiling = tiling) -> None:
            pairwise_cosine.product(x, scales, None, scales, out, tiling, precision)

        try:
            rows.append((triton.testing.do_bench(product), tiling))
        except triton.runtime.errors.OutOfResources as error:
            print("does not fit:", tiling, error)
    lengths = triton.testing.do_bench(lambda: pairwise_cosine.row_scales(x))
    print(f"\n{dtype} {precision} {n}x{d}: lengths {lengths:.3f} ms; chosen {tuple(chosen)}")
    for ms, tiling in sorted(rows)[:5]:
        print(f"  {ms:8.3f} ms  {n * (n + 1) * d / ms * 1e-9:7.1f} TFLOP/s of the half  {tuple(tiling)}")


if __name__ == "__main__":
    for n, d in SHAPES:
        for dtype, precision in KINDS:
            sweep(n, d, dtype, precision)
