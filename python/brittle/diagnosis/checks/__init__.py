"""Is anything broken before a training run, or in its labels? Small experiments on copies of a model.

Each check answers with a :class:`Verdict`: ``ok``, ``problems`` in sentences with their usual causes,
``table()``. They leave the model, its modes, gradients and buffers and torch's random state as they were, and
give the same answer for the same arguments.
"""

from brittle.diagnosis.checks.before import BeforeTraining, before_training
from brittle.diagnosis.checks.initial_loss import InitialLoss, initial_loss
from brittle.diagnosis.checks.labels import confident_learning, cross_validated_probabilities, highest_losses
from brittle.diagnosis.checks.learning_rate import LearningRateRange, learning_rate_range
from brittle.diagnosis.checks.margins import AreaUnderMargin
from brittle.diagnosis.checks.mislabelled import area_under_margin
from brittle.diagnosis.checks.outputs import OutputKind, output_kind
from brittle.diagnosis.checks.overfit import OverfitOneBatch, overfit_one_batch
from brittle.diagnosis.checks.placement import Placement, placement
from brittle.diagnosis.checks.ranges import ParameterRange, WeightsAndGradients, weights_and_gradients
from brittle.diagnosis.checks.shuffled import ShuffledLabels, shuffled_labels
from brittle.diagnosis.checks.suspects import LabelRanking, contact_sheet
from brittle.diagnosis.checks.verdict import Verdict

__all__ = [
    "AreaUnderMargin",
    "BeforeTraining",
    "InitialLoss",
    "LabelRanking",
    "LearningRateRange",
    "OutputKind",
    "OverfitOneBatch",
    "ParameterRange",
    "Placement",
    "ShuffledLabels",
    "Verdict",
    "WeightsAndGradients",
    "area_under_margin",
    "before_training",
    "confident_learning",
    "contact_sheet",
    "cross_validated_probabilities",
    "highest_losses",
    "initial_loss",
    "learning_rate_range",
    "output_kind",
    "overfit_one_batch",
    "placement",
    "shuffled_labels",
    "weights_and_gradients",
]
