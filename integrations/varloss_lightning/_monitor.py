"""The common part of the two `SimilarityMonitor` classes. It imports neither Lightning package."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from varloss._core import checks
from varloss.metrics import Grams, SimilarityStatistics, SimilaritySums
from varloss.metrics.embeddings import finite_rows

Projections = Callable[[Any, Any, Any, Any], "tuple[Tensor, Tensor] | None"]


# Fewest measurements before a warning: one batch proves nothing, and a short run should be warned before it ends.
ENOUGH = 10
DEFAULT_SOURCE, DEFAULT_PREFIX = "projections", "similarity/"
# Monitors of one kind have different numbers, also before their trainer is known.
_numbers = itertools.count(1)


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

    No batch ends the run, and with several ranks none waits for one that has nothing to measure:

    - A step that was skipped (`training_step` returned None in automatic optimization) is not measured.
    - A batch is skipped if its projections are missing or are not a pair of matrices of one shape. The first time, a warning
      says what was found instead. So a misspelt name is a warning at the first measured batch, and the run goes on.
    - Samples with a row that is not finite are left out of the statistics, and of all further judgements. The first time, a
      warning says how many.
    - A batch that has no two samples left is skipped. A warning follows after ten such batches in a row.

    Several monitors live in one trainer; give each its own `prefix`.

    Args:
        projections: See above.
        every_n_steps: Training batches between two measurements.
        prefix: Prefix of the six names in the logger.
        window: Most measurements that a warning is based on. There is no warning before ten of them (or `window`, if less).
        alignment_floor: Warn when positives averaged less than this over the window.
        collapse_ceiling: Warn when cross-view negatives averaged more than this over the window.

    Raises:
        ValueError, TypeError: For options out of range.
    """

    def __init__(
        self,
        projections: str | Projections = DEFAULT_SOURCE,
        *,
        every_n_steps: int = 50,
        prefix: str = DEFAULT_PREFIX,
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
        self._batches = self._missed = 0
        self._number = next(_numbers)
        self._positives: deque[float] = deque(maxlen=window)
        self._negatives: deque[float] = deque(maxlen=window)
        self._warned: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure and log, every `every_n_steps` batches."""
        del batch_idx
        self._batches += 1
        if self._batches % self.every_n_steps:
            return
        with torch.no_grad():
            packed = self._measured(self._find(trainer, pl_module, outputs, batch))
            # All ranks take part in the sum, also those without anything to measure; otherwise the others would wait forever.
            dtype = torch.float32 if pl_module.device.type == "mps" else torch.float64
            packed = trainer.strategy.reduce(packed.to(pl_module.device, dtype), reduce_op="sum")
            # One transfer to the host for all of them.
            packed = packed.cpu()
        sums = SimilaritySums.unpack(packed[:-2])
        samples, tries = (int(number) for number in packed[-2:])
        if left_out := samples - int(sums.positive.number):
            self._warn(
                "finite",
                f"SimilarityMonitor left out {left_out} of {samples} samples: their projections are not finite.",
                trainer.is_global_zero,
            )
        if sums.cross.number > 0:
            self._missed = 0
            self._log(trainer, sums)
        elif tries:
            self._missed += 1
        if self._missed == ENOUGH:
            self._warn(
                "missed",
                f"SimilarityMonitor measured nothing in the last {ENOUGH} batches that it looked at: none had two samples with "
                "finite projections.",
                trainer.is_global_zero,
            )

    def _log(self, trainer: Any, sums: SimilaritySums) -> None:
        names, values = SimilarityStatistics._fields, torch.stack(sums.statistics()).tolist()
        logged = {f"{self.prefix}{name}": value for name, value in zip(names, values, strict=True)}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        self._judge(logged[f"{self.prefix}positive_mean"], logged[f"{self.prefix}cross_mean"], trainer.is_global_zero)

    def _find(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any) -> Any:
        """What should be a pair of projections, an exception in place of missing ones, or None for a batch to skip."""
        # A manual step need not return anything.
        if not isinstance(outputs, Tensor) and not outputs and pl_module.automatic_optimization:
            return None
        if callable(self.projections):
            try:
                return self.projections(trainer, pl_module, outputs, batch)
            except (
                Exception
            ) as error:  # a batch that the callable does not expect ends no run, and no rank waits for this one
                return error
        if isinstance(outputs, Mapping) and self.projections in outputs:
            return outputs[self.projections]
        found = getattr(pl_module, self.projections, None)
        if found is None:
            return ValueError(
                f"training_step returned no {self.projections!r}, and {type(pl_module).__name__} has no such attribute. Return "
                "them, or give a callable as projections."
            )
        return found

    def _measured(self, found: Any) -> Tensor:
        """The packed sums of this rank, its number of samples, and 1 if there was something to measure."""
        samples, sums = 0, torch.zeros(SimilaritySums.length())
        try:
            if isinstance(found, Exception):
                raise found
            if found is not None:
                if not (isinstance(found, (tuple, list)) and len(found) == 2):
                    raise TypeError(f"projections must be a pair of tensors (N, D); got {type(found).__name__}.")
                (u, v), keep = finite_rows(z0=found[0], z1=found[1])
                samples, sums = u.shape[0], SimilaritySums.of_grams(Grams.of(u, v)._replace(number=keep.sum())).pack()
        except Exception as error:
            # On the rank that it happens on: the others do not know.
            self._warn("projections", f"SimilarityMonitor skips a batch without usable projections: {error!r}", True)
        return torch.cat([sums, sums.new_tensor([samples, found is not None])])

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

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Number this monitor among those of the trainer, and warn of two that log under the same names."""
        del pl_module
        monitors = [other for other in trainer.callbacks if isinstance(other, SimilarityMonitorMixin)]
        self._number = [other for other in monitors if other._kind() == self._kind()].index(self)
        same = [other for other in monitors if other.prefix == self.prefix]
        if stage == "fit" and same[0] is self and len(same) > 1 and trainer.is_global_zero:
            warnings.warn(
                f"several SimilarityMonitors log under {self.prefix!r}: give each its own prefix.",
                UserWarning,
                stacklevel=2,
            )

    def _kind(self) -> dict[str, str]:
        """What tells this monitor from others in a checkpoint; empty for the defaults."""
        source = self.projections
        name = source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__qualname__)
        kind = {"projections": (name, DEFAULT_SOURCE), "prefix": (self.prefix, DEFAULT_PREFIX)}
        return {option: value for option, (value, default) in kind.items() if value != default}

    @property
    def state_key(self) -> str:
        """Name of this monitor's state in a checkpoint. Monitors of one kind are numbered by their order in the trainer."""
        parts: dict[str, Any] = self._kind()
        if self._number:
            parts = parts | {"number": self._number}
        return type(self).__qualname__ + (repr(parts) if parts else "")

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: a resumed run keeps its window and does not warn twice."""
        return {
            "batches": self._batches,
            "missed": self._missed,
            "positives": list(self._positives),
            "negatives": list(self._negatives),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint."""
        self._batches, self._missed = state_dict["batches"], state_dict.get("missed", 0)
        for window, name in ((self._positives, "positives"), (self._negatives, "negatives")):
            window.clear()
            window.extend(state_dict[name])
        self._warned = set(state_dict["warned"])
