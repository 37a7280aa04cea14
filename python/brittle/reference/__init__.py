"""What every operator means, in plain torch: the definition that the kernels are tested against.

Slow, readable, and free of the library: nothing here is called by it.
"""

from brittle.reference.gradient_step import linf_start, linf_step_, sign_sweep
from brittle.reference.philox import philox4x32, sample_words

__all__ = ["linf_start", "linf_step_", "philox4x32", "sample_words", "sign_sweep"]
