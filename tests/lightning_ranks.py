"""What the tests of metrics and callbacks under several ranks run in a spawned child, which imports it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import ranks
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import varloss_lightning as vl
from varloss_lightning.callbacks import SimilarityMonitor

SIZES = [7, 3]
BATCHES = {7: [4, 3], 3: [2, 1]}


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


def update(metric: Any, z0: Tensor, z1: Tensor, labels: Tensor) -> None:
    if isinstance(metric, vl.Tolerance):
        metric.update(z0, labels)
    elif isinstance(metric, (vl.Uniformity, vl.WassersteinUniformity, vl.EffectiveRank)):
        metric.update(z0)
    elif isinstance(metric, vl.RelativePenaltyEntropy) and len(z0) < 2:
        return
    else:
        metric.update(z0, z1)


def metrics_worker(z0: Tensor, z1: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every metric on this rank's batches, synchronised."""
    mine = [ranks.shares(z, SIZES) for z in (z0, z1, labels)]
    results = {}
    for name, metric in all_metrics(z0.shape[1]).items():
        for batch in zip(*(part.split(BATCHES[len(mine[0])]) for part in mine), strict=True):
            update(metric, *batch)
        value = metric.compute()
        results[name] = torch.stack(list(value.values())) if isinstance(value, dict) else value
    return results


class Identity(lightning.LightningModule):
    """Its projections are its batch, every second sample on each rank: what is logged can be computed by hand."""

    def __init__(self, z0: Tensor, z1: Tensor) -> None:
        super().__init__()
        self.views = (z0, z1)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*(z[self.global_rank :: 2] for z in self.views)), batch_size=3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Any]:
        z0, z1 = (self.scale * z for z in batch)
        return {"loss": (z0 - z1).square().mean(), "projections": (z0, z1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit_two_ranks(folder: str, z0: Tensor, z1: Tensor) -> None:
    """One epoch over two processes; the logger of rank 0 writes to `folder`."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=1,
        logger=lightning.loggers.CSVLogger(folder, name="", version="run"),
        callbacks=[SimilarityMonitor(every_n_steps=1)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    trainer.fit(Identity(z0, z1))
    assert Path(folder, "run", "metrics.csv").exists()
