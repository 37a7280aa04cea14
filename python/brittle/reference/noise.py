"""Every kind of noise as a definition, in eager float32 (and float64) operations, one rounding each."""

import math

import torch
from torch import Tensor

from brittle.reference.philox import philox4x32, sample_words

_LOG_POLYNOMIAL = (
    "0x1.852b3p-4",
    "-0x1.22da7p-3",
    "0x1.2bf3dap-3",
    "-0x1.53a11p-3",
    "0x1.995172p-3",
    "-0x1.0002f6p-2",
    "0x1.555584p-2",
)
_SQRT_HALF = 0x3F3504F3


def negative_log(words: Tensor) -> Tensor:
    """``-ln((2j + 1) / 2**31)`` for the odd number made of each word's lower 31 bits, float32."""
    odd = ((words & 0x7FFFFFFF) | 1).to(torch.int32)
    bits = odd.to(torch.float32).view(torch.int32) - _SQRT_HALF
    exponent = ((bits >> 23) - 31).to(torch.float32)
    f = ((bits & 0x7FFFFF) + _SQRT_HALF).view(torch.float32) - 1
    p = torch.full_like(f, float.fromhex(_LOG_POLYNOMIAL[0]))
    for coefficient in _LOG_POLYNOMIAL[1:]:
        p = p * f + float.fromhex(coefficient)
    square = f * f
    return exponent * -float.fromhex("0x1.62e43p-1") - (f - (0.5 * square - f * square * p))


