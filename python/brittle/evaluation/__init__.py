"""Whole evaluations of a model, built on the attacks and the noise."""

from brittle.evaluation.compare import Comparison, compare
from brittle.evaluation.curve import Curve, accuracy_vs_epsilon
from brittle.evaluation.minimal_epsilon import MinimalEpsilon, minimal_epsilon
from brittle.evaluation.noise_sweep import SEVERITIES, NoiseSweep, noise_sweep
from brittle.evaluation.noise_training import NoiseTrainingTable, noise_training_table
from brittle.evaluation.run.evaluate import Report, evaluate
from brittle.evaluation.run.finish import load_report
from brittle.evaluation.run.verify import Verification, verify

__all__ = [
    "SEVERITIES",
    "Comparison",
    "Curve",
    "MinimalEpsilon",
    "NoiseSweep",
    "NoiseTrainingTable",
    "Report",
    "Verification",
    "accuracy_vs_epsilon",
    "compare",
    "evaluate",
    "load_report",
    "minimal_epsilon",
    "noise_sweep",
    "noise_training_table",
    "verify",
]
