"""linf_step_, sign_sweep and linf_start against their definitions, at every SIMD level and every door."""

import math

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
    bits,
    gradients,
    images,
    step_samples,
    tensor,
)
from torch import Tensor

LEVELS = ["baseline", "v3", "v4"]


def supported_levels() -> list[str]:
    return LEVELS[: LEVELS.index(brittle.numpy.build_facts()["simd_best"]) + 1]


def column(value: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64)
    return value.reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value


def assert_in_ball(adv: Tensor, clean: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> None:
    """As an evaluator recomputes it in the dtype, compared with the caller's own double."""
    distance = (adv - clean).abs().double()
    assert (distance <= column(eps, adv)).all()
    lo, hi = (torch.tensor(b, dtype=adv.dtype) for b in bounds)
    assert (adv >= lo).all()
    assert (adv <= hi).all()


class TestAgainstReference:
    @given(sample=step_samples(), projection=st.sampled_from(["exact", "difference"]))
    @settings(max_examples=150)
    def test_step_has_the_same_bits_at_every_level(self, sample: StepSample, projection: str) -> None:
        expected = reference.linf_step_(
            sample.adv.clone(),
            sample.grad,
            sample.clean,
            sample.step_size,
            sample.eps,
            sample.bounds,
            projection=projection,
        )
        for level in supported_levels():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BRITTLE_SIMD", level)
                adv = layouts_like(sample.adv)
                ops.linf_step_(
                    adv,
                    sample.grad,
                    sample.clean,
                    sample.step_size,
                    sample.eps,
                    sample.bounds,
                    projection=projection,
                )
            assert_same_bits(adv, expected)

    @given(sample=step_samples(), projection=st.sampled_from(["exact", "difference"]))
    def test_a_traced_step_has_the_same_bits_at_every_level_and_door(
        self, sample: StepSample, projection: str
    ) -> None:
        arguments = sample.grad, sample.clean, sample.step_size, sample.eps, sample.bounds
        expected_trace = empty_trace(sample.adv)
        expected = layouts_like(sample.adv)
        reference.linf_step_(expected, *arguments, projection=projection, trace=expected_trace)
        for level in supported_levels():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BRITTLE_SIMD", level)
                adv, trace = layouts_like(sample.adv), empty_trace(sample.adv)
                ops.linf_step_(adv, *arguments, projection=projection, trace=trace)
            assert_same_bits(adv, expected)
            assert trace.tolist() == expected_trace.tolist()
        operands = [array(t) for t in arguments[:2]]
        numbers = [a.numpy() if isinstance(a, Tensor) else a for a in arguments[2:4]]
        adv, trace = layouts_like(sample.adv), empty_trace(sample.adv)
        brittle.numpy.linf_step_(
            array(adv), *operands, *numbers, sample.bounds, projection=projection, trace=trace.numpy()
        )
        assert_same_bits(adv, expected)
        assert trace.tolist() == expected_trace.tolist()
        adv, trace = layouts_like(sample.adv), empty_trace(sample.adv)
        rows = [np.broadcast_to(n, sample.adv.shape[:1]).astype(np.float64) for n in numbers]
        emulated_cuda.linf_step_(
            array(adv), *operands, *rows, *sample.bounds, projection == "exact", trace.numpy()
        )
        assert_same_bits(adv, expected)
        assert trace.tolist() == expected_trace.tolist()

    @given(sample=step_samples())
    def test_step_stays_in_ball_and_bounds_and_is_never_nan(self, sample: StepSample) -> None:
        adv = sample.adv.clone()
        ops.linf_step_(adv, sample.grad, sample.clean, sample.step_size, sample.eps, sample.bounds)
        assert not adv.isnan().any()
        assert_in_ball(adv, sample.clean, sample.eps, sample.bounds)

    @given(sample=step_samples(), count=st.integers(1, 4))
    def test_sweep(self, sample: StepSample, count: int) -> None:
        eps = [0.0, 8 / 255, 0.3, 1.7][:count]
        for keep_ball in (True, False):
            expected = reference.sign_sweep(
                sample.clean, sample.grad, eps, sample.bounds, keep_ball=keep_ball
            )
            for level in supported_levels():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("BRITTLE_SIMD", level)
                    got = ops.sign_sweep(sample.clean, sample.grad, eps, sample.bounds, keep_ball=keep_ball)
                assert_same_bits(got, expected)

    @given(sample=step_samples(), seed=st.integers(-(2**63), 2**64 - 1), draw=st.integers(0, 2**32 - 1))
    def test_start(self, sample: StepSample, seed: int, draw: int) -> None:
        ids = torch.randint(0, 2**62, (len(sample.clean),), generator=torch.Generator().manual_seed(draw))
        signed = seed - 2**64 if seed >= 2**63 else seed
        expected = reference.linf_start(sample.clean, sample.eps, signed, ids, draw, sample.bounds)
        for level in supported_levels():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BRITTLE_SIMD", level)
                got = ops.linf_start(sample.clean, sample.eps, seed, ids, draw, sample.bounds)
            assert_same_bits(got, expected)
        assert_in_ball(got, sample.clean, sample.eps, sample.bounds)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_large_input_on_several_threads(self, dtype: torch.dtype) -> None:
        shape = (5, 3, 97, 331)  # odd, and more than one grain a thread
        clean, adv = images(shape, dtype, (0, 1), 1), images(shape, dtype, (0, 1), 2)
        grad = gradients(shape, dtype, 3)
        eps = torch.tensor([0.0, 0.01, 0.1, 0.5, 2.0], dtype=torch.float64)
        expected = reference.linf_step_(adv.clone(), grad, clean, 0.05, eps)
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert_same_bits(ops.linf_step_(adv.clone(), grad, clean, 0.05, eps), expected)
                trace = empty_trace(adv)
                traced = ops.linf_step_(adv.clone(), grad, clean, 0.05, eps, trace=trace)
                assert_same_bits(traced, expected)
                assert trace.tolist() == reference.step_trace(expected, grad).tolist()
                start = ops.linf_start(clean, eps, 9)
                sweep = ops.sign_sweep(clean, grad, [0.1, 0.2])
                if count == 1:
                    first = start, sweep
                assert_same_bits(start, first[0])
                assert_same_bits(sweep, first[1])
        finally:
            torch.set_num_threads(threads)
        assert_same_bits(first[0], reference.linf_start(clean, eps, 9))
        assert_same_bits(first[1], reference.sign_sweep(clean, grad, [0.1, 0.2]))

    def test_sweep_past_the_cache_has_the_same_bits(self) -> None:
        x = images((3, 1_000_003), torch.float32, (0, 1), 4)  # 4 x 12 MB: written around the cache
        grad = gradients(x.shape, x.dtype, 4)
        eps = [0.0, 0.01, 0.1, 0.3]
        assert_same_bits(ops.sign_sweep(x, grad, eps), reference.sign_sweep(x, grad, eps))


def layouts_like(x: Tensor) -> Tensor:
    """A copy of x with x's strides, gaps included, so that in-place work on strides is exercised."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    copy = torch.full((span,), float("nan"), dtype=x.dtype).as_strided(x.shape, x.stride())
    return copy.copy_(x)


def empty_trace(adv: Tensor) -> Tensor:
    """A trace with rubbish in it."""
    return torch.full((len(adv), 3), -77)


class TestDoors:
    @given(sample=step_samples(), projection=st.sampled_from(["exact", "difference"]))
    def test_numpy_and_emulated_cuda_give_the_bits_of_torch(
        self, sample: StepSample, projection: str
    ) -> None:
        args = sample.step_size, sample.eps
        numbers = [a.numpy() if isinstance(a, Tensor) else a for a in args]
        expected = ops.linf_step_(
            sample.adv.clone(), sample.grad, sample.clean, *args, sample.bounds, projection=projection
        )
        operands = [array(t) for t in (sample.grad, sample.clean)]
        through_numpy = layouts_like(sample.adv)
        brittle.numpy.linf_step_(
            array(through_numpy), *operands, *numbers, sample.bounds, projection=projection
        )
        assert_same_bits(through_numpy, expected)
        through_cuda = layouts_like(sample.adv)
        rows = [np.broadcast_to(n, sample.adv.shape[:1]).astype(np.float64) for n in numbers]
        if not any(isinstance(a, Tensor) for a in args):
            rows = numbers
        emulated_cuda.linf_step_(array(through_cuda), *operands, *rows, *sample.bounds, projection == "exact")
        assert_same_bits(through_cuda, expected)

    @given(sample=step_samples(), seed=st.integers(0, 2**63 - 1))
    def test_sweep_and_start(self, sample: StepSample, seed: int) -> None:
        x, grad = array(sample.clean), array(sample.grad)
        eps = [0.0, 8 / 255, 0.3]
        expected = ops.sign_sweep(sample.clean, sample.grad, eps, sample.bounds)
        assert_same_bits(tensor(brittle.numpy.sign_sweep(x, grad, eps, sample.bounds)), expected)
        out = np.full((3, *x.shape), np.nan, x.dtype)
        emulated_cuda.sign_sweep(x, grad, eps, *sample.bounds, True, out)
        assert_same_bits(tensor(out), expected)

        start = ops.linf_start(sample.clean, 0.1, seed, draw=3, bounds=sample.bounds)
        through_numpy = brittle.numpy.linf_start(x, 0.1, seed, draw=3, bounds=sample.bounds)
        assert_same_bits(tensor(through_numpy), start)
        out = np.full(x.shape, np.nan, x.dtype)
        emulated_cuda.linf_start(x, 0.1, seed, None, 3, *sample.bounds, out)
        assert_same_bits(tensor(out), start)

    @pytest.mark.parametrize("multiprocessors", ["1", "3", "132"])
    @pytest.mark.parametrize("count", [1, 3, 4, 5, 1023, 1024, 2049, 5000])
    def test_emulated_grid_shapes(
        self, count: int, multiprocessors: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Heads, tails and grid strides of the vectorised kernels, every operand misaligned in turn."""
        monkeypatch.setenv("EMULATED_MULTIPROCESSORS", multiprocessors)
        for rows, offset in [(1, 0), (1, 1), (3, 0), (3, 3)]:
            shape = (rows, count)
            clean, grad = images(shape, torch.float32, (0, 1), count), gradients(shape, torch.float32, 1)
            adv = torch.empty(rows * count + offset)[offset:].view(shape)
            for same_offset in (True, False):
                adv.copy_(clean)
                if same_offset:
                    clean = torch.empty(rows * count + offset)[offset:].view(shape).copy_(clean)
                    grad = torch.empty(rows * count + offset)[offset:].view(shape).copy_(grad)
                eps = np.linspace(0.01, 0.2, rows)
                expected = reference.linf_step_(clean.clone(), grad, clean, 0.1, torch.from_numpy(eps))
                step = np.full(rows, 0.1)
                emulated_cuda.linf_step_(adv.numpy(), grad.numpy(), clean.numpy(), step, eps, 0.0, 1.0, True)
                assert_same_bits(adv, expected)
                adv.copy_(clean)
                trace = empty_trace(adv)
                operands = [x.numpy() for x in (adv, grad, clean)]
                emulated_cuda.linf_step_(*operands, step, eps, 0.0, 1.0, True, trace.numpy())
                assert_same_bits(adv, expected)
                assert trace.tolist() == reference.step_trace(expected, grad).tolist()

    @given(
        gaps=st.tuples(*[st.sampled_from([0, 1, 4, 64])] * 3),
        rows=st.integers(1, 5),
        count=st.sampled_from([1, 4, 7, 64, 1030]),
    )
    def test_dense_rows_at_different_distances(
        self, gaps: tuple[int, int, int], rows: int, count: int
    ) -> None:
        """Each operand's rows are dense, with gaps of its own between them."""
        values = images((rows, count), torch.float32, (0, 1), 0), gradients((rows, count), torch.float32, 0)
        operands = []
        for value, gap in zip((values[0], values[1], values[0].flip(1)), gaps, strict=True):
            operands.append(torch.full((rows, count + gap), math.nan)[:, :count].copy_(value))
        adv, grad, clean = operands
        eps = torch.linspace(0, 0.3, rows, dtype=torch.float64)
        expected = reference.linf_step_(adv.clone(), grad, clean, 0.1, eps)
        emulated = layouts_like(adv)
        steps = np.full(rows, 0.1)
        emulated_cuda.linf_step_(
            array(emulated), array(grad), array(clean), steps, eps.numpy(), 0.0, 1.0, True
        )
        assert_same_bits(emulated, expected)
        assert_same_bits(ops.linf_step_(adv, grad, clean, 0.1, eps), expected)

    def test_more_epsilons_than_one_launch_takes(self) -> None:
        x, grad = images((2, 37), torch.float32, (0, 1), 0), gradients((2, 37), torch.float32, 0)
        eps = np.linspace(0, 0.5, 150).tolist()
        out = np.full((150, 2, 37), np.nan, np.float32)
        emulated_cuda.sign_sweep(x.numpy(), grad.numpy(), eps, 0.0, 1.0, True, out)
        assert_same_bits(tensor(out), reference.sign_sweep(x, grad, eps))


class TestHalfTypes:
    """The branch-free conversions, over every value, seen through a step that moves nothing."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_every_finite_value_survives_a_round_trip(self, dtype: torch.dtype, simd_level: str) -> None:
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        x = x[x.isfinite()][None]
        grad = torch.zeros_like(x)
        expected = torch.where(x == 0, 0.0, x)  # -0.0 + 0.0 is 0.0
        adv = ops.linf_step_(x.clone(), grad, x, 1.0, math.inf, (-math.inf, math.inf))
        assert_same_bits(adv, expected)
        adv = x.clone()
        emulated_cuda.linf_step_(array(adv), array(grad), array(x), 1.0, math.inf, -math.inf, math.inf, True)
        assert_same_bits(adv, expected)

    def test_rounding_to_half_is_torch_s(self, simd_level: str) -> None:
        """clean + step covers ties, subnormals, overflow to the largest finite value."""
        steps = torch.cat([torch.logspace(-9, 4.9, 4001), 2.0 ** torch.arange(-25, 16)]).double()
        base = torch.tensor([0.0, 1.0, 2.0**-14, 3 * 2.0**-24, 1023.5, 2049.0])
        for dtype in (torch.float16, torch.bfloat16):
            clean = base.to(dtype).repeat(len(steps), 1)
            got = ops.linf_step_(
                clean.clone(), torch.ones_like(clean), clean, steps, math.inf, (-math.inf, math.inf)
            )
            expected = (clean.float() + steps.float()[:, None]).to(dtype)
            assert_same_bits(got, expected)


class TestTrace:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_fingerprint_is_the_sum_of_mixed_bits(self, dtype: torch.dtype) -> None:
        """Against the definition in Python's own integers."""
        adv = images((2, 37), dtype, (-1, 1), 8)
        trace = empty_trace(adv)
        ops.linf_step_(adv, torch.zeros_like(adv), adv.clone(), 0.1, 0.1, (-1, 1), trace=trace)
        width, word = 8 * adv.element_size(), 2**64 - 1
        for row, found in zip(bits(adv).tolist(), trace[:, 0].tolist(), strict=True):
            total = 0
            for i, stored in enumerate(row):
                z = (i * 0x9E3779B97F4A7C15 + stored % 2**width) & word
                z = ((z ^ (z >> 32)) * 0xD6E8FEB86659FD93) & word
                z = ((z ^ (z >> 29)) * 0xBF58476D1CE4E5B9) & word
                total += z ^ (z >> 32)
            assert found % 2**64 == total % 2**64

    def test_counts(self, device: torch.device) -> None:
        grad = torch.tensor([[0.0, -0.0, 1e-45, 2.0, -3.0], [math.nan, math.inf, -math.inf, 1.0, 0.0]])
        adv = torch.full_like(grad, 0.5).to(device)
        trace = empty_trace(adv).to(device)
        ops.linf_step_(adv, grad.to(device), adv.clone(), 0.1, 0.1, trace=trace)
        assert trace[:, 1:].tolist() == [[3, 0], [1, 3]]

    def test_one_bit_and_one_exchange_are_noticed(self) -> None:
        x = torch.rand(1, 5000).repeat(4, 1)
        x[1, 4321] = torch.nextafter(x[1, 4321], torch.tensor(2.0))
        x[2, [17, 18]] = x[2, [18, 17]]
        trace = empty_trace(x)
        ops.linf_step_(x, torch.zeros_like(x), x.clone(), 0.0, 0.0, trace=trace)
        prints = trace[:, 0].tolist()
        assert prints[0] == prints[3]
        assert len(set(prints)) == 3

    def test_a_cycle_is_found(self) -> None:
        """On a parabola a fixed step hops over the minimum for ever: the point of two steps ago returns."""
        clean = torch.full((1, 3), 0.52)
        adv, prints = clean.clone(), []
        for _ in range(8):
            trace = empty_trace(adv)
            ops.linf_step_(adv, 0.5 - adv, clean, 0.25, 0.25, trace=trace)
            prints.append(trace[0, 0].item())
        assert prints[-1] == prints[-3]
        assert prints[-1] != prints[-2]

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)])
    def test_empty(self, shape: tuple[int, ...], device: torch.device) -> None:
        adv = torch.empty(shape, device=device)
        trace = empty_trace(adv).to(device)
        ops.linf_step_(adv, adv.clone(), adv.clone(), 0.1, 0.1, trace=trace)
        assert trace.tolist() == [[0, 0, 0]] * shape[0]
        emulated = empty_trace(adv)
        rows = [x.cpu().numpy() for x in (adv, adv.clone(), adv.clone())]
        emulated_cuda.linf_step_(*rows, 0.1, 0.1, 0.0, 1.0, True, emulated.numpy())
        assert emulated.tolist() == trace.tolist()

    @pytest.mark.parametrize(
        ("trace", "message"),
        [
            (torch.zeros(3, 3, dtype=torch.int64), r"trace must be \[N, 3\]; got \[3, 3\] for N = 4"),
            (torch.zeros(4, 2, dtype=torch.int64), r"trace must be \[N, 3\]; got \[4, 2\] for N = 4"),
            (torch.zeros(12, dtype=torch.int64), r"trace must be \[N, 3\]; got \[12\] for N = 4"),
            (torch.zeros(4, 3), "trace must be int64; got float32"),
            (torch.zeros(3, 4, dtype=torch.int64).t(), "trace must be contiguous"),
        ],
    )
    def test_bad_trace(self, trace: Tensor, message: str) -> None:
        adv = torch.rand(4, 5)
        before, rubbish = adv.clone(), trace.clone()
        with pytest.raises(ValueError, match="linf_step_: " + message):
            ops.linf_step_(adv, adv.clone(), adv.clone(), 0.1, 0.1, trace=trace)
        with pytest.raises(ValueError, match="linf_step_: " + message):
            brittle.numpy.linf_step_(
                adv.numpy(), before.numpy(), before.numpy(), 0.1, 0.1, trace=trace.numpy()
            )
        assert torch.equal(adv, before)
        assert torch.equal(trace, rubbish)

    def test_a_point_without_rows_has_no_trace(self) -> None:
        x = torch.tensor(0.5)
        with pytest.raises(ValueError, match=r"trace must be \[N, 3\]"):
            ops.linf_step_(x, x.clone(), x.clone(), 0.1, 0.1, trace=torch.zeros(1, 3, dtype=torch.int64))