def sine_cosine(words: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of a uniform angle: quadrant from the top two bits, the rest from the others."""
    low = (words << 2) & 0xFFFFFFFF
    signed = torch.where(low >= 2**31, low - 2**32, low).to(torch.int32)
    angle = signed.to(torch.float32) * float.fromhex("0x1.921fb6p-32")
    square = angle * angle
    sine = square * -float.fromhex("0x1.99076cp-13") + float.fromhex("0x1.11063p-7")
    sine = sine * square - float.fromhex("0x1.55554p-3")
    sine = angle + angle * square * sine
    cosine = square * -float.fromhex("0x1.64257ep-10") + float.fromhex("0x1.553cecp-5")
    cosine = cosine * square - float.fromhex("0x1.ffffap-2")
    cosine = 1 + square * cosine
    quadrant = words >> 30
    swap = quadrant % 2 == 1
    first, second = torch.where(swap, cosine, sine), torch.where(swap, sine, cosine)
    return (
        torch.where(quadrant >= 2, -first, first),
        torch.where((quadrant == 1) | (quadrant == 2), -second, second),
    )


def gaussian_numbers(words: Tensor) -> Tensor:
    """Standard normal float32 numbers by Box and Muller from ``[N, D]`` words, D a multiple of 2."""
    # torch.sqrt of a float32 may be off by one place; by way of float64 it is correctly rounded.
    radius = torch.sqrt((2 * negative_log(words[:, 0::2])).double()).float()
    sine, cosine = sine_cosine(words[:, 1::2])
    return torch.stack([radius * cosine, radius * sine], -1).flatten(1)


def poisson(rate: Tensor, words: Tensor) -> Tensor:
    """Poisson numbers by inversion, float64: outwards from 0 for rates below 4, else from the mode."""
    rate, left = rate.double(), (words.double() + 0.5) * 2.0**-32
    result = [_poisson(r, u) for r, u in zip(rate.flatten().tolist(), left.flatten().tolist(), strict=True)]
    return torch.tensor(result, dtype=torch.float64).reshape(rate.shape)


def noise(
    x: Tensor,
    kind: str,
    scale: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """``x`` with noise of one kind, clamped."""
    return noise_and_factor(x, kind, scale, seed, sample_ids, draw, bounds)[0]


def noise_and_factor(
    x: Tensor,
    kind: str,
    scale: float | Tensor,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The result, and its derivative with respect to ``x`` (0 where clamped)."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    ids = torch.arange(len(x)) if sample_ids is None else sample_ids
    elements = x[:1].numel() if len(x) else 0
    words = sample_words(seed, ids, draw, (elements + 3) // 4 * 4)
    exact = torch.as_tensor(scale, dtype=torch.float64)
    if exact.dim():
        exact = exact.reshape(-1, *[1] * (x.dim() - 1))
    amount, value = exact.to(compute), x.to(compute)
    infinite = (-math.inf, math.inf) if bounds is None else bounds
    lo, hi = (torch.tensor(b, dtype=x.dtype).to(compute) for b in infinite)
    one = torch.ones_like(value)

    def shaped(numbers: Tensor) -> Tensor:
        return numbers[:, :elements].reshape(x.shape)

    word = shaped(words)
    if kind == "shot":
        rate = amount.double() * value.double()
        noisy = torch.where(value.isnan(), value, poisson(rate, word).to(compute) / amount)
        factor = one
    elif kind == "salt_and_pepper":
        threshold = (exact * 2.0**31 + 0.5).to(torch.int64)
        salt, pepper = word < threshold, (0xFFFFFFFF - word) < threshold
        noisy = torch.where(salt, lo, torch.where(pepper, hi, value))
        factor = torch.where(salt | pepper, 0.0, one)
    elif kind == "dropout":
        threshold = (exact * 2.0**32 + 0.5).to(torch.int64).clamp(max=0xFFFFFFFF)
        factor = torch.where(word < threshold, 0.0, (1 / (1 - exact)).to(compute) * one)
        noisy = torch.where(word < threshold, 0.0, value * factor)
    elif kind == "speckle":
        relative = amount * shaped(gaussian_numbers(words)).to(compute)
        noisy, factor = value + value * relative, 1 + relative
    else:
        if kind == "gaussian":
            numbers = shaped(gaussian_numbers(words))
        elif kind == "laplace":
            magnitude = negative_log(word)
            numbers = torch.where(word >= 2**31, -magnitude, magnitude)
        else:
            numbers = ((word >> 8) - 2**23).to(torch.float32) * 2.0**-23
        noisy, factor = value + amount * numbers.to(compute), one
    inside = (lo <= noisy) & (noisy <= hi)
    return torch.clamp(noisy, lo, hi).to(x.dtype), torch.where(inside, factor, 0.0)


def in_ball(
    x: Tensor,
    eps: float | Tensor,
    norm: int,
    surface: bool = False,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    draw: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """A uniform point of the L1 or L2 ball: a direction, over its length, times ``U ** (1 / D)``."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    ids = torch.arange(len(x)) if sample_ids is None else sample_ids
    elements = x[:1].numel()
    words = sample_words(seed, ids, draw, (elements + 3) // 4 * 4)
    if norm == 2:
        numbers = gaussian_numbers(words)[:, :elements]
    else:
        numbers = torch.where(words >= 2**31, -negative_log(words), negative_log(words))[:, :elements]
    terms = numbers.double() ** 2 if norm == 2 else numbers.double().abs()
    # Sixteen lanes down each tile of 1024, the lanes by halving, the tiles one after the other.
    tiles = torch.nn.functional.pad(terms, (0, -elements % 1024)).reshape(len(x), -1, 64, 16)
    lanes = torch.zeros_like(tiles[:, :, 0])
    for j in range(64):
        lanes = lanes + tiles[:, :, j]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    total = torch.zeros(len(x), dtype=torch.float64)
    for tile in lanes[..., 0].unbind(1):
        total = total + tile
    radii = torch.as_tensor(eps, dtype=torch.float64).expand(len(x))
    factors = []
    for row in range(len(x)):
        length = math.sqrt(total[row]) if norm == 2 else float(total[row])
        radius = 1 - 2.0**-20
        if not surface:
            word = _last_block_word(seed, int(ids[row]), draw)
            radius *= _exp_negative(float(negative_log(word)) / elements)
        factors.append(float(radii[row]) * radius / length if length > 0 else 0.0)
    factor = torch.tensor(factors, dtype=torch.float64).to(compute)
    infinite = (-math.inf, math.inf) if bounds is None else bounds
    lo, hi = (torch.tensor(b, dtype=x.dtype).to(compute) for b in infinite)
    moved = x.to(compute) + (factor[:, None] * numbers.to(compute)).reshape(x.shape)
    return torch.clamp(moved, lo, hi).to(x.dtype)


def _last_block_word(seed: int, sample_id: int, draw: int) -> Tensor:
    low = 0xFFFFFFFF
    counter = torch.tensor([low, draw, sample_id & low, (sample_id >> 32) & low])
    return philox4x32(counter, (seed & low, (seed >> 32) & low))[0]


def _poisson(rate: float, left: float) -> float:
    if not rate > 0:
        return 0.0
    if rate > 2.0**30:
        return rate
    first, p = _poisson_start(rate)
    left -= p
    up, down, above, below = p, p, first, first
    inverse_rate = 1 / rate
    while left > 0:
        above += 1
        up *= rate * (1 / above)
        down *= below * inverse_rate
        below -= 1
        after_up = left - up
        left = after_up - down
        if left <= 0:
            return above if after_up <= 0 else below
        if up < 2.0**-45 and down < 2.0**-45 and above > rate:
            break
    return first


def _poisson_start(rate: float) -> tuple[float, float]:
    """The outcome to start from, 0 or the mode, and its probability."""
    if rate < 4:
        return 0.0, _exp_negative(rate)
    mode = float(int(rate))
    inverse = 1 / mode
    d = (rate - mode) * inverse
    series = 1 / 14
    for k in range(13, 1, -1):
        series = 1 / k - d * series
    square = inverse * inverse
    stirling = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680))))
    scale = float.fromhex("0x1.9884533d43651p-2") * (1 / math.sqrt(mode))
    return mode, _exp_negative(mode * d * d * series + stirling) * scale


def _exp_negative(y: float) -> float:
    n = int(y * float.fromhex("0x1.71547652b82fep+0") + 0.5)
    r = (y - n * float.fromhex("0x1.62e42fefa38p-1")) - n * float.fromhex("0x1.ef35793c7673p-45")
    total = 1.0
    for k in range(13, 0, -1):
        total = 1.0 - r * total * (1 / k)
    return math.ldexp(total, -n)
