"""What every operator means, in plain torch: the definition that the kernels are tested against.

Slow, readable, and free of the library: nothing here is called by it.
"""

from brittle.reference.gradient_step import linf_start, linf_step_, sign_sweep, step_trace
from brittle.reference.l1_step import l1_step_
from brittle.reference.noise import (
    gaussian_numbers,
    in_ball,
    negative_log,
    noise,
    noise_and_factor,
    poisson,
    sine_cosine,
)
from brittle.reference.pairwise_cosine import pairwise_cosine, pairwise_cosine_topk
from brittle.reference.philox import philox4x32, sample_words
from brittle.reference.row_step import l2_step_, momentum_step_

__all__ = [
    "gaussian_numbers",
    "in_ball",
    "l1_step_",
    "l2_step_",
    "linf_start",
    "linf_step_",
    "momentum_step_",
    "negative_log",
    "noise",
    "noise_and_factor",
    "pairwise_cosine",
    "pairwise_cosine_topk",
    "philox4x32",
    "poisson",
    "sample_words",
    "sign_sweep",
    "sine_cosine",
    "step_trace",
]
