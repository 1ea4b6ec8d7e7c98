"""What VRN does against momentum keys: MoCo v2 on digits with the term between queries and keys, 4 seeds.

``python run.py > table.txt``. The harness itself never trains this way. All other options are those of its default trial.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from varloss.functional import vrn
from varloss_bench.config import TrialConfig
from varloss_bench.methods import METHODS
from varloss_bench.training.modules import MoCoModule
from varloss_bench.training.trial import run_trial

WEIGHT = 3.0
NUM_SAMPLES = 997  # training images of the default split


class OneSided(MoCoModule):
    """MoCo v2 plus VRN of each view's queries and the other view's keys."""

    def contrastive_loss(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The method's loss and the term against the keys."""
        loss, q0, q1 = super().contrastive_loss(x0, x1)
        with torch.no_grad():
            k0, k1 = self.encode_views(self.key_encoder, x0, x1)
        term = (vrn(q0, k1, num_samples=NUM_SAMPLES) + vrn(q1, k0, num_samples=NUM_SAMPLES)) / 2
        return loss + WEIGHT * term, q0, q1


print(f"MoCo v2, digits, B=16, t=.5, 20 epochs, torch {torch.__version__}; held-out cosine similarities")
print(f"{'VRN between':<22}{'seed':<6}{'negatives mean':<17}{'variance':<11}{'positives':<11}10-label probe")
plain = METHODS["moco"]
one_sided = dataclasses.replace(plain, module=f"{__name__}:{OneSided.__name__}")
for name, row, weight in (
    ("none", plain, 0),
    ("queries and queries", plain, WEIGHT),
    ("queries and keys", one_sided, 0),
):
    METHODS["moco"] = row
    for seed in range(4):
        found = run_trial(TrialConfig(method="moco", weight=weight, seed=seed))["metrics"]
        print(
            f"{name:<22}{seed:<6}{found['negative_mean']:<17.3f}{found['negative_variance']:<11.4f}"
            f"{found['positive_mean']:<11.3f}{found['few_label_probe']:.2f}",
            flush=True,
        )
