"""`varloss.metrics` as torchmetrics classes. They accumulate and synchronise sums, never averages of averages.

With several ranks every result covers the samples of all ranks, for any batch sizes, also where a rank has no samples.

No batch ends an evaluation or spoils its result:

- A batch may have any number of rows, also 1 or 0. Rows without a partner add nothing to a metric of pairs.
- A sample with a row that is not finite (or a label that is NaN) is left out. `left_out` counts these samples, and `compute`
  warns of them. Nothing in `update` waits for the device.
- Where no sample or no pair is left, `compute` warns and returns NaN.

Options are fixed at construction: a `MetricCollection` updates one metric for all those with the same `update` and the same
options of `update`. Sums are float64 by default and never narrower than float32: a cast to half precision leaves them as
they are, because in bfloat16 256 + 1 is 256.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors

from varloss import metrics
from varloss._core import checks, numerics
from varloss._core.pairs import PAIRS, Pairs
from varloss.metrics import embeddings


class _Metric(Metric):
    """Options that stay as they were constructed, and states whose names tell what `update` makes of a batch.

    After the first batch, a `MetricCollection` takes metrics for one if their states have equal names and values, and from
    then on it updates only one of them. Values may agree by chance, so names must not: they hold the class that defines
    `update` and the options that `update` depends on. A subclass with its own `update` has states of its own.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    def __init__(self, of_update: dict[str, Any], of_compute: dict[str, Any], *told: object, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in {**of_update, **of_compute}.items():
            setattr(self, name, value)
        self._fixed = {*of_update, *of_compute}
        owner = next(kind for kind in type(self).__mro__ if "update" in vars(kind))
        options = ",".join([*(f"{name}={value}" for name, value in of_update.items()), *map(str, told)])
        # Names of states become keys of state_dicts, in which dots separate modules.
        self._suffix = f"_of_{owner.__module__}.{owner.__qualname__}({options})".replace(".", "_")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_fixed", ()):
            raise AttributeError(
                f"{name} of {type(self).__name__} is fixed at construction, because a MetricCollection may update one metric "
                "for several: make a new one."
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> _Metric:
        @functools.wraps(fn)  # torchmetrics looks at its name
        def not_narrower(x: Tensor) -> Tensor:
            moved = fn(x)
            narrower = moved.is_floating_point() and moved.dtype.itemsize < min(x.dtype.itemsize, 4)
            return x.to(moved.device) if narrower else moved

        super()._apply(not_narrower, exclude_state)
        return self

    def _warn(self, left_out: int, missing: str) -> None:
        """Of samples that are left out, and of what is missing for a result."""
        if left_out:
            rank_zero_warn(f"{type(self).__name__} left out {left_out} samples that are not finite.")
        if missing and self.update_called:  # otherwise torchmetrics warns
            rank_zero_warn(f"{type(self).__name__} has seen no {missing}: the result is NaN.")


class _Sums(_Metric):
    """A metric that is a function of one tensor of sums over samples."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, of_update: dict[str, Any], **kwargs: Any) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype}.")
        super().__init__(of_update, {}, dtype, **kwargs)
        self.add_state("sums" + self._suffix, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("left_out" + self._suffix, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def sums(self) -> Tensor:
        """The sums of all samples since the last reset."""
        return getattr(self, "sums" + self._suffix)  # type: ignore[no-any-return]

    @property
    def left_out(self) -> Tensor:
        """How many samples were left out since the last reset because they are not finite."""
        return getattr(self, "left_out" + self._suffix)  # type: ignore[no-any-return]

    def _add(self, sums: Tensor, keep: Tensor) -> None:
        setattr(self, "sums" + self._suffix, self.sums + sums.to(self.sums.dtype))
        setattr(self, "left_out" + self._suffix, self.left_out + (~keep).sum())


class SimilarityStatistics(_Sums):
    """Mean and variance of positive, cross-view negative and within-view negative similarities.

    `update(z0, z1)` takes raw projections, each (N, D); `compute()` returns a dict with the six fields of
    `varloss.metrics.SimilarityStatistics`, NaN for a kind without a pair.

    Args:
        embedding_dim: D. If it is given, ALL pairs of all samples seen count, also across batches and ranks: the statistics of
            a data set, in O(D²) memory. By default only pairs inside each batch count, as the loss sees them. With small
            batches their means lie below those of all pairs.
        dtype: Type of the sums. Use float32 on a device without float64 (MPS).
        **kwargs: As for every torchmetrics class.
    """

    embedding_dim: int | None

    def __init__(self, embedding_dim: int | None = None, *, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
        size = metrics.SimilaritySums.length()
        if embedding_dim is not None:
            embedding_dim = checks.whole("embedding_dim", embedding_dim, 1)
            size = metrics.Grams.length(embedding_dim)
        super().__init__((size,), dtype, {"embedding_dim": embedding_dim}, **kwargs)

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of two views."""
        if self.embedding_dim is not None and z0.shape[-1] != self.embedding_dim:
            raise ValueError(f"embedding_dim is {self.embedding_dim}; got projections of shape {tuple(z0.shape)}.")
        (u, v), keep = embeddings.finite_rows(z0=z0.detach(), z1=z1.detach())
        grams = metrics.Grams.of(u, v, dtype=self.sums.dtype)._replace(number=keep.sum())
        added = metrics.SimilaritySums.of_grams(grams) if self.embedding_dim is None else grams
        self._add(added.pack(), keep)

    def compute(self) -> dict[str, Tensor]:
        """The six statistics by name."""
        if self.embedding_dim is None:
            sums = metrics.SimilaritySums.unpack(self.sums)
        else:
            sums = metrics.SimilaritySums.of_grams(metrics.Grams.unpack(self.sums, self.embedding_dim))
        self._warn(int(self.left_out), "" if sums.cross.number > 0 else "negative pair: no batch had two samples")
        return sums.statistics()._asdict()


class _Mean(_Sums):
    """A mean over samples. The two sums are that of the values, and the number of samples."""

    _least: str

    def __init__(self, dtype: torch.dtype, of_update: dict[str, Any], **kwargs: Any) -> None:
        super().__init__((2,), dtype, of_update, **kwargs)

    def compute(self) -> Tensor:
        """The mean over all samples."""
        total, number = self.sums.unbind()
        self._warn(int(self.left_out), "" if number > 0 else self._least)
        return total / number


class Alignment(_Mean):
    """`varloss.metrics.alignment` over all samples seen: `update(z0, z1)`.

    Args:
        alpha: Exponent of the distance.
        dtype: Of the sums.
        **kwargs: As for every torchmetrics class.
    """

    higher_is_better = False
    alpha: float
    _least = "sample"

    def __init__(self, *, alpha: float = 2.0, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
        super().__init__(dtype, {"alpha": checks.positive("alpha", alpha)}, **kwargs)

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of two views."""
        (u, v), keep = embeddings.finite_rows(z0=z0.detach(), z1=z1.detach())
        if rows := u.shape[0]:
            # Two rows of zeros, in place of a sample that is left out, are 0 apart.
            total = metrics.alignment(u, v, alpha=self.alpha) * rows
            self._add(torch.stack([total, keep.sum()]), keep)


class RelativePenaltyEntropy(_Mean):
    """`varloss.metrics.relative_penalty_entropy` over all anchors, each against the negatives of its own batch.

    A sample that is alone in its batch has no negatives and does not count.

    Args:
        temperature: Of the softmax.
        negatives: "cross", "within" or "both".
        dtype: Of the sums.
        **kwargs: As for every torchmetrics class.
    """

    temperature: float
    negatives: Pairs
    _least = "negative pair: no batch had two samples"

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        negatives: Pairs = "cross",
        dtype: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> None:
        temperature = checks.positive("temperature", temperature)
        checks.one_of(negatives, PAIRS, "negatives")
        super().__init__(dtype, {"temperature": temperature, "negatives": negatives}, **kwargs)

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of two views."""
        (u, v), keep = embeddings.finite_rows(z0=z0.detach(), z1=z1.detach())
        u, v = numerics.unit(u), numerics.unit(v)
        entropies = embeddings.sum_of_entropies(u, v, self.temperature, self.negatives, keep)
        samples = keep.sum()
        self._add(torch.stack([entropies / 2, samples.where(samples > 1, 0)]), keep)


class Tolerance(_Sums):
    """`varloss.metrics.tolerance` over all same-label pairs seen, also across batches and ranks: `update(z, labels)`.

    Args:
        num_classes: C; labels are whole numbers in [0, C), of any real dtype.
        embedding_dim: D. Memory is O(C·D).
        dtype: Of the sums.
        **kwargs: As for every torchmetrics class.
    """

    num_classes: int
    embedding_dim: int

    def __init__(
        self, num_classes: int, embedding_dim: int, *, dtype: torch.dtype = torch.float64, **kwargs: Any
    ) -> None:
        options = {
            "num_classes": checks.whole("num_classes", num_classes, 1),
            "embedding_dim": checks.whole("embedding_dim", embedding_dim, 1),
        }
        super().__init__((options["num_classes"], options["embedding_dim"] + 2), dtype, options, **kwargs)

    def update(self, z: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        if z.shape[-1] != self.embedding_dim:
            raise ValueError(f"embedding_dim is {self.embedding_dim}; got projections of shape {tuple(z.shape)}.")
        (x,), keep = embeddings.finite_rows(z=z.detach())
        ids = embeddings.class_ids(labels, z)
        if labels.is_floating_point():
            keep = keep & labels.isfinite()
        self._add(metrics.ClassSums.of(x, ids, num_classes=self.num_classes, keep=keep).pack(), keep)

    def compute(self) -> Tensor:
        """Mean cosine of same-label pairs."""
        sums = metrics.ClassSums.unpack(self.sums)
        self._warn(int(self.left_out), "" if (sums.numbers > 1).any() else "two samples with the same label")
        return sums.tolerance()


class _AllRows(_Metric):
    """Metrics that are not functions of sums over samples. They keep the projections: O(N·D) memory.

    They differ in `compute` alone, so that those in one `MetricCollection` share the projections.
    """

    def __init__(self, of_compute: dict[str, Any], **kwargs: Any) -> None:
        super().__init__({}, of_compute, **kwargs)
        self.add_state("rows" + self._suffix, [], dist_reduce_fx="cat")

    @property
    def rows(self) -> list[Tensor]:
        """The projections of all batches since the last reset."""
        return getattr(self, "rows" + self._suffix)  # type: ignore[no-any-return]

    @property
    def left_out(self) -> Tensor:
        """How many samples do not count because they are not finite."""
        return (~self._all().isfinite().all(dim=1)).sum()

    def update(self, z: Tensor) -> None:
        """Add a batch of projections (N, D)."""
        checks.embeddings(z=z)
        if self.rows and self.rows[0].shape[1] != z.shape[1]:
            raise ValueError(f"earlier batches had projections of dimension {self.rows[0].shape[1]}; got {z.shape[1]}.")
        self.rows.append(z.detach())

    def compute(self) -> Tensor:
        """The metric of all finite rows."""
        rows = self._all()
        finite = rows[rows.isfinite().all(dim=1)]
        missing = self._missing(finite)
        self._warn(rows.shape[0] - finite.shape[0], missing)
        return numerics.widest(finite.new_full((), torch.nan)) if missing else self._value(finite)

    def _all(self) -> Tensor:
        # Once synchronised, the list is a matrix; a vector without entries where no rank has rows.
        return dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, 1, device=self.device)

    def _missing(self, rows: Tensor) -> str:
        """What is missing for a value; empty where nothing is."""
        return "two rows" if rows.shape[0] < 2 else ""

    def _value(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        """Ranks without rows take part with no rows of the width and dtype of the others'; all gather one shape then."""
        rows = dim_zero_cat(self.rows) if self.rows else None
        mine = [0, 0] if rows is None else [rows.shape[1], checks.DTYPES.index(rows.dtype)]
        group = process_group or self.process_group
        kinds = dist_sync_fn(torch.tensor(mine, device=self.device), group=group)
        width, dtype = torch.stack(kinds).amax(dim=0).tolist()
        if width:
            if rows is None:
                rows = torch.empty(0, width, device=self.device)
            setattr(self, "rows" + self._suffix, [rows.to(checks.DTYPES[dtype])])
        super()._sync_dist(dist_sync_fn, process_group)


class Uniformity(_AllRows):
    """`varloss.metrics.uniformity` over all pairs seen, also across batches and ranks.

    Args:
        t: Scale of the kernel.
        **kwargs: As for every torchmetrics class.
    """

    higher_is_better = False
    t: float

    def __init__(self, *, t: float = 2.0, **kwargs: Any) -> None:
        super().__init__({"t": checks.positive("t", t)}, **kwargs)

    def _value(self, rows: Tensor) -> Tensor:
        return metrics.uniformity(rows, t=self.t)


class WassersteinUniformity(_AllRows):
    """`varloss.metrics.wasserstein_uniformity` over all pairs seen; `compute` needs O(N²) memory."""

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({}, **kwargs)

    def _value(self, rows: Tensor) -> Tensor:
        return metrics.wasserstein_uniformity(rows)


class EffectiveRank(_AllRows):
    """`varloss.metrics.effective_rank` of all rows seen.

    Args:
        normalize: Scale the rows to unit length first.
        **kwargs: As for every torchmetrics class.
    """

    higher_is_better = True
    normalize: bool

    def __init__(self, *, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__({"normalize": bool(normalize)}, **kwargs)

    def _missing(self, rows: Tensor) -> str:
        return "" if rows.any() else "row with a direction"

    def _value(self, rows: Tensor) -> Tensor:
        return metrics.effective_rank(rows, normalize=self.normalize)
