"""`varloss.metrics` as torchmetrics classes. They accumulate and synchronise sums, never averages of averages.

With several ranks every result covers the samples of all ranks, for any batch sizes.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from varloss import metrics
from varloss.functional import Pairs


class _Metric(Metric):
    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False


class SimilarityStatistics(_Metric):
    """Mean and variance of positive, cross-view negative and within-view negative similarities.

    `update(z0, z1)` takes raw projections, each (N, D); `compute()` returns a dict with the six fields of
    `varloss.metrics.SimilarityStatistics`.

    Args:
        embedding_dim: D. If it is given, ALL pairs of all samples seen count, also across batches and ranks: the statistics of
            a data set, in O(D²) memory. By default only pairs inside each batch count, as the loss sees them. With small
            batches their means lie below those of all pairs.
        dtype: Type of the sums. Use float32 on a device without float64 (MPS).
        **kwargs: As for every torchmetrics class.
    """

    sums: Tensor

    def __init__(self, embedding_dim: int | None = None, *, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if embedding_dim is not None and embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1; got {embedding_dim}.")
        self.embedding_dim = embedding_dim
        size = metrics.SimilaritySums.length() if embedding_dim is None else metrics.Grams.length(embedding_dim)
        self.add_state("sums", torch.zeros(size, dtype=dtype), dist_reduce_fx="sum")

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of two views."""
        if self.embedding_dim is not None and z0.shape[-1] != self.embedding_dim:
            raise ValueError(f"embedding_dim is {self.embedding_dim}; got projections of shape {tuple(z0.shape)}.")
        z0, z1 = z0.detach(), z1.detach()
        if self.embedding_dim is None:
            added = metrics.SimilaritySums.of(z0, z1).pack()
        else:
            added = metrics.Grams.of(z0, z1, dtype=self.sums.dtype).pack()
        self.sums = self.sums + added.to(self.sums.dtype)

    def compute(self) -> dict[str, Tensor]:
        """The six statistics by name.

        Raises:
            ValueError: No negative pair was seen.
        """
        if self.embedding_dim is None:
            sums = metrics.SimilaritySums.unpack(self.sums)
        else:
            sums = metrics.SimilaritySums.of_grams(metrics.Grams.unpack(self.sums, self.embedding_dim))
        if sums.cross.number == 0:
            raise ValueError("similarity statistics need a negative pair: no batch had two samples.")
        return sums.statistics()._asdict()


class _Mean(_Metric):
    """A mean over samples, from the means of batches."""

    total: Tensor
    count: Tensor

    def __init__(self, *, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def _add(self, mean: Tensor, count: int) -> None:
        self.total = self.total + mean.to(self.total.dtype) * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        """The mean over all samples."""
        if self.count == 0:
            raise ValueError(f"{type(self).__name__} has seen no samples.")
        return self.total / self.count


class Alignment(_Mean):
    """`varloss.metrics.alignment` over all samples seen: `update(z0, z1)`.

    Args:
        alpha: Exponent of the distance.
        dtype: Of the sums.
        **kwargs: As for every torchmetrics class.
    """

    higher_is_better = False

    def __init__(self, *, alpha: float = 2.0, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.alpha = alpha

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of two views."""
        self._add(metrics.alignment(z0.detach(), z1.detach(), alpha=self.alpha), z0.shape[0])


class RelativePenaltyEntropy(_Mean):
    """`varloss.metrics.relative_penalty_entropy` over all anchors, each against the negatives of its own batch.

    Args:
        temperature: Of the softmax.
        negatives: "cross", "within" or "both".
        dtype: Of the sums.
        **kwargs: As for every torchmetrics class.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        negatives: Pairs = "cross",
        dtype: torch.dtype = torch.float64,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.temperature = temperature
        self.negatives: Pairs = negatives

    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Add a batch of two views."""
        entropy = metrics.relative_penalty_entropy(
            z0.detach(), z1.detach(), temperature=self.temperature, negatives=self.negatives
        )
        self._add(entropy, z0.shape[0])


class Tolerance(_Metric):
    """`varloss.metrics.tolerance` over all same-label pairs seen, also across batches and ranks: `update(z, labels)`.

    Args:
        num_classes: C; labels lie in [0, C).
        embedding_dim: D. Memory is O(C·D).
        dtype: Of the sums.
        **kwargs: As for every torchmetrics class.
    """

    sums: Tensor

    def __init__(
        self, num_classes: int, embedding_dim: int, *, dtype: torch.dtype = torch.float64, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("sums", torch.zeros(num_classes, embedding_dim + 2, dtype=dtype), dist_reduce_fx="sum")

    def update(self, z: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        added = metrics.ClassSums.of(z.detach(), labels, num_classes=self.num_classes).pack()
        self.sums = self.sums + added.to(self.sums.dtype)

    def compute(self) -> Tensor:
        """Mean cosine of same-label pairs."""
        return metrics.ClassSums.unpack(self.sums).tolerance()


class _AllRows(_Metric):
    """Metrics that are not functions of sums over samples. They keep the projections: O(N·D) memory."""

    rows: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, z: Tensor) -> None:
        """Add a batch of projections (N, D)."""
        self.rows.append(z.detach())

    def _all(self) -> Tensor:
        return dim_zero_cat(self.rows)


class Uniformity(_AllRows):
    """`varloss.metrics.uniformity` over all pairs seen, also across batches and ranks.

    Args:
        t: Scale of the kernel.
        **kwargs: As for every torchmetrics class.
    """

    higher_is_better = False

    def __init__(self, *, t: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.t = t

    def compute(self) -> Tensor:
        """Uniformity of all rows."""
        return metrics.uniformity(self._all(), t=self.t)


class WassersteinUniformity(_AllRows):
    """`varloss.metrics.wasserstein_uniformity` over all pairs seen; `compute` needs O(N²) memory."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Distance of the cosines of all pairs to those of the uniform distribution on the sphere."""
        return metrics.wasserstein_uniformity(self._all())


class EffectiveRank(_AllRows):
    """`varloss.metrics.effective_rank` of all rows seen.

    Args:
        normalize: Scale the rows to unit length first.
        **kwargs: As for every torchmetrics class.
    """

    higher_is_better = True

    def __init__(self, *, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize = normalize

    def compute(self) -> Tensor:
        """Effective rank of all rows."""
        return metrics.effective_rank(self._all(), normalize=self.normalize)
