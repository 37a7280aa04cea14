"""Pairwise cosine similarity against its float64 definition, the libraries people trust, and closed forms."""

import math
import subprocess
import sys
from typing import Any

import brittle.numpy
import numpy as np
import pytest
import torch
from brittle import ops, reference
from hypothesis import given
from hypothesis import strategies as st
from samples import DTYPES, array, assert_same_bits, layouts, tensor
from torch import Tensor
from torch.nn import functional

TOLERANCE = {
    torch.float32: 2e-6,
    torch.float64: 1e-13,
    torch.float16: 2e-6,  # the inputs are exact, and sums are in float32
    torch.bfloat16: 2e-6,
}


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    error = (got.double() - want).nan_to_num()
    assert error.numel() == 0 or error.abs().max() <= TOLERANCE[dtype]


def assert_symmetric(got: Tensor, a: Tensor) -> None:
    assert_same_bits(got, got.T)
    zero, lost = (a == 0).all(1), ~a.isfinite().all(1)
    assert (got.diagonal()[~zero & ~lost] == 1).all()
    assert (got.diagonal()[zero] == 0).all()


def rows(n: int, d: int, dtype: torch.dtype, seed: int, positive: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (x.abs() if positive else x).to(dtype)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    dtype = draw(st.sampled_from(DTYPES))
    size = st.one_of(st.integers(0, 40), st.sampled_from([64, 127, 128, 129, 150]))
    d = draw(st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 511, 513, 1025])))
    seed = draw(st.integers(0, 1000))
    found = []
    for i in range(2):
        x = rows(draw(size), d, dtype, seed + i, positive=draw(st.booleans()))
        if draw(st.booleans()) and x.numel():
            awkward = [0.0, math.nan, math.inf, *((1e-20, 1e20) if dtype != torch.float16 else (1e-3, 1e3))]
            for row, value in zip(range(0, len(x), 3), awkward, strict=False):
                x[row] = x[row] * value if value else 0.0
        choices = layouts(x)
        found.append(choices[draw(st.sampled_from(sorted(choices)))])
    return found[0], found[1]


