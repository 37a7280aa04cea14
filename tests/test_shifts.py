"""Natural shifts: closed forms, an independent implementation, and bits that owe nothing to the batch."""

import brittle
import numpy as np
import pytest
import torch
from brittle.evaluation import SEVERITIES
from brittle.evaluation.shifts import SHIFTS, apply_shift, blur, brightness, contrast, kinds_for
from scipy.ndimage import gaussian_filter
from torch import Tensor

SHAPES = [(5, 1, 8, 8), (4, 3, 32, 32), (2, 3, 224, 224), (3, 2, 7, 13), (2, 1, 2, 3)]
EVERY_KIND = {**SEVERITIES, **SHIFTS}


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("severity", [0, 4])
def test_blur_is_scipys(shape: tuple[int, ...], severity: int) -> None:
    x, sigma = images(*shape), kinds_for(shape)["blur"][severity]
    expected = gaussian_filter(x.double().numpy(), sigma, mode="reflect", truncate=4.0, axes=(2, 3))
    np.testing.assert_allclose(blur(x, sigma).numpy(), expected, rtol=0, atol=1e-7)


def test_blur_of_a_point_is_the_gaussian() -> None:
    x = torch.zeros(1, 1, 31, 31)
    x[0, 0, 15, 15] = 1
    bell = np.exp(-0.5 * (np.arange(-12, 13) / 3) ** 2)
    bell /= bell.sum()
    expected = np.zeros((31, 31))
    expected[3:28, 3:28] = np.outer(bell, bell)
    np.testing.assert_allclose(blur(x, 3.0)[0, 0].numpy(), expected, rtol=0, atol=1e-8)


def test_blur_keeps_constants_and_means() -> None:
    grey = torch.full((2, 3, 9, 6), 0.3)
    assert torch.allclose(blur(grey, 5.0), grey, atol=1e-7)
    x = images(2, 3, 9, 6)
    assert torch.allclose(blur(x, 5.0).mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    assert blur(x, 5.0).std() < 0.1 * x.std()
    assert torch.equal(blur(x, 0.0), x)


def test_brightness_raises_the_value_alone() -> None:
    pixels = torch.tensor([[0.5, 0.25, 0.125], [0.0, 0.0, 0.0], [0.8, 0.8, 0.8], [1e-40, 0.0, 0.0]])
    x = pixels.T.reshape(1, 3, 2, 2)
    expected = torch.tensor([[1.0, 0.5, 0.25], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.5, 0.0, 0.0]])
    assert torch.equal(brightness(x, 0.5), expected.T.reshape(1, 3, 2, 2))
    grey = images(3, 1, 8, 8)
    assert torch.equal(brightness(grey, 0.3), (grey + 0.3).clamp(max=1))


def test_contrast_shrinks_towards_each_channels_mean() -> None:
    x = torch.tensor([[[[0.0, 0.5], [0.5, 1.0]], [[0.25, 0.25], [0.25, 0.25]]]])
    expected = torch.tensor([[[[0.375, 0.5], [0.5, 0.625]], [[0.25, 0.25], [0.25, 0.25]]]])
    assert torch.equal(contrast(x, 0.25), expected)
    odd = images(3, 2, 7, 13)
    mean = odd.double().mean((2, 3), keepdim=True)
    assert torch.allclose(contrast(odd, 0.4).double(), (odd - mean) * 0.4 + mean, atol=1e-7)


