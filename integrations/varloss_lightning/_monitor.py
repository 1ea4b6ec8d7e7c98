"""The common part of the two `SimilarityMonitor` classes. It imports neither Lightning package."""

import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from varloss._core import checks
from varloss.metrics import SimilarityStatistics, SimilaritySums

Projections = Callable[[Any, Any, Any, Any], "tuple[Tensor, Tensor] | None"]


# Fewest measurements before a warning: one batch proves nothing, and a short run should be warned before it ends.
ENOUGH = 10


class SimilarityMonitorMixin:
    """Logs similarity statistics of training batches, and warns once when alignment is lost or everything collapses.

    Every `every_n_steps` training batches the monitor looks up the two projections of the batch and logs the six fields of
    `varloss.metrics.SimilarityStatistics`: mean and variance of positive, cross-view negative and within-view negative
    similarities. Negatives are pairs INSIDE a batch of one rank, as the loss sees them, with sums over ranks. With small
    batches their mean lies below that of held-out pairs. The other batches cost a comparison of integers.

    The projections are two tensors (N, D) whose rows i belong to the same sample. They come from one of:

    - a string (by default `"projections"`): this key of the dictionary that `training_step` returns or, without such a key,
      this attribute of the LightningModule, which every `training_step` sets to a pair of tensors::

          def training_step(self, batch, batch_idx):
              ...
              return {"loss": loss, "projections": (z0, z1)}

    - a callable `(trainer, pl_module, outputs, batch) -> (z0, z1)`, or None to skip a batch.

    Args:
        projections: See above.
        every_n_steps: Training batches between two measurements.
        prefix: Prefix of the six names in the logger.
        window: Most measurements that a warning is based on. There is no warning before ten of them (or `window`, if less).
        alignment_floor: Warn when positives averaged less than this over the window.
        collapse_ceiling: Warn when cross-view negatives averaged more than this over the window.

    Raises:
        ValueError, TypeError: For options out of range and, in the first measured batch, for missing projections.
    """

    def __init__(
        self,
        projections: str | Projections = "projections",
        *,
        every_n_steps: int = 50,
        prefix: str = "similarity/",
        window: int = 100,
        alignment_floor: float = 0.5,
        collapse_ceiling: float = 0.9,
    ) -> None:
        if not (isinstance(projections, str) or callable(projections)):
            raise TypeError(f"projections must be a name or a callable; got {type(projections).__name__}.")
        window = checks.whole("window", window, 1)
        self.projections = projections
        self.every_n_steps = checks.whole("every_n_steps", every_n_steps, 1)
        self.prefix = prefix
        self.alignment_floor = checks.real("alignment_floor", alignment_floor)
        self.collapse_ceiling = checks.real("collapse_ceiling", collapse_ceiling)
        self._batches = 0
        self._positives: deque[float] = deque(maxlen=window)
        self._negatives: deque[float] = deque(maxlen=window)
        self._warned: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure and log, every `every_n_steps` batches."""
        del batch_idx
        self._batches += 1
        if self._batches % self.every_n_steps:
            return
        views = self._find(trainer, pl_module, outputs, batch)
        with torch.no_grad():
            dtype = torch.float32 if pl_module.device.type == "mps" else torch.float64
            nothing = torch.zeros(SimilaritySums.length(), dtype=dtype)
            packed = nothing if views is None else SimilaritySums.of(*views).pack()
            # Ranks without a batch to measure also take part in the sum; otherwise the others would wait forever.
            packed = trainer.strategy.reduce(packed.to(pl_module.device), reduce_op="sum")
            # One transfer to the host for all of them.
            sums = SimilaritySums.unpack(packed.cpu())
        if not sums.cross.number:
            return
        names, values = SimilarityStatistics._fields, torch.stack(sums.statistics()).tolist()
        logged = {f"{self.prefix}{name}": value for name, value in zip(names, values, strict=True)}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        self._judge(logged[f"{self.prefix}positive_mean"], logged[f"{self.prefix}cross_mean"], trainer.is_global_zero)

    def _find(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any) -> tuple[Tensor, Tensor] | None:
        if callable(self.projections):
            views = self.projections(trainer, pl_module, outputs, batch)
            if views is None:
                return None
        elif isinstance(outputs, Mapping) and self.projections in outputs:
            views = outputs[self.projections]
        elif hasattr(pl_module, self.projections):
            views = getattr(pl_module, self.projections)
        else:
            raise ValueError(
                f"SimilarityMonitor found no projections: training_step returned no {self.projections!r} and "
                f"{type(pl_module).__name__} has no such attribute. Return them, or give a callable as projections."
            )
        if not (isinstance(views, (tuple, list)) and len(views) == 2):
            raise TypeError(f"projections must be a pair of tensors (N, D); got {type(views).__name__}.")
        return views[0].detach(), views[1].detach()

    def _judge(self, positive: float, negative: float, speak: bool) -> None:
        self._positives.append(positive)
        self._negatives.append(negative)
        count = len(self._positives)
        if count < min(self._positives.maxlen or 1, ENOUGH):
            return
        mean_positive, mean_negative = sum(self._positives) / count, sum(self._negatives) / count
        if mean_positive < self.alignment_floor:
            self._warn(
                "alignment",
                f"alignment is lost: positive pairs had a mean similarity of {mean_positive:.2f} over the last {count} "
                "measurements. A VRN weight too large for the dimension does this; lower it or take pairs='both'.",
                speak,
            )
        if mean_negative > self.collapse_ceiling:
            self._warn(
                "collapse",
                f"embeddings collapse: negative pairs had a mean similarity of {mean_negative:.2f} over the last {count} "
                "measurements. In that case a small variance is not an improvement.",
                speak,
            )

    def _warn(self, kind: str, message: str, speak: bool) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            if speak:
                warnings.warn(message, RuntimeWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: a resumed run keeps its window and does not warn twice."""
        return {
            "batches": self._batches,
            "positives": list(self._positives),
            "negatives": list(self._negatives),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint."""
        self._batches = state_dict["batches"]
        self._positives.extend(state_dict["positives"])
        self._negatives.extend(state_dict["negatives"])
        self._warned = set(state_dict["warned"])
