"""The emulation of CUDA itself: grids, barriers, shared memory and shuffles."""

import emulated_cuda
import numpy as np
import pytest


@pytest.mark.parametrize("blocks", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 31, 96, 97, 1000])
def test_block_sums_by_shuffles_and_shared_memory(count: int, blocks: int) -> None:
    values = np.arange(count, dtype=np.float64) ** 2
    sums = emulated_cuda.block_sum(values, blocks)
    owner = (np.arange(count) // 96) % blocks
    assert sums.tolist() == [values[owner == block].sum() for block in range(blocks)]


def test_shuffle_down_reads_the_lane_it_asks_for() -> None:
    values = np.random.default_rng(0).integers(0, 100, 96).astype(np.float64)
    expected = values.reshape(3, 32)[:, ::-1].cumsum(1)[:, ::-1]
    assert emulated_cuda.suffix_sum(values).reshape(3, 32).tolist() == expected.tolist()


def test_a_barrier_that_some_threads_miss_is_reported() -> None:
    with pytest.raises(RuntimeError, match="a thread ended before a barrier"):
        emulated_cuda.skipped_barrier()
