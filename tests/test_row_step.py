"""l2_step_ and momentum_step_ against their definitions, at every SIMD level and every door."""

import math
from dataclasses import dataclass, replace
from typing import Any

import brittle.numpy
import emulated_cuda
import numpy as np
import pytest
import torch
from brittle import ops, reference
from brittle.ops.row_step import L2_PROJECTIONS, NORM_FLOORS, NORMALIZATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    DTYPES,
    StepSample,
    array,
    assert_same_bits,
    gradients,
    images,
    layouts,
    step_samples,
)
from torch import Tensor

LEVELS = ["baseline", "v3", "v4"]


def supported_levels() -> list[str]:
    return LEVELS[: LEVELS.index(brittle.numpy.build_facts()["simd_best"]) + 1]


def column(value: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64)
    return value.reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value


def empty_trace(adv: Tensor) -> Tensor:
    """A trace with rubbish in it."""
    return torch.full((len(adv), 3), -77)


def layouts_like(x: Tensor) -> Tensor:
    """A copy of x with x's strides, gaps included, so that in-place work on strides is exercised."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    copy = torch.full((span,), float("nan"), dtype=x.dtype).as_strided(x.shape, x.stride())
    return copy.copy_(x)


def rows_of(value: float | Tensor, adv: Tensor) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.float64), adv.shape[:1]).copy()


def l2_length(adv: Tensor, clean: Tensor) -> Tensor:
    """As an evaluator recomputes it: in float32, or in float64 for float64."""
    wide = torch.promote_types(adv.dtype, torch.float32)
    difference = adv.to(wide) - clean.to(wide)
    return difference.reshape(len(adv), math.prod(adv.shape[1:])).norm(dim=1).double()


def assert_in_l2_ball(adv: Tensor, clean: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> None:
    assert (l2_length(adv, clean) <= torch.as_tensor(eps, dtype=torch.float64)).all()
    lo, hi = (torch.tensor(b, dtype=adv.dtype) for b in bounds)
    assert (adv >= lo).all()
    assert (adv <= hi).all()


@dataclass(frozen=True)
class Scales:
    """What a row sample's numbers are multiplied by, and where it starts."""

    start: str
    gradient: float
    amount: float


