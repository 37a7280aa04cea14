"""l1_step_ against its definition, at every SIMD level and every door, and against an oracle that sorts."""

import math
from dataclasses import dataclass, replace

import brittle.numpy
import emulated_cuda
import numpy as np
import pytest
import torch
from brittle import ops, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    DTYPES,
    StepSample,
    array,
    assert_same_bits,
    gradients,
    images,
    step_samples,
)
from torch import Tensor

LEVELS = ["baseline", "v3", "v4"]


def supported_levels() -> list[str]:
    return LEVELS[: LEVELS.index(brittle.numpy.build_facts()["simd_best"]) + 1]


@dataclass(frozen=True)
class L1Sample(StepSample):
    k: float | Tensor

    def call(self, adv: Tensor, trace: Tensor | None = None) -> Tensor:
        return ops.l1_step_(
            adv, self.grad, self.clean, self.step_size, self.eps, self.k, self.bounds, trace=trace
        )

    def reference(self, trace: Tensor | None = None) -> Tensor:
        return reference.l1_step_(
            self.adv.clone(),
            self.grad,
            self.clean,
            self.step_size,
            self.eps,
            self.k,
            self.bounds,
            trace=trace,
        )


@st.composite
def l1_samples(draw: st.DrawFn) -> L1Sample:
    sample = draw(step_samples())
    rows = len(sample.adv)
    elements = sample.adv[:1].numel()
    # A ball that the start is in, one that it is not, and degenerate ones.
    scale = draw(st.sampled_from([1.0, 1.0, elements / 8, elements]))
    radius = draw(st.sampled_from([None, None, None, 0.0, 1e-9, 1e-40, 5e-324, math.inf]))
    count = st.one_of(st.integers(1, 12), st.sampled_from([1.5, 1e9, math.inf]))
    k: float | Tensor = draw(count)
    if draw(st.booleans()):
        k = torch.tensor([draw(count) for _ in range(rows)], dtype=torch.float64)
    start = sample.adv
    if draw(st.booleans()):  # near clean, as in an attack
        nearer = sample.clean + (sample.adv - sample.clean) / 64
        start = layouts_like(sample.adv).copy_(nearer)
    return L1Sample(
        start,
        sample.grad,
        sample.clean,
        sample.step_size * scale,
        sample.eps * scale if radius is None else radius,
        sample.bounds,
        k,
    )


def layouts_like(x: Tensor) -> Tensor:
    """A copy of x with x's strides, gaps included, so that in-place work on strides is exercised."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    copy = torch.full((span,), float("nan"), dtype=x.dtype).as_strided(x.shape, x.stride())
    return copy.copy_(x)


def rows_of(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).expand(len(like))


def distances(adv: Tensor, clean: Tensor) -> Tensor:
    """L1 distances as an evaluator recomputes them: in float32, or in float64 for float64."""
    wide = torch.float64 if adv.dtype == torch.float64 else torch.float32
    return (adv.to(wide) - clean.to(wide)).abs().flatten(1).sum(1).double()


def assert_in_ball(adv: Tensor, clean: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> None:
    assert not adv.isnan().any()
    if adv.numel():
        assert (distances(adv.reshape(len(adv), -1), clean.reshape(len(adv), -1)) <= rows_of(eps, adv)).all()
    lo, hi = (torch.tensor(b, dtype=adv.dtype) for b in bounds)
    assert (adv >= lo).all()
    assert (adv <= hi).all()


def nearest(wanted: Tensor, clean: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    """The exact projection of a float64 row, from the sorted ends of the sum's linear pieces."""
    way = wanted - clean
    room = torch.where(way < 0, clean - bounds[0], bounds[1] - clean)

    def kept(shrink: Tensor) -> Tensor:
        return torch.minimum((way.abs() - shrink).clamp(min=0), room)

    zero = torch.zeros((), dtype=torch.float64)
    if kept(zero).sum() <= eps:
        return clean + kept(zero) * way.sign()
    ends = torch.cat([zero[None], way.abs(), (way.abs() - room).clamp(min=0)]).unique()
    sums = torch.stack([kept(end).sum() for end in ends])
    left = int((sums > eps).sum()) - 1  # sums fall
    part = (sums[left] - eps) / (sums[left] - sums[left + 1])
    return clean + kept(ends[left] + part * (ends[left + 1] - ends[left])) * way.sign()


