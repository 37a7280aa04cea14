"""Structural flaws of a network: which layer, what is wrong with it, how badly."""

from brittle.diagnosis.flaws.diagnose import diagnose
from brittle.diagnosis.flaws.result import KINDS, SEVERITIES, Diagnosis, Finding
from brittle.diagnosis.flaws.thresholds import Thresholds

__all__ = ["KINDS", "SEVERITIES", "Diagnosis", "Finding", "Thresholds", "diagnose"]