@st.composite
def row_samples(draw: st.DrawFn) -> StepSample:
    """Step samples of lengths that suit L2, from starts in and out of the ball, gradients of any size."""
    sample = draw(step_samples())
    scales = Scales(
        draw(st.sampled_from(["anywhere", "near", "clean", "opposed", "zero gradient"])),
        draw(st.sampled_from([1.0, 1.0, 1e-33, 1e-44, 1e35, 1e-200, 1e-310, 1e160, 1e305])),
        draw(st.sampled_from([1.0, 1.0, 30.0, 1e-4, math.inf])),
    )
    adv, grad, clean = sample.adv, sample.grad, sample.clean
    half = torch.rand(adv.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.5
    if scales.start == "near":
        adv = layouts_like(adv).copy_(torch.where(half, adv, clean))
    if scales.start == "clean":
        adv = layouts_like(adv).copy_(clean)
    steps, eps = sample.step_size, sample.eps
    eps = eps * scales.amount if scales.amount < math.inf else math.inf
    steps = steps * min(scales.amount, 30.0)
    if scales.start == "zero gradient":
        grad = torch.where(half, 0.0, math.nan).to(grad.dtype)
    elif scales.start == "opposed":  # the step leads back to the centre, where lengths cancel
        grad = clean - adv
        back = l2_length(adv, clean).nan_to_num(0) if adv.numel() else torch.zeros(len(adv)).double()
        steps = back * draw(st.sampled_from([1.0, 1 - 1e-6, 1.01, 0.9]))
    else:
        grad = layouts_like(grad).copy_((grad.double() * scales.gradient).to(grad.dtype))
    return replace(sample, adv=adv, grad=grad, step_size=steps, eps=eps)


def through_every_door(sample: StepSample, projection: str, floor: str) -> list[tuple[Tensor, Tensor]]:
    """(adv, trace) of each SIMD level, then of the numpy door and of emulated CUDA."""
    found = []
    for level in supported_levels():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BRITTLE_SIMD", level)
            adv, trace = layouts_like(sample.adv), empty_trace(sample.adv)
            ops.l2_step_(
                adv,
                sample.grad,
                sample.clean,
                sample.step_size,
                sample.eps,
                sample.bounds,
                projection=projection,
                floor=floor,
                trace=trace,
            )
        found.append((adv, trace))
    operands = [array(t) for t in (sample.grad, sample.clean)]
    numbers = [a.numpy() if isinstance(a, Tensor) else a for a in (sample.step_size, sample.eps)]
    adv, trace = layouts_like(sample.adv), empty_trace(sample.adv)
    brittle.numpy.l2_step_(
        array(adv),
        *operands,
        *numbers,
        sample.bounds,
        projection=projection,
        floor=floor,
        trace=trace.numpy(),
    )
    found.append((adv, trace))
    adv, trace = layouts_like(sample.adv), empty_trace(sample.adv)
    modes = L2_PROJECTIONS.index(projection), NORM_FLOORS.index(floor)
    rows = [rows_of(n, adv) for n in numbers]
    emulated_cuda.l2_step_(array(adv), *operands, *rows, *sample.bounds, *modes, trace.numpy())
    found.append((adv, trace))
    return found


class TestL2AgainstReference:
    @given(sample=row_samples(), floor=st.sampled_from(NORM_FLOORS))
    @settings(max_examples=100)
    def test_exact_step_has_the_same_bits_at_every_level_and_door(
        self, sample: StepSample, floor: str
    ) -> None:
        expected_trace = empty_trace(sample.adv)
        expected = layouts_like(sample.adv)
        reference.l2_step_(
            expected,
            sample.grad,
            sample.clean,
            sample.step_size,
            sample.eps,
            sample.bounds,
            floor=floor,
            trace=expected_trace,
        )
        for adv, trace in through_every_door(sample, "exact", floor):
            assert_same_bits(adv, expected)
            assert trace.tolist() == expected_trace.tolist()
        assert not expected.isnan().any()
        assert_in_l2_ball(expected, sample.clean, sample.eps, sample.bounds)

    @given(
        sample=row_samples(),
        floor=st.sampled_from(NORM_FLOORS),
        projection=st.sampled_from(["project_clip", "clip_project"]),
    )
    @settings(max_examples=60)
    def test_compat_steps_are_as_close_as_rounding_and_equal_at_every_level_and_door(
        self, sample: StepSample, floor: str, projection: str
    ) -> None:
        expected = reference.l2_step_(
            sample.adv.clone(),
            sample.grad,
            sample.clean,
            sample.step_size,
            sample.eps,
            sample.bounds,
            projection=projection,
            floor=floor,
        )
        (first, trace), *others = through_every_door(sample, projection, floor)
        for adv, other_trace in others:
            assert_same_bits(adv, first)
            assert other_trace.tolist() == trace.tolist()
        if not first.numel():
            return
        assert trace.tolist() == reference.step_trace(first, sample.grad).tolist()
        largest = column(sample.step_size, first).abs().clamp(min=max(map(abs, (*sample.bounds, 1.0))))
        allowed = 8 * torch.finfo(first.dtype).eps * largest
        assert ((first.double() - expected.double()).abs() <= allowed).all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_large_rows_on_several_threads(self, dtype: torch.dtype) -> None:
        shape = (5, 3, 97, 331)
        clean, adv = images(shape, dtype, (0, 1), 1), images(shape, dtype, (0, 1), 2)
        grad = gradients(shape, dtype, 3)
        eps = torch.tensor([0.0, 0.5, 3.0, 100.0, math.inf], dtype=torch.float64)
        expected = reference.l2_step_(adv.clone(), grad, clean, 1.5, eps)
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                trace = empty_trace(adv)
                assert_same_bits(ops.l2_step_(adv.clone(), grad, clean, 1.5, eps, trace=trace), expected)
                assert trace.tolist() == reference.step_trace(expected, grad).tolist()
                assert_same_bits(ops.l2_step_(adv.clone(), grad, clean, 1.5, eps), expected)
        finally:
            torch.set_num_threads(threads)
        assert_in_l2_ball(expected, clean, eps, (0, 1))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("count", [1, 2, 3, 5, 1023, 1024, 1025, 2047, 2049, 4096, 4097, 9001])
    def test_row_lengths_around_lanes_and_registers(
        self, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On the emulated grid too: aligned and not, rows fewer and more than blocks."""
        monkeypatch.setenv("EMULATED_MULTIPROCESSORS", "1")
        for rows, offset in [(1, 0), (11, 0), (3, 1)]:
            shape = (rows, count)
            clean, grad = images(shape, dtype, (0, 1), count), gradients(shape, dtype, 1)
            eps = torch.linspace(0.01, 2, rows, dtype=torch.float64)
            expected = reference.l2_step_(clean.clone(), grad, clean, 0.7, eps)
            operands = []
            for x in (clean, grad, clean):
                operands.append(torch.zeros(x.numel() + offset, dtype=dtype)[offset:].view(shape).copy_(x))
            emulated_cuda.l2_step_(*map(array, operands), rows_of(0.7, clean), eps.numpy(), 0.0, 1.0, 0, 0)
            assert_same_bits(operands[0], expected)
            assert_same_bits(ops.l2_step_(clean.clone(), grad, clean, 0.7, eps), expected)


class TestL2Meaning:
    def test_a_step_inside_the_ball_has_its_length_and_direction(self, device: torch.device) -> None:
        clean = torch.full((3, 4, 50), 0.5, dtype=torch.float64, device=device)
        grad = (
            torch.randn_like(clean)
            * torch.tensor([1e-200, 1.0, 1e200], dtype=clean.dtype, device=device)[:, None, None]
        )
        adv = ops.l2_step_(clean.clone(), grad, clean, 0.25, 1.0)
        scaled = grad / grad.flatten(1).abs().amax(1)[:, None, None]
        expected = 0.25 * scaled / scaled.flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(adv - clean, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_step_out_of_the_ball_ends_on_its_surface(self, dtype: torch.dtype) -> None:
        clean = images((6, 3, 64, 64), dtype, (-1, 1), 4)
        grad = torch.randn(clean.shape).to(dtype)
        eps = torch.tensor([0.0, 1e-3, 0.1, 3.0, 40.0, 500.0], dtype=torch.float64)
        adv = ops.l2_step_(clean.clone(), grad, clean, 1000.0, eps, (-100, 100))
        assert_in_l2_ball(adv, clean, eps, (-100, 100))
        if dtype in (torch.float32, torch.float64):
            assert (l2_length(adv, clean)[3:] >= eps[3:] * (1 - 2.0**-17)).all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_rounding_leads_out_of_the_ball(self, dtype: torch.dtype) -> None:
        """Images of ImageNet's size, along trajectories that end on the surface."""
        clean = images((4, 3, 224, 224), dtype, (0, 1), 6)
        eps = torch.tensor([0.1, 0.5, 2.0, 30.0], dtype=torch.float64)
        adv = clean.clone()
        for _ in range(4):
            ops.l2_step_(adv, torch.randn(clean.shape).to(dtype), clean, eps / 2, eps)
            assert_in_l2_ball(adv, clean, eps, (0, 1))
        assert not torch.equal(adv, clean)

    def test_the_peers_rounding_leaves_the_ball(self) -> None:
        """So that the test above could fail."""
        clean = images((20, 3, 32, 32), torch.float32, (0, 1), 6).clamp(0.4, 0.6)
        grad, eps = torch.randn(clean.shape), torch.linspace(0.1, 2.0, 20, dtype=torch.float64)
        peers = ops.l2_step_(clean.clone(), grad, clean, 9.0, eps, projection="project_clip")
        assert (l2_length(peers, clean) > eps).any()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("exponent", [-3000, -40, 0, 10, 3000])
    def test_the_gradient_s_size_does_not_matter(self, dtype: torch.dtype, exponent: int) -> None:
        """Down to the smallest number there is and up to the largest: the same bits."""
        finfo = torch.finfo(dtype)
        smallest = round(math.log2(finfo.smallest_normal * finfo.eps))
        power = min(max(exponent, smallest), round(math.log2(finfo.max)) - 1)
        signs = torch.where(torch.rand(3, 700) < 0.5, -1.0, 1.0).double()
        clean, adv = images((3, 700), dtype, (0, 1), 1), images((3, 700), dtype, (0, 1), 2)
        expected = ops.l2_step_(adv.clone(), signs.to(dtype), clean, 1.0, 2.0)
        grad = torch.ldexp(signs, torch.tensor(power)).to(dtype)
        assert grad.isfinite().all()
        assert (grad != 0).all()
        assert_same_bits(ops.l2_step_(adv.clone(), grad, clean, 1.0, 2.0), expected)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_step_of_zero_projects(self, dtype: torch.dtype, simd_level: str) -> None:
        clean, adv = images((5, 900), dtype, (0, 1), 1), images((5, 900), dtype, (0, 1), 2)
        eps = torch.tensor([0.0, 1e-3, 1.0, 8.0, math.inf], dtype=torch.float64)
        projected = ops.l2_step_(adv.clone(), gradients(adv.shape, dtype, 3), clean, 0.0, eps)
        assert_in_l2_ball(projected, clean, eps, (0, 1))
        assert_same_bits(projected[0], clean[0])
        torch.testing.assert_close(projected[4], adv[4])
        way = (adv.double() - clean.double())[3]
        expected = clean[3].double() + way * (8 / way.norm())
        tolerance = 2 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-11
        torch.testing.assert_close(projected[3].double(), expected, rtol=1e-5 + tolerance, atol=tolerance)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("count", [2, 50, 5000])
    def test_lengths_that_cancel_are_measured(self, count: int, dtype: torch.dtype) -> None:
        """From far outside a tiny ball back to about its centre: the sums alone cannot tell what is left."""
        start = torch.rand(300, count, dtype=torch.float64).to(dtype)
        back = (start.double() * -(torch.rand(300, 1) + 0.1)).to(dtype)
        eps = torch.finfo(dtype).eps * 10 ** (torch.rand(300, dtype=torch.float64) * 9 - 5)
        clean, length = torch.zeros_like(start), start.double().norm(dim=1)
        end = ops.l2_step_(start.clone(), back, clean, length, eps, (-1, 1))
        assert_in_l2_ball(end, clean, eps, (-1, 1))
        assert (end != 0).any()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_the_margin_pays_for_rounding(self, dtype: torch.dtype) -> None:
        """Around zero nothing rounds inwards: only the margin keeps the recomputed norm under eps."""
        clean, grad = torch.zeros(300, 3000, dtype=dtype), torch.randn(300, 3000).to(dtype)
        eps = torch.rand(300, dtype=torch.float64) * 3
        end = ops.l2_step_(clean.clone(), grad, clean, 10.0, eps, (-1, 1))
        assert_in_l2_ball(end, clean, eps, (-1, 1))
        if dtype in (torch.float32, torch.float64):
            assert (l2_length(end, clean) >= eps * (1 - 2.0**-17)).all()

    def test_gradients_without_direction_move_nothing(self, device: torch.device) -> None:
        clean = torch.rand(3, 40, device=device)
        grad = torch.zeros_like(clean)
        grad[1] = math.nan
        grad[2, ::2] = -math.inf
        for floor in NORM_FLOORS:
            adv = ops.l2_step_(clean.clone(), grad, clean, 1.0, 1.0, floor=floor)
            assert_same_bits(adv.cpu(), clean.cpu())

    def test_non_finite_elements_count_as_zero(self, device: torch.device) -> None:
        clean, grad = torch.full((1, 6), 0.5, device=device), torch.zeros(1, 6, device=device)
        grad[0] = torch.tensor([3.0, math.nan, math.inf, -4.0, -math.inf, 0.0])
        adv = ops.l2_step_(clean.clone(), grad, clean, 0.25, 1.0)
        torch.testing.assert_close(adv.cpu(), torch.tensor([[0.65, 0.5, 0.5, 0.3, 0.5, 0.5]]))

    def test_nan_in_one_element_stays_there(self) -> None:
        clean = torch.rand(3, 50)
        adv = clean.clone()
        adv[1, 7] = math.nan
        ops.l2_step_(adv, torch.randn(3, 50), clean, 0.1, 0.05)
        assert adv.isnan().nonzero().tolist() == [[1, 7]]
        adv[1, 7] = clean[1, 7]
        assert_in_l2_ball(adv, clean, 0.05, (0, 1))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_infinite_step_and_ball(self, dtype: torch.dtype) -> None:
        clean, grad = torch.rand(2, 30).to(dtype), torch.randn(2, 30).to(dtype)
        corner = ops.l2_step_(clean.clone(), grad, clean, math.inf, math.inf)
        assert_same_bits(corner, (grad > 0).to(dtype))
        near = ops.l2_step_(clean.clone(), grad, clean, 1e10, 0.5, (-1, 2))
        for step in (1e100, 1e300, math.inf):
            far = ops.l2_step_(clean.clone(), grad, clean, step, 0.5, (-1, 2))
            assert_in_l2_ball(far, clean, 0.5, (-1, 2))
            torch.testing.assert_close(far, near)
            assert l2_length(far, clean).min() > 0.49

    def test_a_row_does_not_depend_on_its_neighbours_or_its_layout(self) -> None:
        clean, grad = torch.rand(7, 3, 5, 5), torch.randn(7, 3, 5, 5)
        eps = torch.rand(7, dtype=torch.float64)
        step = ops.l2_step_(clean.clone(), grad, clean, 0.4, eps)
        order = torch.tensor([4, 0, 6])
        alone = ops.l2_step_(clean[order].clone(), grad[order], clean[order], 0.4, eps[order])
        assert_same_bits(alone, step[order])
        for name, other in layouts(grad).items():
            assert_same_bits(ops.l2_step_(clean.clone(), other, clean, 0.4, eps), step), name

    def test_clean_may_be_adv_itself(self) -> None:
        x, grad = torch.rand(3, 1000), torch.randn(3, 1000)
        expected = ops.l2_step_(x.clone(), grad, x, 0.1, 0.1)
        same = x.clone()
        assert_same_bits(ops.l2_step_(same, grad, same, 0.1, 0.1), expected)

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)])
    def test_empty(self, shape: tuple[int, ...], device: torch.device) -> None:
        adv = torch.empty(shape, device=device)
        trace = empty_trace(adv).to(device)
        assert ops.l2_step_(adv, adv.clone(), adv.clone(), 0.1, 0.1, trace=trace).shape == shape
        assert trace.tolist() == [[0, 0, 0]] * shape[0]
        assert ops.l2_step_(adv, adv.clone(), adv.clone(), 0.1, 0.1).shape == shape
        emulated = empty_trace(adv)
        x = [adv.cpu().numpy(), adv.cpu().numpy().copy(), adv.cpu().numpy().copy()]
        emulated_cuda.l2_step_(*x, 0.1, 0.1, 0.0, 1.0, 0, 0, emulated.numpy())
        assert emulated.tolist() == trace.tolist()