class TestAgainstReference:
    @given(sample=l1_samples())
    @settings(max_examples=150)
    def test_the_same_bits_at_every_level(self, sample: L1Sample) -> None:
        expected_trace = torch.full((len(sample.adv), 3), -7)
        expected = sample.reference(expected_trace)
        for level in supported_levels():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BRITTLE_SIMD", level)
                adv, trace = layouts_like(sample.adv), torch.full((len(sample.adv), 3), -7)
                sample.call(adv, trace)
                assert_same_bits(adv, expected)
                assert torch.equal(trace, expected_trace)
                assert_same_bits(sample.call(layouts_like(sample.adv)), expected)

    @given(sample=l1_samples())
    @settings(max_examples=200)
    def test_in_ball_and_bounds_and_projected_once_for_all(self, sample: L1Sample) -> None:
        adv = sample.call(sample.adv.clone())
        assert_in_ball(adv, sample.clean, sample.eps, sample.bounds)
        again = replace(sample, step_size=0.0).call(adv.clone())
        assert_same_bits(again, adv)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_long_rows_on_several_threads(self, dtype: torch.dtype) -> None:
        shape = (5, 3, 71, 131)  # 27 tiles and a part
        clean, grad = images(shape, dtype, (0, 1), 1), gradients(shape, dtype, 3)
        adv = (clean + 0.01 * torch.randn(shape)).to(dtype)
        eps = torch.tensor([0.0, 1.0, 30.0, 700.0, math.inf], dtype=torch.float64)
        k = torch.tensor([1, 30, 1000, 20000, 1e6], dtype=torch.float64)
        expected = reference.l1_step_(adv.clone(), grad, clean, 12.0, eps, k)
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert_same_bits(ops.l1_step_(adv.clone(), grad, clean, 12.0, eps, k), expected)
        finally:
            torch.set_num_threads(threads)

    @given(
        dtype=st.sampled_from(DTYPES),
        count=st.sampled_from([1, 2, 7, 40]),
        sizes=st.tuples(*[st.integers(-60, 60)] * 4),
        seed=st.integers(0, 1000),
    )
    @settings(max_examples=150)
    def test_the_search_ends_whatever_the_sizes(
        self, dtype: torch.dtype, count: int, sizes: tuple[int, int, int, int], seed: int
    ) -> None:
        """Ways, rooms, steps and radii many orders of magnitude apart, up to overflow."""
        least, most = (math.log10(f) for f in (torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max))
        exponents = [min(max(size / 60 * most, least), most - 0.1) for size in sizes]
        random = torch.Generator().manual_seed(seed)
        spread = 10 ** (torch.rand(2, count, generator=random, dtype=torch.float64) * 6 - 6)
        adv = (torch.randn(2, count, generator=random).sign() * spread * 10 ** exponents[0]).to(dtype)
        width = float(torch.tensor(10 ** exponents[1], dtype=dtype))
        bounds = (-width, width)
        clean = (torch.rand(2, count, generator=random, dtype=torch.float64) * width).to(dtype)
        grad = torch.randn(2, count, generator=random).to(dtype)
        sample = L1Sample(adv, grad, clean, 10 ** exponents[2], 10 ** exponents[3], bounds, count // 2 + 1)
        result = sample.call(adv.clone())
        assert_same_bits(result, sample.reference())
        assert_in_ball(result, clean, sample.eps, bounds)


class TestDoors:
    @given(sample=l1_samples())
    @settings(max_examples=40)
    def test_numpy_and_emulated_cuda_give_the_bits_of_torch(self, sample: L1Sample) -> None:
        values = [sample.step_size, sample.eps, sample.k]
        numbers = [v.numpy() if isinstance(v, Tensor) else v for v in values]
        traces = [torch.full((len(sample.adv), 3), -7) for _ in range(3)]
        expected = sample.call(sample.adv.clone(), traces[0])
        operands = [array(t) for t in (sample.grad, sample.clean)]
        adv = layouts_like(sample.adv)
        brittle.numpy.l1_step_(array(adv), *operands, *numbers, sample.bounds, trace=traces[1].numpy())
        assert_same_bits(adv, expected)
        rows = numbers
        if any(isinstance(v, Tensor) for v in values):
            rows = [np.broadcast_to(n, sample.adv.shape[:1]).astype(np.float64) for n in numbers]
        adv = layouts_like(sample.adv)
        emulated_cuda.l1_step_(array(adv), *operands, *rows, *sample.bounds, traces[2].numpy())
        assert_same_bits(adv, expected)
        assert torch.equal(traces[1], traces[0])
        assert torch.equal(traces[2], traces[0])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("count", [1, 3, 4, 5, 1023, 1025, 4096, 4097, 6001])
    def test_emulated_rows_in_registers_and_in_memory(self, count: int, dtype: torch.dtype) -> None:
        rows = 18 if count < 5 else 2  # more rows than the grid has blocks
        for offset in (0, 3):
            shape = (rows, count)
            clean, grad = images(shape, dtype, (0, 1), count), gradients(shape, dtype, count)
            adv = torch.empty(rows * count + offset, dtype=dtype)[offset:].view(shape).copy_(clean)
            eps, k = 0.02 * count + 0.1, count // 10 + 1
            trace, expected_trace = torch.full((rows, 3), -7), torch.empty(rows, 3, dtype=torch.int64)
            step = 0.05 * count
            expected = reference.l1_step_(adv.clone(), grad, clean, step, eps, k, trace=expected_trace)
            emulated_cuda.l1_step_(
                array(adv), array(grad), array(clean), step, eps, float(k), 0.0, 1.0, trace.numpy()
            )
            assert_same_bits(adv, expected)
            assert torch.equal(trace, expected_trace)

    @pytest.mark.parametrize("layout", ["gaps", "columns"])
    def test_long_strided_rows(self, layout: str) -> None:
        clean, grad = images((2, 5003), torch.float32, (0, 1), 0), gradients((2, 5003), torch.float32, 0)
        memory = torch.zeros(2, 5003, 2) if layout == "gaps" else torch.zeros(5003, 2, 2).transpose(0, 1)
        adv = memory[..., 0].copy_(clean)
        expected = reference.l1_step_(adv.clone(), grad, clean, 60.0, 40.0, 700)
        emulated = layouts_like(adv)
        emulated_cuda.l1_step_(array(emulated), array(grad), array(clean), 60.0, 40.0, 700.0, 0.0, 1.0)
        assert_same_bits(emulated, expected)
        assert_same_bits(ops.l1_step_(adv, grad, clean, 60.0, 40.0, 700), expected)

    def test_negative_strides(self) -> None:
        clean, grad = images((2, 5003), torch.float32, (0, 1), 0), gradients((2, 5003), torch.float32, 0)
        expected = reference.l1_step_(clean.clone(), grad, clean, 60.0, 40.0, 700)
        adv = np.ascontiguousarray(clean.numpy()[::-1, ::-1])[::-1, ::-1]
        brittle.numpy.l1_step_(adv, grad.numpy(), clean.numpy(), 60.0, 40.0, 700)
        assert_same_bits(torch.from_numpy(adv.copy()), expected)


class TestProjection:
    @given(
        count=st.sampled_from([1, 2, 3, 17, 200, 1500]),
        scale=st.sampled_from([1e-3, 0.3, 1.0, 20.0]),
        eps=st.floats(1e-3, 200),
        bounds=st.sampled_from([(0.0, 1.0), (-1.0, 255.0), (-math.inf, math.inf)]),
        seed=st.integers(0, 2**31),
    )
    @settings(max_examples=150)
    def test_is_the_nearest_point(
        self, count: int, scale: float, eps: float, bounds: tuple[float, float], seed: int
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(3, count, generator=random, dtype=torch.float64)  # noqa: E731
        clean = draw().sigmoid()
        clean[:, ::5] = 0.0
        clean[:, 1::5] = 1.0  # at the bounds
        wanted = clean + scale * draw() * (torch.rand(3, count, generator=random) < 0.7)
        wanted[:, 2::7] = clean[:, 2::7] + scale  # ties
        expected = torch.stack([nearest(w, c, eps, bounds) for w, c in zip(wanted, clean, strict=True)])
        zero = torch.zeros_like(wanted)
        got = ops.l1_step_(wanted.clone(), zero, clean, 0.0, eps, 1, bounds)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * max(eps, scale))
        single = ops.l1_step_(wanted.float(), zero.float(), clean.float(), 0.0, eps, 1, bounds)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=2.0**-17 * (eps + scale + 1))
        # The variational inequality of a nearest point, against feasible points of another origin.
        other = torch.stack([nearest(w, c, eps, bounds) for w, c in zip(clean + draw(), clean, strict=True)])
        products = ((wanted - got) * (other - got)).sum(1)
        assert (products <= 1e-9 * (1 + scale) * eps * (1 + scale)).all()

    @pytest.mark.parametrize(("count", "k"), [(3072, 30), (150528, 1500), (150528, 150528)])
    def test_the_radius_is_used_up(self, count: int, k: int) -> None:
        clean, grad = torch.rand(3, count), torch.randn(3, count)
        adv = clean.clone()
        for _ in range(8):
            ops.l1_step_(adv, grad + torch.randn(3, count), clean, 3.0, 12.0, k)
        assert_in_ball(adv, clean, 12.0, (0, 1))
        spent = (adv.double() - clean.double()).abs().sum(1)
        assert (spent <= 12.0).all()
        # What is left: the radius's margin, and one last place of each element near 1.
        assert (spent >= 12.0 * (1 - 2.0**-17) - (adv != clean).sum(1) * 2.0**-24).all()

    def test_an_inside_point_keeps_its_bits(self) -> None:
        clean = torch.tensor([[1.0, -0.0, 0.3, 1e-30]])
        adv = torch.tensor([[1e-8, -0.0, 0.29999998, 0.0]])
        assert_same_bits(ops.l1_step_(adv.clone(), adv.clone(), clean, 0.0, 5.0, 2), adv)

    def test_an_element_reaches_its_bound_exactly(self) -> None:
        """Where the box is tighter than the shrinking, the bound's own bits come out."""
        clean = torch.tensor([[0.7, 0.2, 0.5]])
        adv = torch.tensor([[90.0, -90.0, 0.5]])
        out = ops.l1_step_(adv, torch.zeros(1, 3), clean, 0.0, 0.50001, 1)
        assert out.tolist() == [[1.0, 0.0, 0.5]]


