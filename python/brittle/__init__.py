"""brittle: finds where a neural network breaks.

The public names are loaded when first used, so that ``import brittle.numpy`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    import brittle.attacks as attacks
    from brittle import (
        diagnosis,
        evaluation,
        loading,
        losses,
        noise,
        numpy,
        ops,
        reference,
        repair,
        report,
        similarity,
        sources,
    )
    from brittle.attacks.bim import bim
    from brittle.attacks.fgsm import fgsm
    from brittle.attacks.mifgsm import mifgsm
    from brittle.attacks.pgd import pgd
    from brittle.attacks.rfgsm import rfgsm
    from brittle.attacks.run import attack
    from brittle.result import AttackResult, GradientMaskingWarning
    from brittle.target import RandomisedModelWarning, Target

__all__ = [
    "AttackResult",
    "GradientMaskingWarning",
    "RandomisedModelWarning",
    "Target",
    "__version__",
    "attack",
    "attacks",
    "bim",
    "diagnosis",
    "evaluation",
    "fgsm",
    "loading",
    "losses",
    "mifgsm",
    "noise",
    "numpy",
    "ops",
    "pgd",
    "reference",
    "repair",
    "report",
    "rfgsm",
    "similarity",
    "sources",
]

_HOME = {
    "AttackResult": "brittle.result",
    "GradientMaskingWarning": "brittle.result",
    "RandomisedModelWarning": "brittle.target",
    "Target": "brittle.target",
    **dict.fromkeys(("attack", "bim", "fgsm", "mifgsm", "pgd", "rfgsm"), "brittle.attacks"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"brittle.{name}")
    raise AttributeError(f"module 'brittle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