class TestL2AsThePeersWriteIt:
    """Their eager float32 expressions, over gradients of ordinary, tiny and no size."""

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        clean = images((6, 3, 16, 16), torch.float32, (0, 1), 1)
        adv = (clean + 0.02 * torch.randn(clean.shape)).clamp(0, 1)
        size = torch.tensor([1.0, 1e-4, 1e-9, 1e-11, 1e-13, 0.0])[:, None, None, None]
        return adv, torch.randn(clean.shape) * size, clean

    @pytest.mark.parametrize("eps", [0.3, 0.8, 5.0])
    @pytest.mark.parametrize(("projection", "floor"), [("project_clip", f) for f in NORM_FLOORS[1:4]])
    def test_scaled_then_clipped(self, eps: float, projection: str, floor: str) -> None:
        adv, grad, clean = self.operands()
        norm = grad.flatten(1).norm(dim=1)[:, None, None, None]
        norm = {"torchattacks": norm + 1e-10, "foolbox": norm.clamp(min=1e-12), "autoattack": norm + 1e-12}[
            floor
        ]
        delta = adv + 0.5 * (grad / norm) - clean
        length = delta.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
        expected = (clean + delta * (eps / length).clamp(max=1)).clamp(0, 1)
        got = ops.l2_step_(adv.clone(), grad, clean, 0.5, eps, projection=projection, floor=floor)
        assert (got - expected).abs().max() <= 1e-6

    @pytest.mark.parametrize("eps", [0.3, 0.8, 5.0])
    @pytest.mark.parametrize("floor", ["none", "cleverhans"])
    def test_clipped_then_scaled(self, eps: float, floor: str) -> None:
        adv, grad, clean = self.operands()
        squares = grad.square().flatten(1).sum(1)[:, None, None, None]
        if floor == "cleverhans":
            direction = grad / squares.clamp(min=1e-12).sqrt()
        else:
            norm = grad.flatten(1).norm(dim=1)[:, None, None, None]
            direction = torch.where(norm == 0, 0.0, grad / norm)
        delta = (adv + 0.5 * direction).clamp(0, 1) - clean
        length = delta.flatten(1).norm(dim=1)[:, None, None, None].clamp(min=1e-12)
        expected = (clean + delta * (eps / length).clamp(max=1)).clamp(0, 1)
        got = ops.l2_step_(adv.clone(), grad, clean, 0.5, eps, projection="clip_project", floor=floor)
        assert (got - expected).abs().max() <= 1e-6
        other = ops.l2_step_(adv.clone(), grad, clean, 0.5, eps, projection="project_clip", floor=floor)
        if eps == 0.3:
            assert (got - other).abs().max() > 1e-5


