"""The attacks, one module each: how it starts, how it steps, what its paper says."""

from brittle.attacks.base import Attack
from brittle.attacks.bim import BIM, bim
from brittle.attacks.fgsm import FGSM, fgsm
from brittle.attacks.mifgsm import MIFGSM, mifgsm
from brittle.attacks.pgd import PGD, pgd
from brittle.attacks.rfgsm import RFGSM, rfgsm
from brittle.attacks.run import attack

__all__ = [
    "BIM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "Attack",
    "attack",
    "bim",
    "fgsm",
    "mifgsm",
    "pgd",
    "rfgsm",
]
