"""scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_TEST_SIZE = 500


class Digits(NamedTuple):
    """Images in [0, 1], their labels, and each one's place in scikit-learn's data set."""

    x: Tensor  # [N, 1, 8, 8]
    y: Tensor  # int64 [N]
    ids: Tensor  # int64 [N]

    def take(self, rows: Tensor) -> Digits:
        """The digits at ``rows``."""
        return Digits(self.x[rows], self.y[rows], self.ids[rows])


def digits() -> tuple[Digits, Digits]:
    """Training and test set: scikit-learn's 1797 digits, always split the same way, classes in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target, dtype=torch.int64)
    everything = Digits(images, labels, torch.arange(len(labels)))
    rows = train_test_split(
        np.arange(len(labels)), test_size=_TEST_SIZE, stratify=data.target, random_state=0
    )
    train, test = (everything.take(torch.from_numpy(part)) for part in rows)
    return train, test