@dataclass(frozen=True)
class MomentumSample:
    step: StepSample
    momentum: Tensor
    decay: float
    options: dict[str, Any]


@st.composite
def momentum_samples(draw: st.DrawFn) -> MomentumSample:
    sample = draw(step_samples())
    size = draw(st.sampled_from([1.0, 1.0, 1.0, 1e-33, 1e-44, 1e35, 1e-310, 1e305]))
    grad = layouts_like(sample.grad).copy_((sample.grad.double() * size).to(sample.grad.dtype))
    choices = layouts(
        gradients(grad.shape, grad.dtype, draw(st.integers(0, 2**31))).nan_to_num(1.0, 2.0, -3.0)
    )
    momentum = choices[draw(st.sampled_from(sorted(choices)))]
    options = {
        "normalize": draw(st.sampled_from(NORMALIZATIONS)),
        "projection": draw(st.sampled_from(["exact", "difference"])),
        "norm": None,
    }
    if draw(st.integers(0, 3)) == 0:
        norms = st.sampled_from([1.0, 0.37, 1e-3, 0.0, math.nan, math.inf, -1.0, 1e300])
        options["norm"] = torch.tensor([draw(norms) for _ in range(len(grad))], dtype=torch.float64)
    decay = draw(st.sampled_from([1.0, 0.0, 0.9, 2.0]))
    return MomentumSample(replace(sample, grad=grad), momentum, decay, options)