def test_severities_are_the_benchmarks_and_show_on_small_images() -> None:
    assert SHIFTS["brightness"] == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert SHIFTS["contrast"] == (0.4, 0.3, 0.2, 0.1, 0.05)
    assert kinds_for((1, 3, 224, 300))["blur"] == SHIFTS["blur"] == (1, 2, 3, 4, 6)
    assert kinds_for((1, 3, 32, 32))["blur"] == (0.4, 0.6, 0.7, 0.8, 1.0)
    assert kinds_for((1, 3, 112, 112))["blur"] == (0.5, 1.0, 1.5, 2.0, 3.0)
    assert set(kinds_for((5, 1, 8, 8))) == set(EVERY_KIND)
    for shape in ((5, 20), (5, 3, 20), (5, 3, 1, 20)):
        assert kinds_for(shape) == SEVERITIES
    for shape in SHAPES[:3]:
        x = images(*shape)
        for kind in SHIFTS:
            changes = [(apply_shift(kind, s, x) - x).abs().mean().item() for s in kinds_for(shape)[kind]]
            assert changes[0] > 0.02, kind
            assert changes == sorted(changes), kind


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_sample_owes_nothing_to_its_batch(kind: str) -> None:
    for shape in ((9, 3, 33, 17), (6, 1, 80, 80)):
        x = images(*shape)
        ids, scale = torch.arange(len(x)) + 40, kinds_for(shape)[kind][2]
        together = apply_shift(kind, scale, x, ids, seed=3)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        alone = [apply_shift(kind, scale, x[i : i + 1], ids[i : i + 1], seed=3) for i in range(len(x))]
        torch.set_num_threads(threads)
        assert torch.equal(together, torch.cat(alone))
        strided = x.to(memory_format=torch.channels_last)
        assert torch.equal(apply_shift(kind, scale, strided, ids, seed=3), together)


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bounds_hold_in_any_units(kind: str, dtype: torch.dtype) -> None:
    x = images(4, 3, 8, 8).to(dtype)
    for bounds in ((0.0, 1.0), (-2.0, 3.0)):
        lo, hi = bounds
        given = (lo + (hi - lo) * x).clamp(lo, hi)
        before = given.clone()
        shifted = apply_shift(kind, kinds_for(x.shape)[kind][4], given, seed=1, bounds=bounds)
        assert shifted.dtype == dtype
        assert shifted.min() >= lo
        assert shifted.max() <= hi
        assert torch.equal(given, before)
        assert not torch.equal(shifted, given)
        usual = apply_shift(kind, kinds_for(x.shape)[kind][4], x, seed=1)
        near = ((shifted - lo) / (hi - lo) - usual).abs() < (0.05 if dtype == torch.bfloat16 else 1e-5)
        assert near.float().mean() > (0.97 if kind == "shot" else 0.999)  # a count may turn at a rounding


def test_noise_is_that_of_the_noise_module() -> None:
    x, ids = images(4, 3, 8, 8), torch.tensor([5, 1, 9, 2])
    expected = brittle.noise.shot(x, 12.0, seed=8, sample_ids=ids)
    assert torch.equal(apply_shift("shot", 12.0, x, ids, 8), expected)
    assert apply_shift("gaussian", 0.1, images(6, 20)).shape == (6, 20)
    for kind in SHIFTS:
        assert apply_shift(kind, 0.5, x[:0]).shape == (0, 3, 8, 8)


def test_errors() -> None:
    x = images(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"apply_shift: kind must be one of .*'contrast'; got 'fog'"):
        apply_shift("fog", 1.0, x)
    with pytest.raises(ValueError, match=r"blur: x must be .* \[N, C, H, W\]; got torch.float32 \[2, 3\]"):
        apply_shift("blur", 1.0, x[..., 0, 0])
    with pytest.raises(ValueError, match="blur: sigma must be finite and >= 0; got -1"):
        blur(x, -1.0)
    with pytest.raises(ValueError, match=r"brightness: amount must be in \[0, 1\]; got 1.5"):
        brightness(x, 1.5)
    with pytest.raises(ValueError, match=r"contrast: share must be in \[0, 1\]; got nan"):
        contrast(x, float("nan"))
    with pytest.raises(ValueError, match="apply_shift: scale must be"):
        apply_shift("gaussian", -1.0, x)
    with pytest.raises(ValueError, match=r"apply_shift: x must lie inside bounds \(0.0, 1.0\)"):
        apply_shift("blur", 1.0, x + 1)