class TestValues:
    @given(matrices())
    def test_the_definition(self, pair: tuple[Tensor, Tensor]) -> None:
        a, b = pair
        assert_close(ops.pairwise_cosine(a, b), reference.pairwise_cosine(a, b), a.dtype)
        alone = ops.pairwise_cosine(a)
        assert_close(alone, reference.pairwise_cosine(a), a.dtype)
        assert_symmetric(alone, a)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_at_every_simd_level(self, simd_level: str, dtype: torch.dtype) -> None:
        a, b = rows(45, 1100, dtype, 0), rows(33, 1100, dtype, 1, positive=True)
        assert_close(ops.pairwise_cosine(a, b), reference.pairwise_cosine(a, b), dtype)
        assert_close(ops.pairwise_cosine(b), reference.pairwise_cosine(b), dtype)
        assert_symmetric(ops.pairwise_cosine(b), b)

    @pytest.mark.parametrize(("n", "m", "d"), [(3000, 1, 5), (1, 3000, 7), (2999, 130, 33), (17, 19, 2049)])
    def test_large(self, n: int, m: int, d: int) -> None:
        a, b = rows(n, d, torch.float32, 0), rows(m, d, torch.float32, 1)
        assert_close(ops.pairwise_cosine(a, b), reference.pairwise_cosine(a, b), torch.float32)

    def test_a_result_larger_than_the_cache_in_several_passes(self) -> None:
        a = rows(1500, 2100, torch.float32, 0)
        got = ops.pairwise_cosine(a)
        assert_close(got, reference.pairwise_cosine(a), torch.float32)
        assert_symmetric(got, a)

    def test_products_are_not_rounded_before_they_are_added(self, simd_level: str) -> None:
        """A fused multiply-add keeps what x * x loses; without one the two terms cancel exactly."""
        x = torch.tensor(1 + 2.0**-12)
        got = ops.pairwise_cosine(torch.stack([torch.tensor(1.0), x])[None], torch.stack([-x * x, x])[None])
        assert (got.item() == 0) == (simd_level == "baseline")

    def test_more_rows_than_are_packed_at_a_time(self) -> None:
        a, b = rows(4200, 3, torch.float32, 0), rows(4100, 3, torch.float32, 1)
        got = ops.pairwise_cosine(a)
        assert_close(got, reference.pairwise_cosine(a), torch.float32)
        assert_symmetric(got, a)
        del got
        assert_close(ops.pairwise_cosine(a, b), reference.pairwise_cosine(a, b), torch.float32)

    @pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7, 0.9, 0.123])
    @pytest.mark.parametrize("d", [1000, 8192, 100_000])
    def test_long_sums_of_equal_terms_do_not_drift(self, value: float, d: int) -> None:
        """Each addition errs to the same side: one running sum would be wrong by 1e-3 here."""
        a = torch.full((2, d), value)
        assert (ops.pairwise_cosine(a) - 1).abs().max() <= 2e-6
        assert (ops.pairwise_cosine(a, a.clone()) - 1).abs().max() <= 2e-6

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_hundred_thousand_columns(self, dtype: torch.dtype) -> None:
        a, b = rows(3, 100_000, dtype, 0, positive=True), rows(18, 100_000, dtype, 1, positive=True)
        assert_close(ops.pairwise_cosine(a, b), reference.pairwise_cosine(a, b), dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_rows_of_every_length_count_alike(self, dtype: torch.dtype, simd_level: str) -> None:
        """Scaling a row by a power of two changes no bit, from the smallest numbers to the largest."""
        exponents = [-110, -100, -66, -20, 0, 20, 66, 100, 120]
        if dtype == torch.float64:
            exponents = [8 * e for e in exponents]
        a, b = rows(len(exponents), 50, dtype, 0).clamp(-4, 4), rows(7, 50, dtype, 1)
        scaled = a * torch.tensor([2.0**e for e in exponents], dtype=dtype)[:, None]
        assert scaled.isfinite().all()
        assert_same_bits(ops.pairwise_cosine(scaled, b), ops.pairwise_cosine(a, b))
        assert_same_bits(ops.pairwise_cosine(scaled), ops.pairwise_cosine(a))

    def test_subnormal_and_nearly_infinite_rows(self) -> None:
        a = torch.tensor([[1e-45, 0.0], [3e-45, 4.2e-45], [3.4e38, 3.4e38], [1e-45, 3.4e38], [1.0, 1.0]])
        assert_close(ops.pairwise_cosine(a), reference.pairwise_cosine(a), torch.float32)
        a = torch.tensor([[5e-324, 0.0], [1.7e308, 1.7e308], [1.0, 1.0]], dtype=torch.float64)
        assert_close(ops.pairwise_cosine(a), reference.pairwise_cosine(a), torch.float64)

    def test_nan_and_infinity_stay_in_their_row_and_column(self) -> None:
        a = rows(40, 70, torch.float32, 0)
        a[3, 5], a[20, 0], a[21, 1], a[7] = math.nan, math.inf, -math.inf, 0
        lost = torch.zeros(40, dtype=torch.bool)
        lost[[3, 20, 21]] = True
        got = ops.pairwise_cosine(a)
        assert torch.equal(got.isnan(), lost[:, None] | lost[None, :])
        kept = ~lost
        assert_same_bits(got[kept][:, kept], ops.pairwise_cosine(a[kept]))
        assert (got[7][kept] == 0).all()

    def test_orthogonal_opposite_and_equal_rows(self) -> None:
        got = ops.pairwise_cosine(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-5.0, 0.0], [7.0, 0.0]]))
        assert got.tolist() == [[1, 0, -1, 1], [0, 1, 0, 0], [-1, 0, 1, -1], [1, 0, -1, 1]]

    def test_nothing_leaves_the_range(self) -> None:
        """Rounding takes parallel rows' cosines above 1; acos of that would be NaN."""
        a = rows(200, 37, torch.float32, 0)
        b = a * torch.linspace(0.1, 3, 200)[:, None]
        got = ops.pairwise_cosine(a, b)
        assert got.max() <= 1
        assert not got.acos().isnan().any()

    def test_no_columns(self) -> None:
        assert torch.equal(ops.pairwise_cosine(torch.empty(3, 0)), torch.zeros(3, 3))
        assert ops.pairwise_cosine(torch.empty(0, 4), torch.empty(2, 4)).shape == (0, 2)