def momentum_through_every_door(sample: MomentumSample) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(adv, momentum, trace) of each SIMD level, then of the numpy door and of emulated CUDA."""
    step, found = sample.step, []
    for level in supported_levels():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BRITTLE_SIMD", level)
            adv, momentum = layouts_like(step.adv), layouts_like(sample.momentum)
            trace = empty_trace(adv)
            operands = adv, step.grad, momentum, step.clean
            numbers = step.step_size, step.eps, sample.decay, step.bounds
            ops.momentum_step_(*operands, *numbers, **sample.options, trace=trace)
        found.append((adv, momentum, trace))
    norm = sample.options["norm"]
    options = {**sample.options, "norm": None if norm is None else norm.numpy()}
    amounts = [a.numpy() if isinstance(a, Tensor) else a for a in (step.step_size, step.eps)]
    adv, momentum, trace = layouts_like(step.adv), layouts_like(sample.momentum), empty_trace(step.adv)
    arrays = [array(x) for x in (adv, step.grad, momentum, step.clean)]
    brittle.numpy.momentum_step_(*arrays, *amounts, sample.decay, step.bounds, **options, trace=trace.numpy())
    found.append((adv, momentum, trace))
    adv, momentum, trace = layouts_like(step.adv), layouts_like(sample.momentum), empty_trace(step.adv)
    arrays = [array(x) for x in (adv, step.grad, momentum, step.clean)]
    rows = [rows_of(n, adv) for n in amounts]
    mode, exact = NORMALIZATIONS.index(options["normalize"]), options["projection"] == "exact"
    emulated_cuda.momentum_step_(
        *arrays, *rows, sample.decay, *step.bounds, mode, exact, options["norm"], trace.numpy()
    )
    found.append((adv, momentum, trace))
    return found


class TestMomentumAgainstReference:
    @given(sample=momentum_samples())
    @settings(max_examples=100)
    def test_the_same_bits_at_every_level_and_door(self, sample: MomentumSample) -> None:
        step = sample.step
        adv, momentum = layouts_like(step.adv), layouts_like(sample.momentum)
        trace = empty_trace(adv)
        operands = adv, step.grad, momentum, step.clean
        numbers = step.step_size, step.eps, sample.decay, step.bounds
        reference.momentum_step_(*operands, *numbers, **sample.options, trace=trace)
        for found in momentum_through_every_door(sample):
            assert_same_bits(found[0], adv)
            assert_same_bits(found[1], momentum)
            assert found[2].tolist() == trace.tolist()
        assert not adv.isnan().any()
        if sample.options["projection"] == "exact":
            assert ((adv - step.clean).abs().double() <= column(step.eps, adv)).all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    def test_large_rows_on_several_threads(self, dtype: torch.dtype, normalize: str) -> None:
        shape = (5, 3, 97, 331)
        clean, grad = images(shape, dtype, (0, 1), 1), gradients(shape, dtype, 3)
        momentum = gradients(shape, dtype, 4).nan_to_num(0.0, 1.0, -1.0)
        expected, kept = clean.clone(), momentum.clone()
        reference.momentum_step_(expected, grad, kept, clean, 0.1, 0.3, 0.9, normalize=normalize)
        threads = torch.get_num_threads()
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                adv, other = clean.clone(), momentum.clone()
                ops.momentum_step_(adv, grad, other, clean, 0.1, 0.3, 0.9, normalize=normalize)
                assert_same_bits(adv, expected)
                assert_same_bits(other, kept)
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("count", [1, 3, 1023, 1025, 2048, 2049, 4096, 4097, 9001])
    def test_row_lengths_around_lanes_and_registers(self, count: int, dtype: torch.dtype) -> None:
        for rows, offset in [(1, 0), (11, 0), (3, 1)]:
            shape = (rows, count)
            clean, grad = images(shape, dtype, (0, 1), count), gradients(shape, dtype, 1)
            expected, kept = clean.clone(), torch.zeros_like(clean)
            reference.momentum_step_(expected, grad, kept, clean, 0.7, 0.3)
            operands = []
            for x in (clean, grad, torch.zeros_like(clean), clean):
                operands.append(torch.zeros(x.numel() + offset, dtype=dtype)[offset:].view(shape).copy_(x))
            emulated_cuda.momentum_step_(*map(array, operands), 0.7, 0.3, 1.0, 0.0, 1.0, 0, True)
            assert_same_bits(operands[0], expected)
            assert_same_bits(operands[2], kept)


class TestMomentumMeaning:
    def test_three_steps_of_the_paper_s_recursion(self, device: torch.device) -> None:
        clean = torch.full((2, 3, 4), 0.5, dtype=torch.float64, device=device)
        adv, momentum = clean.clone(), torch.zeros_like(clean)
        expected, total = clean.clone(), torch.zeros_like(clean)
        for _ in range(3):
            grad = torch.randn_like(clean)
            total = 0.9 * total + grad / grad.abs().flatten(1).sum(1)[:, None, None]
            expected = (expected + 0.1 * total.sign()).clamp(0.25, 0.75)
            ops.momentum_step_(adv, grad, momentum, clean, 0.1, 0.25, 0.9)
            torch.testing.assert_close(momentum, total, rtol=1e-14, atol=1e-16)
            torch.testing.assert_close(adv, expected, rtol=1e-14, atol=0)

    def test_torchattacks_bits_by_its_own_mean(self) -> None:
        """Its eager float32 expressions, over five steps."""
        clean = images((6, 3, 16, 16), torch.float32, (0, 1), 1)
        adv, momentum = clean.clone(), torch.zeros_like(clean)
        peer_adv, peer_momentum = clean.clone(), torch.zeros_like(clean)
        for _ in range(5):
            grad = torch.randn(clean.shape) * torch.rand(6, 1, 1, 1) ** 8
            mean = torch.mean(torch.abs(grad), dim=(1, 2, 3), keepdim=True)
            peer_momentum = grad / mean + peer_momentum * 0.7
            moved = peer_adv + 2 / 255 * peer_momentum.sign()
            delta = torch.clamp(moved - clean, min=-8 / 255, max=8 / 255)
            peer_adv = torch.clamp(clean + delta, min=0, max=1)
            ops.momentum_step_(
                adv,
                grad,
                momentum,
                clean,
                2 / 255,
                8 / 255,
                0.7,
                normalize="mean",
                norm=mean.flatten().double(),
                projection="difference",
            )
            assert_same_bits(momentum, peer_momentum)
            assert_same_bits(adv, peer_adv)

    def test_mean_is_l1_over_the_number_of_elements(self) -> None:
        clean, grad = torch.rand(3, 64), torch.randn(3, 64)
        by_sum, by_mean = torch.zeros_like(clean), torch.zeros_like(clean)
        ops.momentum_step_(clean.clone(), grad, by_sum, clean, 0.1, 0.1)
        ops.momentum_step_(clean.clone(), grad, by_mean, clean, 0.1, 0.1, normalize="mean")
        assert_same_bits(by_mean, by_sum * 64)

    def test_a_zero_gradient_does_not_poison_the_momentum(self, device: torch.device) -> None:
        """Where the peers divide by zero, and the sample never moves again."""
        clean = torch.full((3, 8), 0.5, device=device)
        momentum = torch.full_like(clean, -2.0)
        grad = torch.zeros_like(clean)
        grad[1] = math.nan
        grad[2] = torch.tensor([1.0, -1.0, math.inf, math.nan, 2.0, 0.0, 0.0, 0.0])
        for normalize in NORMALIZATIONS:
            kept, adv = momentum.clone(), clean.clone()
            ops.momentum_step_(adv, grad, kept, clean, 0.25, 0.5, 0.5, normalize=normalize)
            assert kept[:2].tolist() == [[-1.0] * 8] * 2
            assert adv[:2].tolist() == [[0.25] * 8] * 2
            unit = {"l1": 0.25, "mean": 2.0, "sign": 1.0}[normalize]
            twice = unit if normalize == "sign" else 2 * unit
            added = [unit, -unit, 0.0, 0.0, twice, 0.0, 0.0, 0.0]
            assert kept[2].tolist() == [-1.0 + a for a in added]

    def test_clean_may_be_adv_itself(self) -> None:
        x, grad = torch.rand(3, 1000), torch.randn(3, 1000)
        expected = ops.momentum_step_(x.clone(), grad, torch.zeros_like(x), x, 0.1, 0.1)
        same = x.clone()
        assert_same_bits(ops.momentum_step_(same, grad, torch.zeros_like(x), same, 0.1, 0.1), expected)

    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        clean, grad, momentum = torch.rand(7, 3, 5, 5), torch.randn(7, 3, 5, 5), torch.randn(7, 3, 5, 5)
        kept = momentum.clone()
        step = ops.momentum_step_(clean.clone(), grad, kept, clean, 0.1, 0.1)
        order = torch.tensor([4, 0, 6])
        alone = momentum[order].clone()
        assert_same_bits(
            ops.momentum_step_(clean[order].clone(), grad[order], alone, clean[order], 0.1, 0.1), step[order]
        )
        assert_same_bits(alone, kept[order])

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)])
    def test_empty(self, shape: tuple[int, ...], device: torch.device) -> None:
        x = torch.empty(shape, device=device)
        trace = empty_trace(x).to(device)
        ops.momentum_step_(x, x.clone(), x.clone(), x.clone(), 0.1, 0.1, trace=trace)
        assert trace.tolist() == [[0, 0, 0]] * shape[0]
        ops.momentum_step_(x, x.clone(), x.clone(), x.clone(), 0.1, 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnTheGpu:
    @given(sample=momentum_samples())
    def test_momentum_step(self, sample: MomentumSample) -> None:
        (expected, kept, _), *_ = momentum_through_every_door(sample)
        step = sample.step
        move = [t.cuda() if isinstance(t, Tensor) else t for t in (step.step_size, step.eps)]
        norm = sample.options["norm"]
        options = {**sample.options, "norm": None if norm is None else norm.cuda()}
        adv, momentum, trace = step.adv.cuda(), sample.momentum.cuda(), empty_trace(step.adv).cuda()
        operands = adv, step.grad.cuda(), momentum, step.clean.cuda()
        ops.momentum_step_(*operands, *move, sample.decay, step.bounds, **options, trace=trace)
        assert_same_bits(adv.cpu(), expected)
        assert_same_bits(momentum.cpu(), kept)
        assert trace.tolist() == reference.step_trace(adv.cpu(), step.grad).tolist()

    @given(
        sample=row_samples(),
        projection=st.sampled_from(L2_PROJECTIONS),
        floor=st.sampled_from(NORM_FLOORS),
    )
    def test_l2_step(self, sample: StepSample, projection: str, floor: str) -> None:
        (expected, expected_trace), *_ = through_every_door(sample, projection, floor)
        move = [t.cuda() if isinstance(t, Tensor) else t for t in (sample.step_size, sample.eps)]
        adv, trace = sample.adv.cuda(), empty_trace(sample.adv).cuda()
        grad, clean = sample.grad.cuda(), sample.clean.cuda()
        ops.l2_step_(adv, grad, clean, *move, sample.bounds, projection=projection, floor=floor, trace=trace)
        assert_same_bits(adv.cpu(), expected)
        if adv.stride() == sample.adv.stride():
            assert trace.tolist() == expected_trace.tolist()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("count", [1, 1023, 1024, 3072, 4096, 4097, 150528])
    def test_row_lengths(self, count: int, dtype: torch.dtype) -> None:
        clean, adv = images((37, count), dtype, (0, 1), 1), images((37, count), dtype, (0, 1), 2)
        grad = gradients((37, count), dtype, 3)
        expected = ops.l2_step_(adv.clone(), grad, clean, 0.5, 2.0)
        got = ops.l2_step_(adv.cuda(), grad.cuda(), clean.cuda(), 0.5, 2.0)
        assert_same_bits(got.cpu(), expected)


class TestTorch:
    def calls(self, device: torch.device) -> list[tuple[object, tuple[object, ...]]]:
        x = torch.rand(3, 2, 5, 5, device=device)
        grad = torch.randn_like(x).contiguous(memory_format=torch.channels_last)
        rows = torch.rand(3, dtype=torch.float64, device=device)
        trace = torch.zeros(3, 3, dtype=torch.int64, device=device)
        brittle_ops = torch.ops.brittle
        return [
            (brittle_ops.l2_step_.default, (x.clone(), grad, x, 0.1, 0.5, 0.0, 1.0, 0, 0)),
            (brittle_ops.l2_step_.default, (x.clone(), grad, x, 0.1, 0.5, 0.0, 1.0, 2, 4, trace)),
            (brittle_ops.l2_step_.rows, (x.clone(), grad, x, rows, rows, 0.0, 1.0, 1, 1, trace)),
            (
                brittle_ops.momentum_step_.default,
                (x.clone(), grad, grad.clone(), x, 0.1, 0.5, 1.0, 0.0, 1.0, 0, True),
            ),
            (
                brittle_ops.momentum_step_.rows,
                (x.clone(), grad, grad.clone(), x, rows, rows, 0.9, 0.0, 1.0, 1, False, rows, trace),
            ),
        ]

    def test_opcheck(self, device: torch.device) -> None:
        for op, args in self.calls(device):
            torch.library.opcheck(op, args)  # type: ignore[arg-type]

    def test_compile_fullgraph(self, device: torch.device) -> None:
        def attack(x: Tensor, grad: Tensor, eps: Tensor) -> Tensor:
            adv = x.clone()
            trace = torch.zeros(4, 3, dtype=torch.int64, device=x.device)
            ops.l2_step_(adv, grad, x, 0.1, 0.3)
            ops.l2_step_(adv, grad, x, 0.1, eps, trace=trace)
            momentum = torch.zeros_like(x)
            ops.momentum_step_(adv, grad, momentum, x, 0.1, eps)
            ops.momentum_step_(adv, grad, momentum, x, 0.01, 0.3, norm=eps)
            return momentum + adv + trace[:, 1, None, None, None]

        x, grad = torch.rand(4, 3, 6, 6, device=device), torch.randn(4, 3, 6, 6, device=device)
        eps = torch.rand(4, dtype=torch.float64, device=device)
        compiled = torch.compile(attack, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(x, grad, eps).cpu(), attack(x, grad, eps).cpu())

    def test_autograd_notices_the_write(self) -> None:
        weight = torch.rand(1, 3, requires_grad=True)
        adv = torch.rand(1, 3)
        loss = (weight * adv).sum()
        ops.l2_step_(adv, torch.randn(1, 3), adv.clone(), 0.1, 0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestBadInput:
    def arguments(self, **changes: object) -> dict[str, object]:
        x = torch.rand(4, 3)
        return {"adv": x.clone(), "grad": x, "clean": x, "step_size": 0.1, "eps": 0.1, **changes}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"grad": torch.rand(4, 2)}, r"grad must have adv's shape \[4, 3\]; got \[4, 2\]"),
            ({"clean": torch.rand(3)}, r"clean must have adv's shape \[4, 3\]; got \[3\]"),
            ({"grad": torch.rand(4, 3).double()}, "grad must have adv's dtype float32; got float64"),
            ({"adv": torch.zeros(4, 3, dtype=torch.int64)}, "adv must be float32.*; got int64"),
            ({"adv": torch.tensor(0.5)}, r"adv must be \[N, ...\]; got \[\]"),
            ({"eps": -0.1}, "eps must be >= 0; got -0.1"),
            ({"eps": math.nan}, "eps must be >= 0; got nan"),
            ({"step_size": -1.0}, "step_size must be >= 0; got -1"),
            ({"eps": torch.rand(3)}, r"eps must be a scalar or \[N\]; got shape \[3\] for N = 4"),
            ({"eps": torch.tensor([0.1, 0.1, -2.0, 0.1])}, "eps must be >= 0; got -2 in row 2"),
            ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1, 0\)"),
            ({"adv": torch.rand(1, 3).expand(4, 3)}, "adv must not be expanded"),
            ({"trace": torch.zeros(4, 3)}, "trace must be int64; got float32"),
            ({"projection": "l2"}, "projection must be one of 'exact', 'project_clip', .*; got 'l2'"),
            ({"floor": "l2"}, "floor must be one of 'none', 'torchattacks', .*; got 'l2'"),
        ],
    )
    def test_l2_step(self, changes: dict[str, object], message: str) -> None:
        arguments = self.arguments(**changes)
        before = arguments["adv"].clone()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="l2_step_: " + message):
            ops.l2_step_(**arguments)  # type: ignore[arg-type]
        assert torch.equal(arguments["adv"], before)  # type: ignore[arg-type]
        as_arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises(ValueError, match="l2_step_: " + message.replace("not be expanded", ".*")):
            brittle.numpy.l2_step_(**as_arrays)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"grad": torch.rand(4, 2)}, r"grad must have adv's shape \[4, 3\]; got \[4, 2\]"),
            ({"momentum": torch.rand(3)}, r"momentum must have adv's shape \[4, 3\]; got \[3\]"),
            ({"momentum": torch.rand(4, 3).double()}, "momentum must have adv's dtype float32; got float64"),
            ({"momentum": torch.rand(1, 3).expand(4, 3)}, "momentum must not be expanded"),
            ({"clean": torch.rand(3)}, r"clean must have adv's shape \[4, 3\]; got \[3\]"),
            ({"adv": torch.rand(1, 3).expand(4, 3)}, "adv must not be expanded"),
            ({"eps": -0.1}, "eps must be >= 0; got -0.1"),
            ({"step_size": torch.tensor([0.1, -1.0, 0.1, 0.1])}, "step_size must be >= 0; got -1 in row 1"),
            ({"decay": -1.0}, "decay must be finite and >= 0; got -1"),
            ({"decay": math.inf}, "decay must be finite and >= 0; got inf"),
            ({"decay": math.nan}, "decay must be finite and >= 0; got nan"),
            ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1, 0\)"),
            ({"norm": torch.rand(3).double()}, r"norm must be \[N\]; got \[3\] for N = 4"),
            ({"norm": torch.rand(4)}, "norm must be float64; got float32"),
            ({"norm": torch.rand(8).double()[::2]}, "norm must be contiguous"),
            ({"trace": torch.zeros(4, 2, dtype=torch.int64)}, r"trace must be \[N, 3\]; got \[4, 2\]"),
            ({"normalize": "l2"}, "normalize must be one of 'l1', 'mean', 'sign'; got 'l2'"),
            ({"projection": "l2"}, "projection must be one of 'exact', 'difference'; got 'l2'"),
        ],
    )
    def test_momentum_step(self, changes: dict[str, object], message: str) -> None:
        arguments = {"momentum": torch.rand(4, 3), **self.arguments(**changes)}
        before = [arguments[name].clone() for name in ("adv", "momentum")]  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="momentum_step_: " + message):
            ops.momentum_step_(**arguments)  # type: ignore[arg-type]
        assert torch.equal(arguments["adv"], before[0])  # type: ignore[arg-type]
        assert torch.equal(arguments["momentum"], before[1])  # type: ignore[arg-type]
        as_arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises(ValueError, match="momentum_step_: " + message.replace("not be expanded", ".*")):
            brittle.numpy.momentum_step_(**as_arrays)  # type: ignore[arg-type]

    @pytest.mark.parametrize("modes", [(-1, 0), (3, 0), (0, -1), (0, 5)])
    def test_choices_out_of_range(self, modes: tuple[int, int]) -> None:
        x = torch.rand(2, 3)
        with pytest.raises(ValueError, match=r"l2_step_: (projection|floor) must be in \[0, [24]\]; got"):
            torch.ops.brittle.l2_step_(x, x.clone(), x.clone(), 0.1, 0.1, 0.0, 1.0, *modes)
