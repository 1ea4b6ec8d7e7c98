"""The torchmetrics classes under several ranks: what a spawned child runs, which imports it by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import varloss_lightning as vl


def all_metrics(dim: int) -> dict[str, Any]:
    return {
        "in-batch": vl.SimilarityStatistics(),
        "all pairs": vl.SimilarityStatistics(dim),
        "alignment": vl.Alignment(alpha=3.0),
        "entropy": vl.RelativePenaltyEntropy(temperature=0.3, negatives="both"),
        "tolerance": vl.Tolerance(3, dim),
        "uniformity": vl.Uniformity(t=1.5),
        "wasserstein": vl.WassersteinUniformity(),
        "rank": vl.EffectiveRank(normalize=True),
    }


def batches(rows: int) -> list[int]:
    """How a rank's rows are cut: in two, as evenly as can be."""
    return [size for size in ((rows + 1) // 2, rows // 2) if size]


def update(metric: Any, z0: Tensor, z1: Tensor, labels: Tensor) -> None:
    if isinstance(metric, vl.Tolerance):
        metric.update(z0, labels)
    elif isinstance(metric, (vl.Uniformity, vl.WassersteinUniformity, vl.EffectiveRank)):
        metric.update(z0)
    elif isinstance(metric, vl.RelativePenaltyEntropy) and len(z0) < 2:
        return
    else:
        metric.update(z0, z1)


def synchronised(z0: Tensor, z1: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every metric on this rank's rows, in batches, synchronised."""
    results = {}
    for name, metric in all_metrics(z0.shape[1]).items():
        for batch in zip(*(part.split(batches(len(part))) for part in (z0, z1, labels)), strict=True):
            update(metric, *batch)
        value = metric.compute()
        results[name] = torch.stack(list(value.values())) if isinstance(value, dict) else value
    return results
