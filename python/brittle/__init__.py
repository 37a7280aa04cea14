"""brittle: finds where a neural network breaks.

The public names are loaded when first used, so that ``import brittle.numpy`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from brittle import evaluation, noise, numpy, ops, reference, report
    from brittle.attacks import fgsm, pgd

__all__ = ["__version__", "evaluation", "fgsm", "noise", "numpy", "ops", "pgd", "reference", "report"]

_HOME = {"fgsm": "brittle.attacks", "pgd": "brittle.attacks"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"brittle.{name}")
    raise AttributeError(f"module 'brittle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