class TestMeaning:
    def test_non_finite_and_zero_gradients_do_not_move(self, device: torch.device) -> None:
        grad = torch.tensor([[0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45]], device=device)
        clean = torch.full_like(grad, 0.5)
        moved = ops.linf_step_(clean.clone(), grad, clean, 0.25, 0.25)
        assert moved.tolist() == [[0.5, 0.5, 0.5, 0.5, 0.5, 0.75, 0.25]]

    def test_nan_in_one_row_stays_there(self) -> None:
        clean = torch.rand(3, 50)
        adv = clean.clone()
        adv[1, 7] = math.nan
        ops.linf_step_(adv, torch.randn(3, 50), clean, 0.1, 0.1)
        assert adv.isnan().nonzero().tolist() == [[1, 7]]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_stored_point_nearer_to_the_wanted_one_is_inside(self, dtype: torch.dtype) -> None:
        """Where the step ends on the ball's surface, one ulp further out is outside."""
        clean = images((1, 4096), dtype, (0, 1), 5).clamp(0.2, 0.8)
        grad = torch.where(torch.rand(1, 4096) < 0.5, -1.0, 1.0).to(dtype)
        eps = 8 / 255
        adv = ops.linf_step_(clean.clone(), grad, clean, 1.0, eps)
        away = torch.where(adv > clean, 1, -1) * torch.where(adv > 0, 1, -1)
        further = (bits(adv) + away.to(bits(adv).dtype)).view(dtype)
        wide = torch.float64
        assert ((adv - clean).abs().to(wide) <= eps).all()
        radius = torch.tensor(eps, dtype=wide)
        assert ((further.to(wide) - clean.to(wide)).abs() > radius - torch.finfo(dtype).eps).all()

    def test_the_peers_rounding_leaves_the_ball_and_ours_does_not(self) -> None:
        clean = images((64, 3, 32, 32), torch.float32, (0, 1), 6)
        grad = torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
        eps = 8 / 255
        peers = ops.linf_step_(clean.clone(), grad, clean, 1.0, eps, projection="difference")
        ours = ops.linf_step_(clean.clone(), grad, clean, 1.0, eps)
        assert (peers - clean).abs().double().max() > eps
        assert (ours - clean).abs().double().max() <= eps
        assert (ours - peers).abs().max() < 1e-7

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        clean, grad = torch.rand(7, 3, 5, 5), torch.randn(7, 3, 5, 5)
        eps, ids = torch.rand(7, dtype=torch.float64), torch.arange(100, 107)
        start = ops.linf_start(clean, eps, 1, ids)
        step = ops.linf_step_(start.clone(), grad, clean, 0.1, eps)
        order = torch.tensor([4, 0, 6])
        alone = ops.linf_start(clean[order], eps[order], 1, ids[order])
        assert_same_bits(alone, start[order])
        ops.linf_step_(alone, grad[order], clean[order], 0.1, eps[order])
        assert_same_bits(alone, step[order])

    def test_start_is_uniform_in_the_box(self) -> None:
        start = ops.linf_start(torch.zeros(200, 5000), 1.0, 11, bounds=(-2, 2)).double().flatten()
        # The mean of U(-1, 1) has standard error 1/sqrt(3 n); Kolmogorov-Smirnov at 1 % is 1.63/sqrt(n).
        n = len(start)
        assert abs(start.mean()) < 4 / math.sqrt(3 * n)
        assert abs((start**2).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)
        ranks = torch.arange(1, n + 1).double() / n
        assert ((start.sort().values + 1) / 2 - ranks).abs().max() < 1.63 / math.sqrt(n)

    def test_clean_may_be_adv_itself(self) -> None:
        x, grad = torch.rand(3, 1000), torch.randn(3, 1000)
        expected = ops.linf_step_(x.clone(), grad, x, 0.1, 0.1)
        same = x.clone()
        assert_same_bits(ops.linf_step_(same, grad, same, 0.1, 0.1), expected)

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)])
    def test_empty(self, shape: tuple[int, ...], device: torch.device) -> None:
        x = torch.empty(shape, device=device)
        assert ops.linf_step_(x, x.clone(), x.clone(), 0.1, 0.1).shape == shape
        assert ops.sign_sweep(x, x.clone(), [0.1, 0.2]).shape == (2, *shape)
        assert ops.linf_start(x, 0.1).shape == shape

    def test_layout_is_kept(self) -> None:
        x = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        grad = torch.randn(2, 3, 8, 8)
        sweep = ops.sign_sweep(x, grad, [0.1, 0.2])
        assert sweep[1].is_contiguous(memory_format=torch.channels_last)
        assert ops.linf_start(x, 0.1).is_contiguous(memory_format=torch.channels_last)
        assert_same_bits(ops.linf_start(x, 0.1, 5), ops.linf_start(x.contiguous(), 0.1, 5))

    def test_more_than_two_to_the_31_elements(self) -> None:
        row = torch.rand(1, 2**16 + 1, dtype=torch.float16)
        rows = 2**15 + 3
        adv = row.expand(rows, -1).contiguous()
        grad = torch.ones_like(row)
        assert adv.numel() > 2**31
        ops.linf_step_(adv, grad.expand(rows, -1), row.expand(rows, -1), 0.25, 0.125)
        expected = reference.linf_step_(row.clone(), grad, row, 0.25, 0.125)
        for i in (0, 1, rows // 2, rows - 2, rows - 1):
            assert_same_bits(adv[i], expected[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnTheGpu:
    @given(sample=step_samples(), projection=st.sampled_from(["exact", "difference"]))
    def test_step(self, sample: StepSample, projection: str) -> None:
        expected = ops.linf_step_(
            sample.adv.clone(),
            sample.grad,
            sample.clean,
            sample.step_size,
            sample.eps,
            sample.bounds,
            projection=projection,
        )
        move = [t.cuda() if isinstance(t, Tensor) else t for t in (sample.step_size, sample.eps)]
        adv, trace = sample.adv.cuda(), empty_trace(sample.adv).cuda()
        ops.linf_step_(
            adv, sample.grad.cuda(), sample.clean.cuda(), *move, sample.bounds, projection=projection
        )
        assert_same_bits(adv.cpu(), expected)
        adv = sample.adv.cuda()
        grad, clean = sample.grad.cuda(), sample.clean.cuda()
        ops.linf_step_(adv, grad, clean, *move, sample.bounds, projection=projection, trace=trace)
        assert_same_bits(adv.cpu(), expected)
        assert trace.tolist() == reference.step_trace(adv.cpu(), grad.cpu()).tolist()

    @given(sample=step_samples(), seed=st.integers(0, 2**63 - 1))
    def test_sweep_and_start(self, sample: StepSample, seed: int) -> None:
        eps = [0.0, 8 / 255, 0.3]
        clean, grad = sample.clean.cuda(), sample.grad.cuda()
        got = ops.sign_sweep(clean, grad, eps, sample.bounds).cpu()
        assert_same_bits(got, ops.sign_sweep(sample.clean, sample.grad, eps, sample.bounds))
        got = ops.linf_start(clean, 0.1, seed, draw=3, bounds=sample.bounds).cpu()
        assert_same_bits(got, ops.linf_start(sample.clean, 0.1, seed, draw=3, bounds=sample.bounds))

    def test_more_than_two_to_the_31_elements(self) -> None:
        adv = torch.zeros(2**31 + 17, dtype=torch.float16, device="cuda")
        ones = torch.ones(1, dtype=torch.float16, device="cuda").expand(adv.shape)
        ops.linf_step_(adv, adv + 1, adv.clone(), 0.25, 0.125)
        assert bool((adv == 0.125).all())
        ops.linf_step_(adv, ones, torch.zeros_like(ones).expand(adv.shape), 0.25, 0.5)
        assert bool((adv == 0.375).all())

    def test_on_a_side_stream(self) -> None:
        x, grad = torch.rand(1 << 24, device="cuda"), torch.randn(1 << 24, device="cuda")
        expected = ops.linf_step_(x.clone(), grad, x, 0.1, 0.05)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = ops.linf_step_(x.clone(), grad, x, 0.1, 0.05)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(got, expected)

    def test_in_a_cuda_graph(self) -> None:
        clean, grad = torch.rand(1000, device="cuda"), torch.randn(1000, device="cuda")
        adv = clean.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.linf_step_(adv, grad, clean, 0.01, 0.05)
        adv.copy_(clean)
        expected = clean.clone()
        for _ in range(3):
            graph.replay()
            ops.linf_step_(expected, grad, clean, 0.01, 0.05)
        assert torch.equal(adv, expected)


class TestTorch:
    def calls(self, device: torch.device) -> list[tuple[object, tuple[object, ...]]]:
        x = torch.rand(3, 2, 5, 5, device=device)
        grad = torch.randn_like(x).contiguous(memory_format=torch.channels_last)
        rows = torch.rand(3, dtype=torch.float64, device=device)
        ids = torch.tensor([5, 1, 2], device=device)
        trace = torch.zeros(3, 3, dtype=torch.int64, device=device)
        brittle_ops = torch.ops.brittle
        return [
            (brittle_ops.linf_step_.default, (x.clone(), grad, x, 0.1, 0.05, 0.0, 1.0, True)),
            (brittle_ops.linf_step_.default, (x.clone(), grad, x, 0.1, 0.05, 0.0, 1.0, False)),
            (brittle_ops.linf_step_.rows, (x.clone(), grad, x, rows, rows, 0.0, 1.0, True)),
            (brittle_ops.linf_step_.default, (x.clone(), grad, x, 0.1, 0.05, 0.0, 1.0, True, trace)),
            (brittle_ops.linf_step_.rows, (x.clone(), grad, x, rows, rows, 0.0, 1.0, True, trace)),
            (
                brittle_ops.sign_sweep.default,
                (x, grad, [0.1, 0.2], 0.0, 1.0, True, x.new_empty(2, 3, 2, 5, 5)),
            ),
            (brittle_ops.linf_start.default, (x, 0.1, 7, None, 0, 0.0, 1.0, torch.empty_like(x))),
            (brittle_ops.linf_start.rows, (x, rows, 7, ids, 0, 0.0, 1.0, torch.empty_like(x))),
        ]

    def test_opcheck(self, device: torch.device) -> None:
        for op, args in self.calls(device):
            torch.library.opcheck(op, args)  # type: ignore[arg-type]

    def test_compile_fullgraph(self, device: torch.device) -> None:
        def attack(x: Tensor, grad: Tensor, eps: Tensor) -> Tensor:
            adv = ops.linf_start(x, 0.03, seed=3)
            trace = torch.zeros(4, 3, dtype=torch.int64, device=x.device)
            ops.linf_step_(adv, grad, x, 0.01, 0.03)
            ops.linf_step_(adv, grad, x, 0.01, eps, trace=trace)
            return adv + ops.sign_sweep(x, grad, [0.01, 0.02])[1] + trace[:, 1, None, None, None]

        x, grad = torch.rand(4, 3, 6, 6, device=device), torch.randn(4, 3, 6, 6, device=device)
        eps = torch.rand(4, dtype=torch.float64, device=device)
        compiled = torch.compile(attack, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(x, grad, eps).cpu(), attack(x, grad, eps).cpu())

    def test_export(self) -> None:
        class Step(torch.nn.Module):
            def forward(self, x: Tensor, grad: Tensor) -> Tensor:
                return ops.linf_step_(x.clone(), grad, x, 0.01, 0.03)

        x, grad = torch.rand(4, 7), torch.randn(4, 7)
        program = torch.export.export(Step(), (x, grad))
        assert_same_bits(program.module()(x, grad), Step()(x, grad))

    def test_autograd_notices_the_write(self) -> None:
        weight = torch.rand(3, requires_grad=True)
        adv = torch.rand(3)
        loss = (weight * adv).sum()
        ops.linf_step_(adv, torch.randn(3), adv.clone(), 0.1, 0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestBadInput:
    def arguments(self, **changes: object) -> dict[str, object]:
        x = torch.rand(4, 3)
        return {"adv": x.clone(), "grad": x, "clean": x, "step_size": 0.1, "eps": 0.1, **changes}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"grad": torch.rand(4, 2)}, r"linf_step_: grad must have adv's shape \[4, 3\]; got \[4, 2\]"),
            ({"clean": torch.rand(3)}, r"linf_step_: clean must have adv's shape \[4, 3\]; got \[3\]"),
            ({"grad": torch.rand(4, 3).double()}, "grad must have adv's dtype float32; got float64"),
            ({"adv": torch.zeros(4, 3, dtype=torch.int64)}, "adv must be float32.*; got int64"),
            ({"adv": torch.zeros(4, 3, dtype=torch.uint8)}, "adv must be float32.*; got uint8"),
            ({"eps": -0.1}, "eps must be >= 0; got -0.1"),
            ({"eps": math.nan}, "eps must be >= 0; got nan"),
            ({"step_size": -1.0}, "step_size must be >= 0; got -1"),
            ({"step_size": math.nan}, "step_size must be >= 0; got nan"),
            ({"eps": torch.rand(3)}, r"eps must be a scalar or \[N\]; got shape \[3\] for N = 4"),
            ({"eps": torch.tensor([0.1, 0.1, -2.0, 0.1])}, "eps must be >= 0; got -2 in row 2"),
            ({"step_size": torch.tensor([0.1, math.nan, 0.0, 0.1])}, "got nan in row 1"),
            ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1, 0\)"),
            ({"bounds": (0.5, 0.5)}, "lo < hi"),
            ({"bounds": (math.nan, 1.0)}, "lo < hi"),
            ({"adv": torch.rand(1, 3).expand(4, 3)}, "adv must not be expanded"),
            ({"projection": "l2"}, "projection must be 'exact' or 'difference'; got 'l2'"),
        ],
    )
    def test_step(self, changes: dict[str, object], message: str) -> None:
        arguments = self.arguments(**changes)
        before = arguments["adv"].clone()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=message):
            ops.linf_step_(**arguments)  # type: ignore[arg-type]
        assert torch.equal(arguments["adv"], before)  # type: ignore[arg-type]
        as_arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises(ValueError, match=message.replace("expanded", ".*")):
            brittle.numpy.linf_step_(**as_arrays)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"eps": []}, "sign_sweep: eps must hold at least one value"),
            ({"eps": [0.1, -0.1]}, "eps must be >= 0; got -0.1"),
            ({"eps": [math.nan]}, "eps must be >= 0; got nan"),
            ({"eps": [0.1], "out": torch.empty(2, 4, 3)}, r"out must be \[K, ...\] with K = 1"),
            ({"eps": [0.1], "out": torch.empty(1, 4, 2)}, r"each out\[k\] must have x's shape"),
            (
                {"eps": [0.1], "out": torch.empty(1, 4, 3).double()},
                "must have x's dtype float32; got float64",
            ),
            ({"eps": [0.1], "bounds": (1.0, 0.0)}, "lo < hi"),
        ],
    )
    def test_sweep(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ops.sign_sweep(torch.rand(4, 3), torch.rand(4, 3), **arguments)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"eps": -1.0}, "linf_start: eps must be finite and >= 0; got -1"),
            (
                {"eps": torch.tensor([0.1, math.inf, 0.1, 0.1])},
                "eps must be finite and >= 0; got inf in row 1",
            ),
            ({"eps": math.inf}, "eps must be finite and >= 0; got inf"),
            ({"eps": 0.1, "sample_ids": torch.arange(3)}, r"sample_ids must be \[N\]; got \[3\] for N = 4"),
            ({"eps": 0.1, "sample_ids": torch.arange(4).int()}, "sample_ids must be int64; got int32"),
            ({"eps": 0.1, "draw": -1}, r"draw must be in \[0, 2\^32\); got -1"),
            ({"eps": 0.1, "draw": 2**32}, "draw must be in"),
            ({"eps": 0.1, "seed": 2**64}, "seed must fit 64 bits"),
            ({"eps": 0.1, "out": torch.empty(4, 2)}, "out must have clean's shape"),
        ],
    )
    def test_start(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ops.linf_start(torch.rand(4, 3), **arguments)  # type: ignore[arg-type]

    def test_simd_level_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BRITTLE_SIMD", "v9")
        with pytest.raises(ValueError, match="BRITTLE_SIMD: expected v4, v3 or baseline; got v9"):
            ops.linf_step_(**self.arguments())  # type: ignore[arg-type]

    def test_read_only_array(self) -> None:
        x = np.zeros((2, 3), np.float32)
        frozen = x.copy()
        frozen.setflags(write=False)
        with pytest.raises(ValueError, match="adv must be writable"):
            brittle.numpy.linf_step_(frozen, x, x, 0.1, 0.1)

    def test_foreign_byte_order(self) -> None:
        x = np.zeros((2, 3), ">f4")
        with pytest.raises(ValueError, match="foreign byte order"):
            brittle.numpy.linf_step_(x, x, x, 0.1, 0.1)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_devices_differ(self) -> None:
        x = torch.rand(4, 3)
        with pytest.raises((ValueError, RuntimeError), match="device"):
            ops.linf_step_(x, x.cuda(), x, 0.1, 0.1)
