"""Noise that is a function of (seed, sample id, draw, element) and of nothing else.

Functions for tensors of samples, a module and hooks for training, and noise on weights, gradients and labels.
Weights, gradients and labels draw from streams of their own: under one seed they share no number with the
noise on inputs.
"""

from brittle.noise.functional import (
    dropout,
    gaussian,
    in_ball,
    laplace,
    salt_and_pepper,
    shot,
    speckle,
    uniform,
)
from brittle.noise.injection import NoiseInjection, inject
from brittle.noise.labels import WithIds, noise_labels
from brittle.noise.training import GradientNoise, noise_gradients, noise_weights

__all__ = [
    "GradientNoise",
    "NoiseInjection",
    "WithIds",
    "dropout",
    "gaussian",
    "in_ball",
    "inject",
    "laplace",
    "noise_gradients",
    "noise_labels",
    "noise_weights",
    "salt_and_pepper",
    "shot",
    "speckle",
    "uniform",
]
