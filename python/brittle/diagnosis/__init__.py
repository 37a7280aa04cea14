"""What is wrong with the data, the training or the model, each accusation with how often it is false.

:func:`diagnose` finds structural flaws layer by layer; :mod:`brittle.diagnosis.checks` looks at a training
setup and its labels; the rest searches data for copies and for poison.
"""

from brittle.diagnosis import checks
from brittle.diagnosis.flaws import Diagnosis, Finding, Thresholds, diagnose
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
    "diagnose",
    "near_duplicates",
    "spectral_signatures",
]
