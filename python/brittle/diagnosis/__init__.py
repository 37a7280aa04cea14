"""What is wrong with the data or the model, each accusation with the rate at which it is false."""

from brittle.diagnosis.leakage import Leakage, near_duplicates
from brittle.diagnosis.poisoning import ClassVerdict, Poisoning, activation_clustering, spectral_signatures

__all__ = [
    "ClassVerdict",
    "Leakage",
    "Poisoning",
    "activation_clustering",
    "near_duplicates",
    "spectral_signatures",
]