class TestMeaning:
    def test_the_step_is_shared_by_the_k_largest(self, device: torch.device) -> None:
        clean = torch.full((4, 6), 0.5, device=device)
        grad = torch.tensor([0.1, -5.0, 2.0, 0.0, -3.0, 0.2], device=device).expand(4, 6)
        k = torch.tensor([1, 2, 3, 100], device=device)
        moved = ops.l1_step_(clean.clone(), grad, clean, 0.5, 10.0, k) - clean
        assert moved.cpu().tolist() == [
            [0, -0.5, 0, 0, 0, 0],
            [0, -0.25, 0, 0, -0.25, 0],
            [0, pytest.approx(-1 / 6), pytest.approx(1 / 6), 0, pytest.approx(-1 / 6), 0],
            [pytest.approx(x) for x in (0.1, -0.1, 0.1, 0, -0.1, 0.1)],
        ]

    def test_elements_at_the_bound_they_would_leave_are_passed_over(self) -> None:
        clean = torch.tensor([[1.0, 0.0, 0.5, 0.5, 1.0]])
        grad = torch.tensor([[9.0, -8.0, 1.0, 2.0, -3.0]])
        adv = ops.l1_step_(clean.clone(), grad, clean, step_size=0.25, eps=1.0, k=2)
        assert adv.tolist() == [[1.0, 0.0, 0.5, 0.625, 0.875]]
        everything = ops.l1_step_(clean.clone(), grad, clean, step_size=0.75, eps=3.0, k=5)
        assert everything.tolist() == [[1.0, 0.0, 0.75, 0.75, 0.75]]

    def test_ties_move_together(self) -> None:
        clean = torch.full((1, 5), 0.5)
        grad = torch.tensor([[1.0, -1.0, 2.0, 1.0, 0.5]])
        moved = ops.l1_step_(clean.clone(), grad, clean, 0.5, 10.0, 2) - clean
        assert moved.tolist() == [[0.125, -0.125, 0.125, 0.125, 0.0]]
        all_equal = ops.l1_step_(clean.clone(), torch.ones(1, 5), clean, 0.625, 10.0, 1)
        assert all_equal.tolist() == [[0.625] * 5]

    @pytest.mark.parametrize("k", [1, 3, 100])
    def test_non_finite_and_zero_gradients_do_not_move(self, k: int, device: torch.device) -> None:
        grad = torch.tensor([[0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45]], device=device)
        clean = torch.full_like(grad, 0.5)
        moved = ops.l1_step_(clean.clone(), grad, clean, 0.5, 4.0, k)
        assert moved.tolist() == [[0.5, 0.5, 0.5, 0.5, 0.5, 0.75, 0.25]]
        for nothing in (grad[:, :2], grad[:, 2:5]):
            still = ops.l1_step_(clean[:, :2].clone(), nothing[:, :2], clean[:, :2], 0.5, 4.0, k)
            assert still.tolist() == [[0.5, 0.5]]

    def test_nan_and_infinity_in_one_row_stay_there(self) -> None:
        clean, grad = torch.rand(3, 50), torch.randn(3, 50)
        adv = clean.clone()
        expected = ops.l1_step_(adv.clone(), grad, clean, 1.0, 0.5, 5)
        adv[1, 7] = math.nan
        out = ops.l1_step_(adv.clone(), grad, clean, 1.0, 0.5, 5)
        assert out.isnan().nonzero().tolist() == [[1, 7]]
        assert_same_bits(out[[0, 2]], expected[[0, 2]])
        adv[1, 7] = math.inf
        out = ops.l1_step_(adv.clone(), grad, clean, 1.0, 0.5, 5)
        assert_in_ball(out, clean, 0.5, (0, 1))
        assert_same_bits(out[[0, 2]], expected[[0, 2]])

    def test_a_linear_function_is_maximised(self) -> None:
        """By Hoelder's inequality the most that w x can grow in the ball is eps max |w|."""
        w = torch.randn(1, 100, dtype=torch.float64)
        clean, adv = torch.zeros_like(w), torch.zeros_like(w)
        for _ in range(7):
            ops.l1_step_(adv, w, clean, 0.7, 3.0, 1, (-math.inf, math.inf))
        assert (w * adv).sum().item() == pytest.approx(3.0 * w.abs().max().item(), rel=1e-11)
        # With a box, the one element stops at its bound and the next one takes what is left of the ball.
        adv.zero_()
        for _ in range(30):
            ops.l1_step_(adv, w, clean, 0.7, 3.0, 1, (-2.0, 2.0))
        first, second = w.abs().flatten().topk(2).values.tolist()
        assert (w * adv).sum().item() == pytest.approx(2.0 * first + 1.0 * second, rel=1e-11)

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        clean, grad = torch.rand(7, 3, 5, 5), torch.randn(7, 3, 5, 5)
        eps, k = torch.rand(7, dtype=torch.float64), torch.arange(1, 8)
        out = ops.l1_step_(clean.clone(), grad, clean, 0.9, eps, k)
        order = torch.tensor([4, 0, 6])
        alone = ops.l1_step_(clean[order], grad[order], clean[order], 0.9, eps[order], k[order])
        assert_same_bits(alone, out[order])

    def test_clean_may_be_adv_itself(self) -> None:
        x, grad = torch.rand(3, 1000), torch.randn(3, 1000)
        expected = ops.l1_step_(x.clone(), grad, x, 3.0, 2.0, 10)
        same = x.clone()
        assert_same_bits(ops.l1_step_(same, grad, same, 3.0, 2.0, 10), expected)
        emulated = x.clone()
        emulated_cuda.l1_step_(emulated.numpy(), grad.numpy(), emulated.numpy(), 3.0, 2.0, 10.0, 0.0, 1.0)
        assert_same_bits(emulated, expected)

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)])
    def test_empty(self, shape: tuple[int, ...], device: torch.device) -> None:
        x = torch.empty(shape, device=device)
        trace = torch.full((shape[0], 3), -7, device=device)
        assert ops.l1_step_(x, x.clone(), x.clone(), 0.1, 0.1, 1, trace=trace).shape == shape
        assert not trace.any()
        emulated_trace = np.full((shape[0], 3), -7)
        empty = np.empty(shape, np.float32)
        emulated_cuda.l1_step_(empty, empty, empty, 0.1, 0.1, 1.0, 0.0, 1.0, emulated_trace)
        assert not emulated_trace.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnTheGpu:
    @given(sample=l1_samples())
    def test_step(self, sample: L1Sample) -> None:
        expected_trace = torch.empty(len(sample.adv), 3, dtype=torch.int64)
        expected = sample.call(sample.adv.clone(memory_format=torch.preserve_format), expected_trace)
        trace = torch.full((len(sample.adv), 3), -7, device="cuda")
        moved = [t.cuda() if isinstance(t, Tensor) else t for t in vars(sample).values()]
        adv = L1Sample(*moved).call(sample.adv.cuda(), trace)
        assert_same_bits(adv.cpu(), expected)
        assert torch.equal(trace.cpu(), expected_trace)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("count", [3072, 4096, 4097, 150528])
    def test_images(self, dtype: torch.dtype, count: int) -> None:
        shape = (33, count)
        clean, grad = images(shape, dtype, (0, 1), 1), gradients(shape, dtype, 3)
        expected, adv = clean.clone(), clean.cuda()
        for _ in range(3):
            ops.l1_step_(expected, grad, clean, 4.0, 12.0, count // 100)
            ops.l1_step_(adv, grad.cuda(), clean.cuda(), 4.0, 12.0, count // 100)
        assert_same_bits(adv.cpu(), expected)

    def test_in_a_cuda_graph(self) -> None:
        clean, grad = torch.rand(5, 1000, device="cuda"), torch.randn(5, 1000, device="cuda")
        adv, trace = clean.clone(), torch.zeros(5, 3, dtype=torch.int64, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.l1_step_(adv, grad, clean, 1.0, 2.0, 10, trace=trace)
        adv.copy_(clean)
        expected, expected_trace = clean.clone(), torch.zeros_like(trace)
        for _ in range(3):
            graph.replay()
            ops.l1_step_(expected, grad, clean, 1.0, 2.0, 10, trace=expected_trace)
        assert torch.equal(adv, expected)
        assert torch.equal(trace, expected_trace)


class TestTorch:
    def test_opcheck(self, device: torch.device) -> None:
        x = torch.rand(3, 2, 5, 5, device=device)
        grad = torch.randn_like(x).contiguous(memory_format=torch.channels_last)
        rows = torch.rand(3, dtype=torch.float64, device=device)
        trace = torch.zeros(3, 3, dtype=torch.int64, device=device)
        for trace_or_none in (trace, None):
            torch.library.opcheck(
                torch.ops.brittle.l1_step_.default,
                (x.clone(), grad, x, 0.4, 0.3, 3.0, 0.0, 1.0, trace_or_none),
            )
            torch.library.opcheck(
                torch.ops.brittle.l1_step_.rows,
                (x.clone(), grad, x, rows, rows, rows + 1, 0.0, 1.0, trace_or_none),
            )

    def test_compile_fullgraph(self, device: torch.device) -> None:
        def attack(x: Tensor, grad: Tensor, eps: Tensor) -> Tensor:
            adv = x.clone()
            ops.l1_step_(adv, grad, x, 0.5, 0.4, 3)
            return ops.l1_step_(adv, grad.flip(1), x, 0.5, eps, 3) + 1

        x, grad = torch.rand(4, 3, 6, 6, device=device), torch.randn(4, 3, 6, 6, device=device)
        eps = torch.rand(4, dtype=torch.float64, device=device)
        compiled = torch.compile(attack, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(x, grad, eps).cpu(), attack(x, grad, eps).cpu())

    def test_export(self) -> None:
        class Step(torch.nn.Module):
            def forward(self, x: Tensor, grad: Tensor) -> Tensor:
                return ops.l1_step_(x.clone(), grad, x, 0.5, 0.3, 2)

        x, grad = torch.rand(4, 7), torch.randn(4, 7)
        program = torch.export.export(Step(), (x, grad))
        assert_same_bits(program.module()(x, grad), Step()(x, grad))

    def test_autograd_notices_the_writes(self) -> None:
        weight = torch.rand(2, 3, requires_grad=True)
        adv, trace = torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.int64)
        loss = (weight * adv).sum()
        version = trace._version
        ops.l1_step_(adv, torch.randn(2, 3), adv.clone(), 0.1, 0.1, 1, trace=trace)
        assert trace._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"grad": torch.rand(4, 2)}, r"l1_step_: grad must have adv's shape \[4, 3\]; got \[4, 2\]"),
            ({"clean": torch.rand(3)}, r"l1_step_: clean must have adv's shape \[4, 3\]; got \[3\]"),
            ({"grad": torch.rand(4, 3).double()}, "grad must have adv's dtype float32; got float64"),
            ({"adv": torch.zeros(4, 3, dtype=torch.int64)}, "adv must be float32.*; got int64"),
            ({"adv": torch.rand(())}, r"adv must be \[N, ...\]; got \[\]"),
            ({"eps": -0.1}, "eps must be >= 0; got -0.1"),
            ({"eps": math.nan}, "eps must be >= 0; got nan"),
            ({"step_size": -1.0}, "step_size must be finite and >= 0; got -1"),
            ({"step_size": math.inf}, "step_size must be finite and >= 0; got inf"),
            ({"k": 0.5}, "k must be >= 1; got 0.5"),
            ({"k": -3}, "k must be >= 1; got -3"),
            ({"k": math.nan}, "k must be >= 1; got nan"),
            ({"k": torch.tensor([1, 2, 0, 1])}, "k must be >= 1; got 0 in row 2"),
            ({"k": torch.ones(3)}, r"k must be a scalar or \[N\]; got shape \[3\] for N = 4"),
            ({"eps": torch.tensor([0.1, 0.1, -2.0, 0.1])}, "eps must be >= 0; got -2 in row 2"),
            ({"step_size": torch.tensor([0.1, math.inf, 0.0, 0.1])}, "got inf in row 1"),
            ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1, 0\)"),
            ({"adv": torch.rand(1, 3).expand(4, 3)}, "adv must not be expanded"),
            ({"trace": torch.zeros(4, 2, dtype=torch.int64)}, r"trace must be \[N, 3\]; got \[4, 2\]"),
            ({"trace": torch.zeros(4, 3)}, "trace must be int64; got float32"),
        ],
    )
    def test_every_argument(self, changes: dict[str, object], message: str) -> None:
        x = torch.rand(4, 3)
        arguments: dict[str, object] = {
            "adv": x.clone(),
            "grad": x,
            "clean": x,
            "step_size": 0.1,
            "eps": 0.1,
            "k": 1,
            **changes,
        }
        before = arguments["adv"].clone()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=message):
            ops.l1_step_(**arguments)  # type: ignore[arg-type]
        assert torch.equal(arguments["adv"], before)  # type: ignore[arg-type]
        as_arrays = {name: v.numpy() if isinstance(v, Tensor) else v for name, v in arguments.items()}
        with pytest.raises(ValueError, match=message.replace("expanded", ".*")):
            brittle.numpy.l1_step_(**as_arrays)  # type: ignore[arg-type]
