"""Ways to mend a model, from a training loop that the others share."""

from brittle.repair.duplicates import DuplicateUnits, duplicate_units
from brittle.repair.masking import Mask, mask
from brittle.repair.state import Batch, Training
from brittle.repair.training import cross_entropy, train

__all__ = [
    "Batch",
    "DuplicateUnits",
    "Mask",
    "Training",
    "cross_entropy",
    "duplicate_units",
    "mask",
    "train",
]
