"""scikit-learn's digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from varloss_bench.data.types import DataError, Request, Source


def digits(request: Request) -> Source:
    """1797 images of 8 x 8, from which each seed draws 997 / 300 / 500."""
    if request.official_test:
        raise DataError("digits have no official test split; omit --official-test")
    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16.0).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return Source(images, labels, 10, (997, 300, 500), rotation=15.0, scale=(0.8, 1.2), flip=False)
