"""scikit-learn's digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from varloss_bench.data.types import DataError, Request, Source


def digits(request: Request) -> Source:
    """1797 images of 8 x 8, of which 997 / 300 / 500 are drawn for every seed."""
    if request.official_test:
        raise DataError("digits have no official test split; leave --official-test out")
    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16.0).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return Source(images, labels, 10, (997, 300, 500), rotation=15.0, scale=(0.8, 1.2), flip=False)
