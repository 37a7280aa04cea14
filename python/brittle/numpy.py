"""The kernels on NumPy arrays, without torch.

The functions are those of :mod:`brittle.ops`, with the same arguments, the same checks and the same bits;
see there for what they promise. Arrays are float32, float64, float16 or (by the ``ml_dtypes`` package)
bfloat16, of any strides. The interpreter lock is released while a kernel runs. ``BRITTLE_NUM_THREADS`` caps
the threads; by default every core this process may use.

Example:
    >>> import numpy as np, brittle.numpy
    >>> clean = np.array([[0.2, 0.5, 0.99]], dtype=np.float32)
    >>> grad = np.array([[-3.0, 0.0, 0.1]], dtype=np.float32)
    >>> brittle.numpy.linf_step_(clean.copy(), grad, clean, step_size=0.25, eps=0.125)
    array([[0.075, 0.5  , 1.   ]], dtype=float32)
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

_door: Any = import_module("brittle._native.numpy_door")

Array = NDArray[Any]
Bounds = tuple[float, float]


def linf_step_(
    adv: Array,
    grad: Array,
    clean: Array,
    step_size: float | Array,
    eps: float | Array,
    bounds: Bounds = (0.0, 1.0),
    *,
    projection: str = "exact",
    trace: Array | None = None,
) -> Array:
    """Move ``adv`` by ``step_size * sign(grad)``, in place, then back into the Linf ball and the bounds.

    Args and errors: as :func:`brittle.ops.linf_step_`; ``ValueError`` throughout.

    Returns:
        ``adv``.
    """
    if projection not in ("exact", "difference"):
        raise ValueError(f"linf_step_: projection must be 'exact' or 'difference'; got {projection!r}")
    if isinstance(step_size, np.ndarray) or isinstance(eps, np.ndarray):
        step_size, eps = _per_row(step_size, adv), _per_row(eps, adv)
    _door.linf_step_(adv, grad, clean, step_size, eps, *bounds, projection == "exact", trace)
    return adv


def sign_sweep(
    x: Array,
    grad: Array,
    eps: Sequence[float] | Array,
    bounds: Bounds = (0.0, 1.0),
    out: Array | None = None,
    *,
    keep_ball: bool = True,
) -> Array:
    """The fast-gradient-sign points of ``x`` for K epsilons, ``[K, N, ...]``, in one pass.

    Args and errors: as :func:`brittle.ops.sign_sweep`; ``ValueError`` throughout.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> x, grad = np.float32([[0.25, 0.5]]), np.float32([[1.0, -1.0]])
        >>> brittle.numpy.sign_sweep(x, grad, [0.0, 0.25])
        array([[[0.25, 0.5 ]],
        <BLANKLINE>
               [[0.5 , 0.25]]], dtype=float32)
    """
    values = [float(value) for value in eps]
    if out is None:
        # A stack of arrays that each have x's own memory order.
        order = np.argsort([-stride for stride in x.strides], kind="stable")
        stack = np.empty((len(values), *(x.shape[d] for d in order)), x.dtype)
        out = stack.transpose(0, *(int(d) + 1 for d in np.argsort(order)))
    _door.sign_sweep(x, grad, values, *bounds, keep_ball, out)
    return out


def linf_start(
    clean: Array,
    eps: float | Array,
    seed: int = 0,
    sample_ids: Array | None = None,
    draw: int = 0,
    bounds: Bounds = (0.0, 1.0),
    out: Array | None = None,
) -> Array:
    """A uniformly random point of the Linf ball around each sample, clipped to the bounds.

    Args and errors: as :func:`brittle.ops.linf_start`; ``ValueError`` throughout.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> x = np.full((2, 3), 0.5, np.float32)
        >>> start = brittle.numpy.linf_start(x, eps=0.1, seed=7)
        >>> bool(abs(start - x).max() <= 0.1)
        True
    """
    seed = _signed64("linf_start", seed)
    if out is None:
        out = np.empty_like(clean)
    if isinstance(eps, np.ndarray):
        eps = _per_row(eps, clean)
    ids = None if sample_ids is None else np.ascontiguousarray(sample_ids)
    _door.linf_start(clean, eps, seed, ids, draw, *bounds, out)
    return out


def l1_step_(
    adv: Array,
    grad: Array,
    clean: Array,
    step_size: float | Array,
    eps: float | Array,
    k: float | Array,
    bounds: Bounds = (0.0, 1.0),
    *,
    trace: Array | None = None,
) -> Array:
    """Move the ``k`` elements of the largest gradient, in place, then project onto L1 ball and bounds.

    Args and errors: as :func:`brittle.ops.l1_step_`; ``ValueError`` throughout.

    Returns:
        ``adv``.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> clean = np.array([[0.25, 0.5, 0.75]], dtype=np.float32)
        >>> grad = np.array([[-3.0, 0.5, 2.0]], dtype=np.float32)
        >>> brittle.numpy.l1_step_(clean.copy(), grad, clean, step_size=0.25, eps=1.0, k=2)
        array([[0.125, 0.5  , 0.875]], dtype=float32)
    """
    if any(isinstance(value, np.ndarray) for value in (step_size, eps, k)):
        step_size, eps, k = (_per_row(value, adv) for value in (step_size, eps, k))
    _door.l1_step_(adv, grad, clean, step_size, eps, k, *bounds, trace)
    return adv


def l2_step_(
    adv: Array,
    grad: Array,
    clean: Array,
    step_size: float | Array,
    eps: float | Array,
    bounds: Bounds = (0.0, 1.0),
    *,
    projection: str = "exact",
    floor: str = "none",
    trace: Array | None = None,
) -> Array:
    """Move ``adv`` by ``step_size`` along the gradient, in place, then back into the L2 ball and the bounds.

    Args and errors: as :func:`brittle.ops.l2_step_`; ``ValueError`` throughout.

    Returns:
        ``adv``.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> clean, grad = np.full((1, 2), 0.5, np.float32), np.float32([[30.0, -40.0]])
        >>> brittle.numpy.l2_step_(clean.copy(), grad, clean, step_size=0.25, eps=0.5)
        array([[0.65, 0.3 ]], dtype=float32)
    """
    mode = _choice("l2_step_", "projection", projection, _L2_PROJECTIONS)
    least = _choice("l2_step_", "floor", floor, _NORM_FLOORS)
    if isinstance(step_size, np.ndarray) or isinstance(eps, np.ndarray):
        step_size, eps = _per_row(step_size, adv), _per_row(eps, adv)
    _door.l2_step_(adv, grad, clean, step_size, eps, *bounds, mode, least, trace)
    return adv


def momentum_step_(
    adv: Array,
    grad: Array,
    momentum: Array,
    clean: Array,
    step_size: float | Array,
    eps: float | Array,
    decay: float = 1.0,
    bounds: Bounds = (0.0, 1.0),
    *,
    normalize: str = "l1",
    norm: Array | None = None,
    projection: str = "exact",
    trace: Array | None = None,
) -> Array:
    """Accumulate the gradient into ``momentum``, then take a Linf step along it; both in place.

    Args and errors: as :func:`brittle.ops.momentum_step_`; ``ValueError`` throughout.

    Returns:
        ``adv``.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> clean, momentum = np.full((1, 2), 0.5, np.float32), np.zeros((1, 2), np.float32)
        >>> grad = np.float32([[1.0, -3.0]])
        >>> brittle.numpy.momentum_step_(clean.copy(), grad, momentum, clean, 0.25, 0.5)
        array([[0.75, 0.25]], dtype=float32)
        >>> momentum
        array([[ 0.25, -0.75]], dtype=float32)
    """
    exact = _choice("momentum_step_", "projection", projection, ("exact", "difference")) == 0
    mode = _choice("momentum_step_", "normalize", normalize, _NORMALIZATIONS)
    if isinstance(step_size, np.ndarray) or isinstance(eps, np.ndarray):
        step_size, eps = _per_row(step_size, adv), _per_row(eps, adv)
    numbers = (step_size, eps, decay, *bounds)
    _door.momentum_step_(adv, grad, momentum, clean, *numbers, mode, exact, norm, trace)
    return adv


_NORMALIZATIONS = ("l1", "mean", "sign")
_L2_PROJECTIONS = ("exact", "project_clip", "clip_project")
_NORM_FLOORS = ("none", "torchattacks", "foolbox", "autoattack", "cleverhans")

_NOISE_KINDS = ("gaussian", "uniform", "laplace", "speckle", "shot", "salt_and_pepper", "dropout")


def noise(
    x: Array,
    kind: str,
    scale: float | Array,
    seed: int = 0,
    sample_ids: Array | None = None,
    draw: int = 0,
    bounds: Bounds | None = None,
    out: Array | None = None,
) -> Array:
    """``x`` with noise of one kind, clamped to the bounds.

    Args and errors: as :func:`brittle.ops.noise`.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> x = np.full((2, 3), 0.5, np.float32)
        >>> noisy = brittle.numpy.noise(x, "salt_and_pepper", 1.0, bounds=(0.0, 1.0))
        >>> set(noisy.flatten().tolist()) <= {0.0, 1.0}
        True
    """
    if kind not in _NOISE_KINDS:
        raise ValueError(f"noise: kind must be one of {', '.join(_NOISE_KINDS)}; got {kind!r}")
    lo, hi = (-np.inf, np.inf) if bounds is None else bounds
    if out is None:
        out = np.empty_like(x)
    if isinstance(scale, np.ndarray):
        scale = _per_row(scale, x)
    ids = None if sample_ids is None else np.ascontiguousarray(sample_ids)
    seed = _signed64("noise", seed)
    _door.noise(None, x, _NOISE_KINDS.index(kind), scale, seed, ids, draw, lo, hi, out)
    return out


def in_ball(
    x: Array,
    eps: float | Array,
    norm: str = "linf",
    surface: bool = False,
    seed: int = 0,
    sample_ids: Array | None = None,
    draw: int = 0,
    bounds: Bounds | None = None,
    out: Array | None = None,
) -> Array:
    """A uniformly random point of a ball around each sample, then clipped to the bounds.

    Args and errors: as :func:`brittle.ops.in_ball`.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> point = brittle.numpy.in_ball(np.zeros((1, 50)), 2.0, "l1")
        >>> bool(abs(point).sum() <= 2.0)
        True
    """
    if norm not in ("linf", "l2", "l1"):
        raise ValueError(f"in_ball: norm must be 'linf', 'l2' or 'l1'; got {norm!r}")
    lo, hi = (-np.inf, np.inf) if bounds is None else bounds
    if norm == "linf":
        if surface:
            raise ValueError("in_ball: surface must be False for norm 'linf'; got True")
        return linf_start(x, eps, seed, sample_ids, draw, (lo, hi), out)
    if out is None:
        out = np.empty_like(x)
    if isinstance(eps, np.ndarray):
        eps = _per_row(eps, x)
    ids = None if sample_ids is None else np.ascontiguousarray(sample_ids)
    seed = _signed64("in_ball", seed)
    _door.in_ball(x, eps, int(norm[1]), surface, seed, ids, draw, lo, hi, out)
    return out


def pairwise_cosine(a: Array, b: Array | None = None, out: Array | None = None) -> Array:
    """The cosine of the angle between every row of ``a`` and every row of ``b``, ``[N, M]``.

    Args and errors: as :func:`brittle.ops.pairwise_cosine`.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> brittle.numpy.pairwise_cosine(np.array([[3.0, 4.0], [0.0, 2.0]]))
        array([[1. , 0.8],
               [0.8, 1. ]])
    """
    result: Array = _door.pairwise_cosine(a, None if b is a else b, out)
    return result


def pairwise_cosine_topk(a: Array, b: Array | None = None, k: int = 1) -> tuple[Array, Array]:
    """The ``k`` rows of ``b`` of the largest cosine with each row of ``a``, without ever holding ``[N, M]``.

    Args and errors: as :func:`brittle.ops.pairwise_cosine_topk`.

    Returns:
        ``(cosines, indices)``, ``[N, k]`` each, descending.

    Example:
        >>> import numpy as np, brittle.numpy
        >>> a = np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
        >>> brittle.numpy.pairwise_cosine_topk(a, k=1)[1].ravel()
        array([1, 0, 1])
    """
    cosines, indices = _door.pairwise_cosine_topk(a, None if b is a else b, k)
    return cosines, indices


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Four random 32-bit words for four words of counter and two of key: Philox4x32-10.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Example:
        >>> import brittle.numpy
        >>> [hex(word) for word in brittle.numpy.philox4x32([0, 0, 0, 0], [0, 0])][:2]
        ['0x6627e8d5', '0xe169c58d']
    """
    words: list[int] = _door.philox4x32(list(counter), list(key))
    return words


def build_facts() -> dict[str, Any]:
    """Compiler, CUDA, SIMD level and threads of this build: what a bug report needs.

    Example:
        >>> import brittle.numpy
        >>> sorted(brittle.numpy.build_facts())[:3]
        ['compiler', 'cuda', 'cuda_architectures']
    """
    facts: dict[str, Any] = _door.build_facts()
    return facts


def _per_row(value: float | Array, like: Array) -> Array:
    """The value as the contiguous float64 ``[N]`` that the kernels take."""
    value = np.asarray(value, np.float64)
    return np.ascontiguousarray(value if value.ndim else np.broadcast_to(value, like.shape[:1]))


def _signed64(op: str, seed: int) -> int:
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"{op}: seed must fit 64 bits; got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def _choice(op: str, name: str, given: str, known: tuple[str, ...]) -> int:
    if given not in known:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, known))}; got {given!r}")
    return known.index(given)
