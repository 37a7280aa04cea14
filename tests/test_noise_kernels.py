"""The noise kernels against their definitions: bits, gradients, distributions, errors."""

import math
from typing import Any

import brittle.numpy
import emulated_cuda
import numpy as np
import pytest
import scipy.stats
import torch
from brittle import ops, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import DTYPES, StepSample, array, assert_same_bits, images, step_samples, tensor
from test_gradient_step import layouts_like, supported_levels
from torch import Tensor

KINDS = ops.KINDS

SCALES = {
    "salt_and_pepper": st.floats(0, 1),
    "dropout": st.floats(0, 0.99),
    "shot": st.sampled_from([0.5, 3.0, 12.0, 60.0, 255.0, 3000.0]),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[StepSample, dict[str, Any]]:
    sample = draw(step_samples())
    kind = draw(st.sampled_from(KINDS))
    scales = SCALES.get(kind, st.floats(0, 2))
    scale: float | Tensor = draw(scales)
    if draw(st.booleans()):
        scale = torch.tensor([draw(scales) for _ in range(len(sample.clean))], dtype=torch.float64)
    bounds = sample.bounds if kind == "salt_and_pepper" or draw(st.booleans()) else None
    seed = draw(st.integers(-(2**63), 2**63 - 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    ids = torch.randint(0, 2**62, (len(sample.clean),), generator=generator)
    settings = {"kind": kind, "scale": scale, "seed": seed, "sample_ids": ids, "bounds": bounds}
    return sample, {**settings, "draw": draw(st.integers(0, 2**32 - 1))}


def door(settings: dict[str, Any], rows: int) -> tuple[Any, ...]:
    """The arguments of the raw doors after x."""
    lo, hi = settings["bounds"] or (-math.inf, math.inf)
    scale = settings["scale"]
    scale = scale.numpy() if isinstance(scale, Tensor) else scale
    ids = settings["sample_ids"].numpy()
    return KINDS.index(settings["kind"]), scale, settings["seed"], ids, settings["draw"], lo, hi


class TestBits:
    @given(call=calls())
    @settings(max_examples=200)
    def test_every_door_and_level_gives_the_bits_of_the_definition(
        self, call: tuple[StepSample, dict[str, Any]]
    ) -> None:
        sample, options = call
        x = sample.clean
        expected = reference.noise(x, **options)
        for level in supported_levels():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BRITTLE_SIMD", level)
                assert_same_bits(ops.noise(x, **options), expected)
                assert_same_bits(ops.noise(x, **options, out=layouts_like(sample.adv)), expected)
        own = layouts_like(x)
        assert_same_bits(ops.noise(own, **options, out=own), expected)
        out = layouts_like(sample.adv)
        emulated_cuda.noise(None, array(x), *door(options, len(x)), array(out))
        assert_same_bits(out, expected)
        arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in options.items()}
        assert_same_bits(tensor(brittle.numpy.noise(array(x), **arrays)), expected)

    @given(call=calls())
    def test_gradient(self, call: tuple[StepSample, dict[str, Any]]) -> None:
        sample, options = call
        x = sample.clean.clone().requires_grad_()
        incoming = sample.grad.nan_to_num(0.5, 0.25, -0.25)
        (grad,) = torch.autograd.grad(ops.noise(x, **options), x, incoming)
        _, factor = reference.noise_and_factor(sample.clean, **options)
        wide = incoming.to(factor.dtype)
        expected = torch.where(factor == 0, 0.0, wide * factor).to(x.dtype)
        assert torch.equal(grad, expected)
        out = torch.full(x.shape, math.nan, dtype=x.dtype)
        emulated_cuda.noise(array(incoming), array(sample.clean), *door(options, len(x)), array(out))
        assert torch.equal(out, expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_batch_order_threads_and_layout_change_nothing(self, kind: str) -> None:
        x = images((9, 3, 61, 67), torch.float32, (0, 1), 3)
        ids = torch.arange(100, 109)
        scale = 60.0 if kind == "shot" else 0.3
        whole = ops.noise(x, kind, scale, 5, ids, 2, (0, 1))
        order = torch.tensor([8, 2, 5])
        assert_same_bits(ops.noise(x[order], kind, scale, 5, ids[order], 2, (0, 1)), whole[order])
        last = x.contiguous(memory_format=torch.channels_last)
        result = ops.noise(last, kind, scale, 5, ids, 2, (0, 1))
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert_same_bits(result, whole)
        threads = torch.get_num_threads()
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                assert_same_bits(ops.noise(x, kind, scale, 5, ids, 2, (0, 1)), whole)
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @given(call=calls())
    def test_on_the_gpu(self, call: tuple[StepSample, dict[str, Any]]) -> None:
        sample, options = call
        moved = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
        expected = ops.noise(sample.clean, **options)
        assert_same_bits(ops.noise(sample.clean.cuda(), **moved).cpu(), expected)
        x, y = sample.clean.clone().requires_grad_(), sample.clean.cuda().requires_grad_()
        incoming = sample.grad.nan_to_num(0.5, 0.25, -0.25)
        (here,) = torch.autograd.grad(ops.noise(x, **options), x, incoming)
        (there,) = torch.autograd.grad(ops.noise(y, **moved), y, incoming.cuda())
        assert torch.equal(here, there.cpu())


class TestInBall:
    @given(
        sample=step_samples(),
        norm=st.sampled_from([1, 2]),
        surface=st.booleans(),
        seed=st.integers(-(2**63), 2**63 - 1),
        draw=st.integers(0, 2**32 - 1),
    )
    def test_every_door_and_level_gives_the_bits_of_the_definition(
        self, sample: StepSample, norm: int, surface: bool, seed: int, draw: int
    ) -> None:
        x, eps = sample.clean, sample.eps
        if x.numel() == 0:
            return
        ids = torch.arange(50, 50 + len(x))
        options = (surface, seed, ids, draw, sample.bounds)
        expected = reference.in_ball(x, eps, norm, *options)
        for level in supported_levels():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BRITTLE_SIMD", level)
                assert_same_bits(ops.in_ball(x, eps, f"l{norm}", *options), expected)
        out = layouts_like(sample.adv)
        radii = eps.numpy() if isinstance(eps, Tensor) else eps
        raw = (surface, seed, ids.numpy(), draw)
        emulated_cuda.in_ball(array(x), radii, norm, *raw, *sample.bounds, array(out))
        assert_same_bits(out, expected)
        through_numpy = np.empty_like(array(x))
        brittle.numpy.in_ball(array(x), radii, f"l{norm}", *raw, sample.bounds, through_numpy)
        assert_same_bits(tensor(through_numpy), expected)

    @pytest.mark.parametrize("elements", [1, 1023, 1024, 1025, 20_000])
    @pytest.mark.parametrize("norm", [1, 2])
    def test_rows_of_many_tiles(self, norm: int, elements: int) -> None:
        x = torch.rand(3, elements)
        expected = reference.in_ball(x, 1.5, norm, seed=4)
        assert_same_bits(ops.in_ball(x, 1.5, f"l{norm}", seed=4), expected)
        out = torch.empty_like(x)
        infinite = -math.inf, math.inf
        emulated_cuda.in_ball(x.numpy(), 1.5, norm, False, 4, None, 0, *infinite, out.numpy())
        assert_same_bits(out, expected)

    @pytest.mark.parametrize("dimensions", [1, 2, 10, 3000])
    @pytest.mark.parametrize("norm", ["l1", "l2"])
    def test_points_are_uniform_in_the_ball(self, norm: str, dimensions: int) -> None:
        rows = 20_000 if dimensions <= 10 else 400
        x = torch.zeros(rows, dimensions, dtype=torch.float64)
        order = int(norm[1])
        lengths = ops.in_ball(x, 2.0, norm, seed=3).norm(order, 1) / 2
        assert (lengths <= 1).all()
        # A uniform point's radius to the power of the dimension is uniform on [0, 1].
        powers = (lengths / (1 - 2.0**-20)) ** dimensions
        assert scipy.stats.kstest(powers.numpy(), "uniform").pvalue > 1e-3
        shell = ops.in_ball(x, 2.0, norm, surface=True, seed=3)
        assert torch.allclose(shell.norm(order, 1), torch.tensor(2.0).double(), rtol=2e-6)
        if dimensions > 1:
            # No direction is preferred: every coordinate is as often positive as negative.
            signs = (shell > 0).double().mean(0)
            assert (abs(signs - 0.5) < 6 * 0.5 / rows**0.5).all()
        if dimensions == 2 and norm == "l2":
            angle = torch.atan2(shell[:, 0], shell[:, 1]) / (2 * math.pi) + 0.5
            assert scipy.stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
    def test_on_the_gpu(self, norm: str) -> None:
        x, eps = torch.rand(7, 3, 41, 29), torch.rand(7, dtype=torch.float64)
        for surface in (False, True) if norm != "linf" else (False,):
            expected = ops.in_ball(x, eps, norm, surface, 5, bounds=(0, 1))
            got = ops.in_ball(x.cuda(), eps.cuda(), norm, surface, 5, bounds=(0, 1))
            assert_same_bits(got.cpu(), expected)

    @pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
    def test_distance_in_single_precision(self, norm: str) -> None:
        x = torch.rand(64, 3, 32, 32)
        for surface in (False, True) if norm != "linf" else (False,):
            point = ops.in_ball(x, 0.5, norm, surface, 1, bounds=(0, 1))
            order = {"l1": 1, "l2": 2, "linf": math.inf}[norm]
            # In L1 the rounding errors of 3072 elements add up to a few millionths.
            slack = 1 + 1e-5 if norm == "l1" else 1
            assert ((point - x).flatten(1).double().norm(order, 1) <= 0.5 * slack).all()
            assert point.min() >= 0
            assert point.max() <= 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"norm": "l3"}, "norm must be 'linf', 'l2' or 'l1'; got 'l3'"),
            ({"norm": "linf", "surface": True}, "surface must be False for norm 'linf'"),
            ({"eps": -1.0}, "eps must be finite and >= 0; got -1"),
            ({"eps": torch.tensor([0.1, math.inf, 0.1])}, "eps must be finite and >= 0; got inf in row 1"),
            ({"eps": math.inf}, "eps must be finite and >= 0; got inf"),
            ({"seed": 2**64}, "seed must fit 64 bits"),
            ({"sample_ids": torch.arange(2)}, r"sample_ids must be \[N\]; got \[2\] for N = 3"),
        ],
    )
    def test_bad_input(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"in_ball: {message}"):
            ops.in_ball(**{"x": torch.rand(3, 4), "eps": 0.1, "norm": "l2", **changes})


