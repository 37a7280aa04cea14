"""Whole evaluations of a model, built on the attacks and the noise."""

from brittle.evaluation.curve import Curve, accuracy_vs_epsilon
from brittle.evaluation.minimal_epsilon import MinimalEpsilon, minimal_epsilon
from brittle.evaluation.noise_sweep import SEVERITIES, NoiseSweep, noise_sweep
from brittle.evaluation.noise_training import NoiseTrainingTable, noise_training_table

__all__ = [
    "SEVERITIES",
    "Curve",
    "MinimalEpsilon",
    "NoiseSweep",
    "NoiseTrainingTable",
    "accuracy_vs_epsilon",
    "minimal_epsilon",
    "noise_sweep",
    "noise_training_table",
]
