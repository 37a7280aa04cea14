"""Whole evaluations of a model, built on the attacks."""

from brittle.evaluation.curve import Curve, accuracy_vs_epsilon

__all__ = ["Curve", "accuracy_vs_epsilon"]
