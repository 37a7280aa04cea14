"""Ways to mend a model, from a training loop that the others share."""

from brittle.repair.distillation import distill
from brittle.repair.duplicates import DuplicateUnits, duplicate_units
from brittle.repair.masking import Mask, mask
from brittle.repair.regularization import Penalty, regularizer
from brittle.repair.retraining import retrain
from brittle.repair.state import Batch, Training
from brittle.repair.training import cross_entropy, train

__all__ = [
    "Batch",
    "DuplicateUnits",
    "Mask",
    "Penalty",
    "Training",
    "cross_entropy",
    "distill",
    "duplicate_units",
    "mask",
    "regularizer",
    "retrain",
    "train",
]
