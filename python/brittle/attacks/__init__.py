"""The attacks, one module each: how it starts, how it steps, what its paper says."""

from brittle.attacks.fgsm import fgsm
from brittle.attacks.pgd import pgd

__all__ = ["fgsm", "pgd"]
