"""Ways to mend a model, on a training loop that they share."""

from brittle.repair.adversarial import adversarial_train
from brittle.repair.early_stopping import CollapseGuard
from brittle.repair.noise_training import noise_train
from brittle.repair.state import Batch, Training
from brittle.repair.training import cross_entropy, train

__all__ = [
    "Batch",
    "CollapseGuard",
    "Training",
    "adversarial_train",
    "cross_entropy",
    "noise_train",
    "train",
]
