"""The kernels, one module per room: typed wrappers, and what torch.compile needs to know of each.

Every operator has a definition of the same name in plain torch under :mod:`brittle.reference`.
"""

from brittle.ops.gradient_step import linf_start, linf_step_, sign_sweep
from brittle.ops.l1_step import l1_step_
from brittle.ops.noise import KINDS, in_ball, noise
from brittle.ops.pairwise_cosine import pairwise_cosine, pairwise_cosine_topk
from brittle.ops.row_step import l2_step_, momentum_step_

__all__ = [
    "KINDS",
    "in_ball",
    "l1_step_",
    "l2_step_",
    "linf_start",
    "linf_step_",
    "momentum_step_",
    "noise",
    "pairwise_cosine",
    "pairwise_cosine_topk",
    "sign_sweep",
]
