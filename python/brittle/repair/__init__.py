"""Ways to mend a model, on a training loop that they share."""

from brittle.repair.adversarial import adversarial_train
from brittle.repair.distillation import distill
from brittle.repair.duplicates import DuplicateUnits, duplicate_units
from brittle.repair.early_stopping import CollapseGuard
from brittle.repair.masking import Mask, mask
from brittle.repair.noise_training import noise_train
from brittle.repair.regularization import Penalty, regularizer
from brittle.repair.retraining import retrain
from brittle.repair.state import Batch, Training
from brittle.repair.training import cross_entropy, train

__all__ = [
    "Batch",
    "CollapseGuard",
    "DuplicateUnits",
    "Mask",
    "Penalty",
    "Training",
    "adversarial_train",
    "cross_entropy",
    "distill",
    "duplicate_units",
    "mask",
    "noise_train",
    "regularizer",
    "retrain",
    "train",
]
