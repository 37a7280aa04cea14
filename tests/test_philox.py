"""Philox4x32-10 against the known answers that Random123 publishes, through every door."""

from collections.abc import Callable, Sequence

import brittle.numpy
import emulated_cuda
import numpy as np
import pytest
import torch
from brittle import ops, reference
from brittle.numpy import linf_start
from samples import assert_same_bits

# (counter, key, result), from Random123's kat_vectors file.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def by_reference(counter: Sequence[int], key: tuple[int, int]) -> list[int]:
    return reference.philox4x32(torch.tensor(counter), key).tolist()


@pytest.mark.parametrize(
    "philox4x32",
    [by_reference, brittle.numpy.philox4x32, emulated_cuda.philox4x32],
    ids=["reference", "C++", "emulated CUDA's build"],
)
def test_known_answers(philox4x32: Callable[..., Sequence[int]]) -> None:
    for counter, key, result in KNOWN_ANSWERS:
        assert tuple(philox4x32(counter, key)) == result


@pytest.mark.parametrize(
    ("seed", "sample_id", "draw"),
    [(0, 0, 0), (0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3), (2**64 - 1, 2**63 - 1, 2**32 - 1)],
)
def test_key_and_counter_are_laid_out_as_stream_1_says(
    seed: int, sample_id: int, draw: int, simd_level: str
) -> None:
    """Reads the words back out of uniform starts: the top 24 bits of each, four elements to a block."""
    elements = 23
    low = 0xFFFFFFFF
    words = [
        word
        for block in range(6)
        for word in by_reference(
            (block, draw, sample_id & low, sample_id >> 32), (seed & low, (seed >> 32) & low)
        )
    ][:elements]
    expected = [(word >> 8) * 2.0**-23 - 1 for word in words]
    start = linf_start(np.zeros((1, elements)), 1.0, seed, np.array([sample_id]), draw, bounds=(-1.0, 1.0))
    assert start[0].tolist() == expected
    signed = seed - 2**64 if seed >= 2**63 else seed
    out = np.empty((1, elements))
    emulated_cuda.linf_start(
        np.zeros((1, elements)), 1.0, signed, np.array([sample_id]), draw, -1.0, 1.0, out
    )
    assert out[0].tolist() == expected


def test_the_bits_of_stream_1_do_not_change() -> None:
    """Written down once: a change here breaks every stored run."""
    start = ops.linf_start(torch.zeros(2, 5), 1.0, 20260101, torch.tensor([3, 10**12]), 7, (-1, 1))
    expected = [
        [
            "0x1.ce0ea80000000p-1",
            "-0x1.d4a0f80000000p-1",
            "0x1.5cba680000000p-2",
            "-0x1.f14ff40000000p-1",
            "0x1.b682000000000p-7",
        ],
        [
            "0x1.cbd61c0000000p-1",
            "-0x1.5047280000000p-2",
            "-0x1.1a84d00000000p-2",
            "0x1.c6ae480000000p-1",
            "0x1.6245900000000p-2",
        ],
    ]
    assert [[value.hex() for value in row] for row in start.tolist()] == expected


def test_ids_draws_and_seeds_give_unrelated_numbers() -> None:
    zeros = torch.zeros(1, 100_000, dtype=torch.float64)

    def start(seed: int, sample_id: int, draw: int) -> torch.Tensor:
        return ops.linf_start(zeros, 1.0, seed, torch.tensor([sample_id]), draw, (-1, 1))[0]

    base = start(0, 0, 0)
    assert_same_bits(base, start(0, 0, 0))
    for other in (start(1, 0, 0), start(0, 1, 0), start(0, 0, 1), start(2**32, 0, 0), start(0, 2**32, 0)):
        correlation = torch.corrcoef(torch.stack([base, other]))[0, 1]
        assert abs(correlation) < 5 / 100_000**0.5
