"""The kernels, one module per room: typed wrappers, and what torch.compile needs to know of each.

Every operator has a definition of the same name in plain torch under :mod:`brittle.reference`.
"""

from brittle.ops.gradient_step import linf_start, linf_step_, sign_sweep
from brittle.ops.noise import KINDS, in_ball, noise

__all__ = ["KINDS", "in_ball", "linf_start", "linf_step_", "noise", "sign_sweep"]