class TestDistributions:
    N = 2_000_000

    def drawn(self, kind: str, x: float, scale: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        base = torch.full((20, self.N // 20), x, dtype=torch.float64)
        return ops.noise(base, kind, scale, seed=11).flatten().numpy()

    @pytest.mark.parametrize(
        ("kind", "distribution"),
        [
            ("gaussian", scipy.stats.norm()),
            ("uniform", scipy.stats.uniform(-1, 2)),
            ("laplace", scipy.stats.laplace()),
        ],
    )
    def test_continuous_kinds(self, kind: str, distribution: Any) -> None:
        values = self.drawn(kind, 0.0, 1.0)
        assert scipy.stats.kstest(values, distribution.cdf).pvalue > 1e-3
        mean, variance = distribution.stats("mv")
        assert abs(values.mean() - mean) < 5 * math.sqrt(variance / self.N)
        fourth = distribution.moment(4)
        assert abs((values**2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / self.N)

    def test_speckle_is_relative(self) -> None:
        values = self.drawn("speckle", 0.5, 0.2)
        assert scipy.stats.kstest(values, scipy.stats.norm(0.5, 0.1).cdf).pvalue > 1e-3

    @pytest.mark.parametrize("rate", [0.01, 0.9, 3.0, 9.99, 10.0, 10.5, 60.0, 255.3, 10_000.7])
    def test_poisson_numbers(self, rate: float) -> None:
        counts = self.drawn("shot", rate, 1.0)
        assert (counts == counts.round()).all()
        distribution = scipy.stats.poisson(rate)
        lo, hi = int(distribution.ppf(1e-5)), int(distribution.ppf(1 - 1e-5))
        observed = np.array(
            [(counts <= lo).sum(), *((counts == k).sum() for k in range(lo + 1, hi)), (counts >= hi).sum()]
        )
        expected = np.array(
            [distribution.cdf(lo), *distribution.pmf(range(lo + 1, hi)), distribution.sf(hi - 1)]
        )
        keep = expected * self.N > 5
        if keep.sum() > 1:
            observed = np.append(observed[keep], observed[~keep].sum())
            expected = np.append(expected[keep], expected[~keep].sum()) * self.N
            positive = expected > 0
            statistic = ((observed - expected)[positive] ** 2 / expected[positive]).sum()
            assert scipy.stats.chi2(positive.sum() - 1).sf(statistic) > 1e-3
        assert abs(counts.mean() - rate) < 5 * math.sqrt(rate / self.N)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_shot_noise_ends_for_any_value(self, dtype: torch.dtype) -> None:
        """An infinite or enormous mean once searched for ever."""
        x = torch.tensor([[math.inf, 1e30, 2.0**26, 0.5, 0.0, -1.0, -math.inf, math.nan]], dtype=dtype)
        leaf = x.clone().requires_grad_()
        noisy = ops.noise(leaf, "shot", 64.0)
        assert_same_bits(noisy.detach(), reference.noise(x, "shot", 64.0))
        assert noisy[0, 0] == math.inf
        assert torch.allclose(noisy[0, 1:3], x[0, 1:3])
        assert noisy[0, 4:7].tolist() == [0, 0, 0]
        assert noisy[0, 7].isnan()
        torch.autograd.grad(noisy.nan_to_num().sum(), leaf)
        out = torch.full_like(x, -5)
        infinite = -math.inf, math.inf
        emulated_cuda.noise(None, x.numpy(), 4, 64.0, 0, None, 0, *infinite, out.numpy())
        assert_same_bits(out, noisy.detach())

    @pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 1.0])
    def test_salt_and_pepper_amounts(self, amount: float) -> None:
        x = torch.full((20, self.N // 20), 0.5)
        values = ops.noise(x, "salt_and_pepper", amount, seed=1, bounds=(0.25, 2.0))
        slack = 5 * math.sqrt(0.25 / self.N)
        assert abs((values == 0.25).double().mean() - amount / 2) <= slack
        assert abs((values == 2.0).double().mean() - amount / 2) <= slack
        assert ((values == 0.5) | (values == 0.25) | (values == 2.0)).all()

    def test_dropout_keeps_the_mean(self) -> None:
        values = ops.noise(torch.ones(20, self.N // 20), "dropout", 0.3, seed=1)
        assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
        assert abs((values == 0).double().mean() - 0.3) < 5 * math.sqrt(0.21 / self.N)


class TestTorch:
    @pytest.mark.parametrize("kind", KINDS)
    def test_opcheck(self, kind: str, device: torch.device) -> None:
        x = torch.rand(3, 2, 5, device=device).contiguous().requires_grad_()
        rows, ids = torch.full((3,), 0.5, dtype=torch.float64, device=device), None
        arguments = (KINDS.index(kind), 0.0, rows, 7, ids, 0, 0.0, 1.0)
        torch.library.opcheck(torch.ops.brittle.noise.default, (x, *arguments))
        plain = x.detach()
        torch.library.opcheck(torch.ops.brittle.noise_out.default, (plain, *arguments, plain.clone()))
        torch.library.opcheck(torch.ops.brittle.noise_backward.default, (plain, plain, *arguments))

    def test_compile_fullgraph_with_gradients(self, device: torch.device) -> None:
        def model(x: Tensor) -> Tensor:
            return (ops.noise(x, "speckle", 0.2, seed=3, bounds=(0, 1)) ** 2).sum()

        x = torch.rand(4, 3, 6, 6, device=device, requires_grad=True)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        (expected,) = torch.autograd.grad(model(x), x)
        (got,) = torch.autograd.grad(compiled(x), x)
        assert torch.equal(got, expected)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_empty(self, dtype: torch.dtype) -> None:
        for shape in [(0, 3), (3, 0)]:
            assert ops.noise(torch.empty(shape, dtype=dtype), "gaussian", 1.0).shape == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "pink"}, "kind must be one of gaussian, .*; got 'pink'"),
        ({"scale": -0.1}, "scale must be >= 0; got -0.1"),
        ({"scale": math.nan}, "scale must be >= 0; got nan"),
        ({"scale": math.inf}, "scale must be finite and >= 0; got inf"),
        ({"scale": torch.tensor([0.1, -1.0, 0.1])}, "scale must be >= 0; got -1 in row 1"),
        ({"scale": torch.rand(2)}, r"scale must be a scalar or \[N\]; got shape \[2\] for N = 3"),
        ({"kind": "dropout", "scale": 1.0}, r"scale must be in \[0, 1\); got 1"),
        ({"kind": "shot", "scale": 0.0}, r"scale must be in \(0, 2\^24\]; got 0"),
        ({"kind": "salt_and_pepper", "scale": 1.5, "bounds": (0, 1)}, r"scale must be in \[0, 1\]; got 1.5"),
        ({"kind": "salt_and_pepper"}, "bounds must be finite for salt and pepper"),
        ({"sample_ids": torch.arange(2)}, r"sample_ids must be \[N\]; got \[2\] for N = 3"),
        ({"sample_ids": torch.arange(3).int()}, "sample_ids must be int64; got int32"),
        ({"sample_ids": torch.tensor([0, -1, 2])}, "sample_ids must be >= 0; got -1 in row 1"),
        ({"seed": 2**64}, "seed must fit 64 bits; got 18446744073709551616"),
        ({"draw": -1}, r"draw must be in \[0, 2\^32\); got -1"),
        ({"x": torch.zeros(3, 4, dtype=torch.uint8)}, "x must be float32.*; got uint8"),
        ({"x": torch.tensor(1.0)}, r"x must be \[N, ...\]; got \[\]"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(lo, hi\) with lo < hi; got \(1, 0\)"),
        ({"out": torch.empty(3, 5)}, r"out must have x's shape \[3, 4\]; got \[3, 5\]"),
        ({"out": torch.empty(3, 4).double()}, "out must have x's dtype float32; got float64"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.rand(3, 4), "kind": "gaussian", "scale": 0.1, **changes}
    with pytest.raises(ValueError, match=f"noise: {message}"):
        ops.noise(**arguments)
