"""Whether data in production still are what the model was made for."""

from brittle.evaluation.drift.nulls import Measure
from brittle.evaluation.drift.reference import Reference
from brittle.evaluation.drift.result import Drift, Window

__all__ = ["Drift", "Measure", "Reference", "Window"]
