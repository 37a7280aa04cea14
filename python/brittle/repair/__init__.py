"""Ways to mend a model, from a training loop that the others share."""

from brittle.repair.state import Batch, Training
from brittle.repair.training import cross_entropy, train

__all__ = [
    "Batch",
    "Training",
    "cross_entropy",
    "train",
]