class TestBits:
    """What must not change a result."""

    def test_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b = rows(300, 700, torch.float32, 0), rows(290, 700, torch.float32, 1)
        before = torch.get_num_threads()
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            try:
                found.append((ops.pairwise_cosine(a), ops.pairwise_cosine(a, b)))
            finally:
                torch.set_num_threads(before)
            monkeypatch.setenv("BRITTLE_NUM_THREADS", str(threads))
            door = brittle.numpy.pairwise_cosine
            found.append((tensor(door(array(a))), tensor(door(array(a), array(b)))))
        for alone, both in found[1:]:
            assert_same_bits(alone, found[0][0])
            assert_same_bits(both, found[0][1])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_other_rows(self, dtype: torch.dtype) -> None:
        a = rows(150, 600, dtype, 0)
        whole = ops.pairwise_cosine(a, a.clone())
        part, other = torch.arange(3, 150, 7), torch.arange(0, 150, 5)
        assert_same_bits(ops.pairwise_cosine(a[part], a[other]), whole[part][:, other])
        symmetric = ops.pairwise_cosine(a)
        assert_same_bits(symmetric.fill_diagonal_(0), whole.fill_diagonal_(0))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @given(st.data())
    def test_strides(self, dtype: torch.dtype, data: Any) -> None:
        a = rows(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 150)), dtype, 0)
        expected = ops.pairwise_cosine(a)
        for name, same in layouts(a).items():
            assert_same_bits(ops.pairwise_cosine(same), expected), name

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_numpy_door(self, dtype: torch.dtype) -> None:
        a, b = rows(70, 90, dtype, 0), rows(40, 90, dtype, 1)
        assert_same_bits(tensor(brittle.numpy.pairwise_cosine(array(a), array(b))), ops.pairwise_cosine(a, b))
        assert_same_bits(tensor(brittle.numpy.pairwise_cosine(array(a))), ops.pairwise_cosine(a))
        out = np.empty((40, 70), array(ops.pairwise_cosine(a)).dtype).T
        assert brittle.numpy.pairwise_cosine(array(a), array(b), out) is out
        assert_same_bits(tensor(out), ops.pairwise_cosine(a, b))
        for got, want in zip(
            brittle.numpy.pairwise_cosine_topk(array(a), array(b), 5),
            ops.pairwise_cosine_topk(a, b, 5),
            strict=True,
        ):
            assert np.array_equal(got, want.numpy())

    def test_b_may_be_a(self) -> None:
        a = rows(20, 30, torch.float32, 0)
        assert_same_bits(ops.pairwise_cosine(a, a), ops.pairwise_cosine(a))
        assert torch.equal(ops.pairwise_cosine_topk(a, a, 3)[1], ops.pairwise_cosine_topk(a, k=3)[1])


class TestOut:
    @pytest.mark.parametrize("d", [1, 3000])  # one superblock, and several that are added up
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_any_strides(self, d: int, symmetric: bool) -> None:
        a = rows(37, d, torch.float32, 0)
        b = None if symmetric else rows(50, d, torch.float32, 1)
        expected = ops.pairwise_cosine(a, b)
        for out in layouts(torch.full_like(expected, math.nan)).values():
            assert ops.pairwise_cosine(a, b, out) is out
            assert_same_bits(out, expected)

    def test_writes_nothing_else(self) -> None:
        a = rows(21, 40, torch.float32, 0)
        field = torch.full((30, 40), 7.0)
        ops.pairwise_cosine(a, out=field[4:25, 9:30])
        assert_same_bits(field[4:25, 9:30].contiguous(), ops.pairwise_cosine(a))
        field[4:25, 9:30] = 7
        assert (field == 7).all()


