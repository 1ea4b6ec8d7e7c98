"""What the tests of callbacks under several ranks run in a spawned child, which imports it by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from varloss_lightning.callbacks import SimilarityMonitor

# What rank 1 has in place of its projections.
ODD: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "skipped": lambda z0, z1: None,
    "other shapes": lambda z0, z1: (z0, z1[:1]),
    "one sample": lambda z0, z1: (z0[:1], z1[:1]),
    "no sample": lambda z0, z1: (z0[:0], z1[:0]),
    "NaN": lambda z0, z1: (z0 * torch.nan, z1),
}


class OddOnRank1:
    """Projections that are usable on rank 0 alone. An object, because a spawned child has to unpickle it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any) -> Any:
        z0, z1 = outputs["projections"]
        return ODD[self.kind](z0, z1) if trainer.global_rank == 1 else (z0, z1)


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
        found = {"loss": (z0 - z1).square().mean(), "projections": (z0, z1)}
        return found if self.global_rank == 1 else {**found, "of rank 0": (z0, z1)}

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
        callbacks=[
            SimilarityMonitor(every_n_steps=1),
            SimilarityMonitor("of rank 0", every_n_steps=1, prefix="no key/"),
            *(SimilarityMonitor(OddOnRank1(kind), every_n_steps=1, prefix=f"{kind}/") for kind in ODD),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    trainer.fit(Identity(z0, z1))
    assert Path(folder, "run", "metrics.csv").exists()
