"""The torchmetrics classes under several ranks: what a spawned child runs, which imports it by name."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import varloss_lightning as vl

DIM = 4
# Every class in more than one configuration of each argument.
METRICS: dict[str, Any] = {
    "in-batch": vl.SimilarityStatistics,
    "in-batch, fp32": lambda: vl.SimilarityStatistics(dtype=torch.float32),
    "all pairs": lambda: vl.SimilarityStatistics(DIM),
    "alignment": vl.Alignment,
    "alignment, fp32": lambda: vl.Alignment(dtype=torch.float32),
    "alignment, alpha": lambda: vl.Alignment(alpha=1.0),
    "entropy": vl.RelativePenaltyEntropy,
    "entropy, within": lambda: vl.RelativePenaltyEntropy(negatives="within"),
    "entropy, cold": lambda: vl.RelativePenaltyEntropy(temperature=0.1),
    "tolerance": lambda: vl.Tolerance(3, DIM),
    "tolerance, more classes": lambda: vl.Tolerance(5, DIM),
    "uniformity": vl.Uniformity,
    "uniformity, t": lambda: vl.Uniformity(t=0.5),
    "wasserstein": vl.WassersteinUniformity,
    "rank": vl.EffectiveRank,
    "rank, normalized": lambda: vl.EffectiveRank(normalize=True),
}


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


def beside_an_idle_rank(data: dict[str, Tensor]) -> dict[str, Any]:
    """Every metric where rank 0 sees the data and rank 1 nothing, an empty batch, or rows that are not finite."""
    found = {}
    odd = {
        "nothing": [],
        "no rows": [{name: part[:0] for name, part in data.items()}],
        "not finite": [{name: part * torch.nan if part.is_floating_point() else part for name, part in data.items()}],
    }
    warnings.simplefilter("ignore")
    for kind, batches in odd.items():
        for name, build in METRICS.items():
            metric = build()
            for batch in [data] if dist.get_rank() == 0 else batches:
                metric.update(**metric._filter_kwargs(**batch))
            found[f"{name}: {kind}"] = metric.compute()
    return found