class TestPeers:
    @pytest.mark.parametrize("shape", [(50, 7), (130, 300)])
    def test_scikit_learn_and_torchmetrics(self, shape: tuple[int, int]) -> None:
        from sklearn.metrics.pairwise import cosine_similarity
        from torchmetrics.functional import pairwise_cosine_similarity

        a, b = rows(*shape, torch.float32, 0), rows(40, shape[1], torch.float32, 1)
        got = ops.pairwise_cosine(a, b)
        # Ours is near the definition everywhere; theirs, as near as a sum of D rounded products of unit rows
        # comes on any processor: which order their libraries add in differs from one to another.
        exact = functional.normalize(a.double()) @ functional.normalize(b.double()).T
        assert (got - exact).abs().max() <= 3e-7
        theirs = (shape[1] + 4) * torch.finfo(torch.float32).eps
        assert np.abs(got.numpy() - cosine_similarity(a.numpy(), b.numpy())).max() <= theirs
        assert (got - pairwise_cosine_similarity(a, b)).abs().max() <= theirs
        alone = pairwise_cosine_similarity(a, zero_diagonal=False)
        assert (ops.pairwise_cosine(a) - alone).abs().max() <= theirs
        assert (ops.pairwise_cosine(a).diagonal() == 1).all()

    def test_torchmetrics_gives_nan_where_a_row_is_zero(self) -> None:
        """The trap that ours avoids; if this fails, they have mended it."""
        from torchmetrics.functional import pairwise_cosine_similarity

        a = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
        assert pairwise_cosine_similarity(a, zero_diagonal=False)[1].isnan().all()
        assert not ops.pairwise_cosine(a).isnan().any()


class TestBackward:
    def test_gradcheck(self) -> None:
        a = rows(4, 3, torch.float64, 0).requires_grad_()
        b = rows(5, 3, torch.float64, 1).requires_grad_()
        assert torch.autograd.gradcheck(ops.pairwise_cosine, (a, b))
        assert torch.autograd.gradcheck(ops.pairwise_cosine, (a,))
        assert torch.autograd.gradgradcheck(ops.pairwise_cosine, (a, b))
        assert torch.autograd.gradgradcheck(ops.pairwise_cosine, (a,))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_as_a_loss(self, dtype: torch.dtype) -> None:
        a, b = rows(20, 30, dtype, 0), rows(9, 30, dtype, 1)
        weights = torch.rand(20, 9)
        ours = [x.clone().requires_grad_() for x in (a, b)]
        (ops.pairwise_cosine(*ours) * weights).sum().backward()
        theirs = [x.double().requires_grad_() for x in (a, b)]
        cosines = functional.normalize(theirs[0]) @ functional.normalize(theirs[1]).T
        (cosines * weights).sum().backward()
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.grad is not None
            assert mine.grad.dtype == dtype
            tolerance = 1e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
            assert torch.allclose(mine.grad.double(), other.grad, rtol=tolerance, atol=tolerance)

    def test_only_what_is_asked_for(self) -> None:
        a, b = rows(3, 4, torch.float32, 0), rows(2, 4, torch.float32, 1).requires_grad_()
        ops.pairwise_cosine(a, b).sum().backward()
        assert a.grad is None
        assert b.grad is not None

    def test_the_diagonal_pulls_at_nothing(self) -> None:
        a = rows(6, 5, torch.float64, 0).requires_grad_()
        ops.pairwise_cosine(a).diagonal().sum().backward()
        assert a.grad is not None
        assert (a.grad == 0).all()

    @pytest.mark.parametrize("scale", [1e-20, 1e-30, 1.0, 1e20, 1e30])
    def test_rows_of_every_length(self, scale: float) -> None:
        a, b = rows(5, 8, torch.float32, 0), rows(4, 8, torch.float32, 1)
        weights = torch.rand(5, 4)

        def gradient(x: Tensor) -> Tensor:
            x = x.requires_grad_()
            (found,) = torch.autograd.grad((ops.pairwise_cosine(x, b) * weights).sum(), x)
            return found

        expected = gradient(a.double().float())
        assert torch.allclose(gradient(a * scale) * scale, expected, rtol=1e-5, atol=1e-6)

    def test_zero_and_subnormal_rows_give_finite_gradients(self) -> None:
        a = rows(4, 6, torch.float32, 0)
        a[1], a[2] = 0, 1e-45
        a.requires_grad_()
        ops.pairwise_cosine(a).sum().backward()
        assert a.grad is not None
        assert a.grad.isfinite().all()
        assert (a.grad[1] == 0).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_lost_row_spoils_no_other_gradient(self, value: float) -> None:
        a = rows(5, 6, torch.float64, 0)
        kept = [0, 1, 3, 4]
        alone = a[kept].requires_grad_()
        ops.pairwise_cosine(alone).sum().backward()
        a[2, 3] = value
        a.requires_grad_()
        ops.pairwise_cosine(a)[kept][:, kept].sum().backward()
        assert a.grad is not None
        assert alone.grad is not None
        assert torch.allclose(a.grad[kept], alone.grad, rtol=1e-12)
        assert (a.grad[2] == 0).all()

    def test_no_columns(self) -> None:
        a = torch.empty(3, 0, requires_grad=True)
        ops.pairwise_cosine(a).sum().backward()
        assert a.grad is not None
        assert a.grad.shape == (3, 0)


