"""Ways to mend a model, on a training loop that they share."""

from brittle.repair.adversarial import adversarial_train
from brittle.repair.distillation import distill
from brittle.repair.duplicates import DuplicateUnits, duplicate_units
from brittle.repair.early_stopping import CollapseGuard
from brittle.repair.masking import Mask, mask
from brittle.repair.mending import mend
from brittle.repair.mending_result import Mending, Score, Step
from brittle.repair.noise_training import noise_train
from brittle.repair.recycling import recycle
from brittle.repair.regularization import Penalty, regularizer
from brittle.repair.retraining import retrain
from brittle.repair.state import Batch, Training
from brittle.repair.suggestions import Suggestion, suggest
from brittle.repair.training import cross_entropy, train

__all__ = [
    "Batch",
    "CollapseGuard",
    "DuplicateUnits",
    "Mask",
    "Mending",
    "Penalty",
    "Score",
    "Step",
    "Suggestion",
    "Training",
    "adversarial_train",
    "cross_entropy",
    "distill",
    "duplicate_units",
    "mask",
    "mend",
    "noise_train",
    "recycle",
    "regularizer",
    "retrain",
    "suggest",
    "train",
]
