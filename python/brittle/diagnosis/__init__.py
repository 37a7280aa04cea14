"""What is wrong with the data or the model, each accusation with the rate at which it is false."""

from brittle.diagnosis import checks
from brittle.diagnosis.leakage import Leakage, near_duplicates
from brittle.diagnosis.poisoning import ClassVerdict, Poisoning, activation_clustering, spectral_signatures

__all__ = [
    "ClassVerdict",
    "Diagnosis",
    "Finding",
    "Leakage",
    "Poisoning",
    "Thresholds",
    "activation_clustering",
    "checks",
    "near_duplicates",
    "spectral_signatures",
]