class TestTorch:
    def test_opcheck(self) -> None:
        for dtype in DTYPES:
            a, b = rows(5, 7, dtype, 0), rows(3, 7, dtype, 1)
            grad = a.clone().requires_grad_(), b.clone().requires_grad_()
            torch.library.opcheck(torch.ops.brittle.pairwise_cosine.default, grad)
            torch.library.opcheck(torch.ops.brittle.pairwise_cosine.default, grad[:1])
            out = ops.pairwise_cosine(a, b)
            torch.library.opcheck(torch.ops.brittle.pairwise_cosine_out.default, (a, b, out))
            torch.library.opcheck(torch.ops.brittle.pairwise_cosine_topk.default, (a, b, 2))

    def test_compile_fullgraph_with_gradients(self) -> None:
        def loss(a: Tensor, b: Tensor) -> Tensor:
            return ops.pairwise_cosine(a, b).square().sum() + ops.pairwise_cosine(a).sum()

        a, b = rows(5, 7, torch.float32, 0).requires_grad_(), rows(3, 7, torch.float32, 1)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (expected,) = torch.autograd.grad(loss(a, b), a)
        (got,) = torch.autograd.grad(compiled(a, b), a)
        assert torch.allclose(got, expected, atol=1e-6)

    def test_autograd_sees_that_out_was_written(self) -> None:
        a, out = rows(3, 4, torch.float32, 0), torch.empty(3, 3)
        weight = torch.ones(3, 3, requires_grad=True)
        product = weight * out
        ops.pairwise_cosine(a, out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


class TestTopk:
    """Against a stable sort of the whole matrix, whose bits are the same."""

    @staticmethod
    def expected(a: Tensor, b: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        cosines = ops.pairwise_cosine(a, b)
        if b is None:
            cosines.fill_diagonal_(math.nan)
        values, indices = cosines.nan_to_num(-math.inf).sort(dim=1, descending=True, stable=True)
        values, indices = values[:, :k], indices[:, :k]
        missing = values == -math.inf
        return values.masked_fill(missing, math.nan), indices.masked_fill(missing, -1)

    def check(self, a: Tensor, b: Tensor | None, k: int) -> None:
        got, want = ops.pairwise_cosine_topk(a, b, k), self.expected(a, b, k)
        assert_same_bits(got[0], want[0])
        assert torch.equal(got[1], want[1])

    @given(matrices(), st.data())
    def test_the_whole_matrix_sorted(self, pair: tuple[Tensor, Tensor], data: Any) -> None:
        a, b = pair
        self.check(a, b, data.draw(st.integers(0, len(b))))
        self.check(a, None, data.draw(st.integers(0, max(0, len(a) - 1))))

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_ties_go_to_the_lower_index(self, symmetric: bool, simd_level: str) -> None:
        a = torch.randint(-1, 2, (300, 3), generator=torch.Generator().manual_seed(0)).float()
        self.check(a, None if symmetric else a[:200].clone(), 90)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    def test_more_rows_than_a_square_holds(self, dtype: torch.dtype) -> None:
        a, b = rows(2300, 4, dtype, 0), rows(4100, 4, dtype, 1)
        a[2100] = math.nan
        self.check(a, None, 3)
        self.check(a, b, 3)
        self.check(b, a, 40)

    def test_deep_rows_are_taken_in_smaller_squares(self) -> None:
        a = rows(300, 40_000, torch.float32, 0)
        self.check(a, None, 2)

    def test_the_definition(self) -> None:
        a, b = rows(30, 50, torch.float64, 0), rows(40, 50, torch.float64, 1)
        a[4], b[7, 3] = 0, math.nan
        for other in (b, None):
            values, indices = ops.pairwise_cosine_topk(a, other, 6)
            expected, whose = reference.pairwise_cosine_topk(a, other, 6)
            assert_close(values, expected, torch.float64)
            assert torch.equal(indices[torch.arange(30) != 4], whose[torch.arange(30) != 4])
            assert (values[4] == 0).all()

    def test_nobody_to_be_a_neighbour(self) -> None:
        a = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [1.0, 1.0]])
        values, indices = ops.pairwise_cosine_topk(a, k=2)
        assert indices.tolist() == [[2, -1], [-1, -1], [0, -1]]
        assert values.isnan().tolist() == [[False, True], [True, True], [False, True]]

    def test_threads(self) -> None:
        a = rows(700, 20, torch.float32, 0)
        before = torch.get_num_threads()
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            try:
                found.append(ops.pairwise_cosine_topk(a, k=9))
            finally:
                torch.set_num_threads(before)
        assert_same_bits(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

    def test_memory_is_bounded(self) -> None:
        """Of 20,000 rows and as many others the matrix would take 1.6 GB."""
        # VmHWM, not getrusage, whose peak is inherited from the process that starts this one.
        code = """
import re, torch
from brittle import ops
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
a, b = torch.randn(20000, 8), torch.randn(20000, 8)
ops.pairwise_cosine_topk(a[:100], b[:100], 4)
before = peak()
ops.pairwise_cosine_topk(a, b, 4)
ops.pairwise_cosine_topk(a, k=4)
print(peak() - before)
"""
        printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert 10 < float(printed.stdout) < 100, "megabytes"


A = torch.ones(3, 5)
ERRORS = [
    ("pairwise_cosine", {"a": torch.ones(3)}, r"a must be \[N, D\]; got shape \[3\]"),
    ("pairwise_cosine", {"a": torch.ones(3, 2, 2)}, r"a must be \[N, D\]; got shape \[3, 2, 2\]"),
    ("pairwise_cosine", {"a": A.long()}, "a must be float32, float64, float16 or bfloat16; got int64"),
    ("pairwise_cosine", {"b": torch.ones(4)}, r"b must be \[M, D\]; got shape \[4\]"),
    ("pairwise_cosine", {"b": A.double()}, "b must have a's dtype float32; got float64"),
    ("pairwise_cosine", {"b": torch.ones(4, 6)}, r"b must have a's 5 columns; got shape \[4, 6\]"),
    ("pairwise_cosine", {"out": torch.ones(4, 3)}, r"out must have shape \[3, 3\]; got \[4, 3\]"),
    ("pairwise_cosine", {"out": torch.ones(3, 3, dtype=torch.float64)}, "out must be float32; got float64"),
    ("pairwise_cosine", {"out": torch.ones(1).expand(3, 3)}, "out must not be expanded"),
    ("pairwise_cosine_topk", {"k": 3}, r"k must be in \[0, 2\], the number of other rows; got 3"),
    ("pairwise_cosine_topk", {"k": -1}, r"k must be in \[0, 2\], the number of other rows; got -1"),
    (
        "pairwise_cosine_topk",
        {"b": torch.ones(4, 5), "k": 5},
        r"k must be in \[0, 4\], the number of rows of b",
    ),
    ("pairwise_cosine_topk", {"b": torch.ones(4, 6)}, r"b must have a's 5 columns; got shape \[4, 6\]"),
    ("pairwise_cosine_topk", {"a": A.int()}, "a must be float32, .*; got int32"),
]


@pytest.mark.parametrize(("op", "changes", "message"), ERRORS)
def test_bad_input(op: str, changes: dict[str, Any], message: str) -> None:
    arguments = {"a": A, **changes}
    with pytest.raises(ValueError, match=f"{op}: {message}"):
        getattr(ops, op)(**arguments)
    if "expanded" in message:
        message = "out must be writable"  # NumPy marks such arrays read-only itself
    arrays = {
        name: np.broadcast_to(array(value.contiguous()[:1, :1]), value.shape)
        if isinstance(value, Tensor) and 0 in value.stride()
        else array(value)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }
    with pytest.raises(ValueError, match=f"{op}: {message}"):
        getattr(brittle.numpy, op)(**arrays)


def test_out_must_lie_apart_from_what_is_read() -> None:
    a, b = torch.rand(5, 5), torch.rand(5, 5)
    with pytest.raises(ValueError, match="pairwise_cosine: out must not share memory with a"):
        ops.pairwise_cosine(a, out=a)
    with pytest.raises(ValueError, match="pairwise_cosine: out must not share memory with b"):
        ops.pairwise_cosine(a, b, out=b)
    field = torch.rand(10, 5)
    ops.pairwise_cosine(field[:5], out=field[5:])
