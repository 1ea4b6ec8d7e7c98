"""Mean and variance of similarities: of one batch, or of sums over batches and ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from varloss._core.grams import Grams, PairSums
from varloss.metrics.embeddings import wide_rows


class SimilarityStatistics(NamedTuple):
    """Mean and population variance of three kinds of cosine similarities; see :func:`similarity_statistics`.

    Positive is u_i·v_i; cross u_i·v_j over i ≠ j, whose variance VRN reduces; within u_i·u_j and v_i·v_j over i ≠ j of
    both views pooled, with the variance about the pooled mean.

    Example:
        >>> import torch, varloss
        >>> found = varloss.metrics.similarity_statistics(torch.eye(3), torch.eye(3))
        >>> found.positive_mean.item(), found.cross_var.item()
        (1.0, 0.0)
    """

    positive_mean: Tensor
    positive_var: Tensor
    cross_mean: Tensor
    cross_var: Tensor
    within_mean: Tensor
    within_var: Tensor


class SimilaritySums(NamedTuple):
    """What :class:`SimilarityStatistics` are made of: number, sum and sum of squares of each kind of similarities.

    Packed into one vector, the sums add up over disjoint sets of pairs. Over batches or ranks there are two different
    statistics. For the pairs INSIDE each batch, as a loss sees them, add the packed sums of the batches. For ALL pairs, also
    those between batches, add packed :class:`Grams` and take :meth:`of_grams` of the result.

    Example:
        >>> import torch, varloss
        >>> batches = [torch.randn(2, 4, 8) for _ in range(3)]
        >>> packed = sum(varloss.metrics.SimilaritySums.of(z0, z1).pack() for z0, z1 in batches)
        >>> in_batch = varloss.metrics.SimilaritySums.unpack(packed)
        >>> packed = sum(varloss.metrics.Grams.of(z0, z1, dtype=torch.float64).pack() for z0, z1 in batches)
        >>> all_pairs = varloss.metrics.SimilaritySums.of_grams(varloss.metrics.Grams.unpack(packed, dim=8))
        >>> int(in_batch.cross.number), int(all_pairs.cross.number)
        (36, 132)
    """

    positive: PairSums
    cross: PairSums
    within: PairSums

    @classmethod
    def of(cls, z0: Tensor, z1: Tensor) -> SimilaritySums:
        """Sums over the pairs of one batch, in float64 (float32 on MPS). Arguments as :func:`similarity_statistics`.

        Edge cases: a single row counts as a positive pair without negatives; no row at all counts nothing.
        """
        return cls.of_grams(Grams.of(*wide_rows(0, "a batch", z0=z0, z1=z1)))

    @classmethod
    def of_grams(cls, grams: Grams) -> SimilaritySums:
        """Sums over all pairs of the samples whose Gram matrices were added up."""
        return cls(grams.pairs("positive"), grams.pairs("cross"), grams.pairs("within"))

    @staticmethod
    def length() -> int:
        """Length of the packed vector."""
        return 9

    def pack(self) -> Tensor:
        """One vector that adds up over disjoint sets of pairs: over batches, or for an all-reduce."""
        like = self.positive.total
        parts = [part for sums in self for part in sums]
        return torch.stack([torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in parts])

    @classmethod
    def unpack(cls, packed: Tensor) -> SimilaritySums:
        """The sums in a packed vector, or in the sum of several; ValueError for a vector of another length."""
        if packed.shape != (cls.length(),):
            raise ValueError(f"similarity sums have shape ({cls.length()},); got {tuple(packed.shape)}.")
        return cls(*(PairSums(*part) for part in packed.view(3, 3).unbind()))

    def statistics(self) -> SimilarityStatistics:
        """Means and population variances of the pairs that were summed.

        Edge cases: NaN for a kind without a pair. To look for one would synchronise the device.
        """
        return SimilarityStatistics(*(number for sums in self for number in sums.mean_and_variance()))


def similarity_statistics(z0: Tensor, z1: Tensor) -> SimilarityStatistics:
    r"""Mean and population variance of positive, cross-view negative and within-view negative similarities.

    Equivalent to, with u, v the normalised rows of ``z0``, ``z1``::

        S, A, B = u @ v.T, u @ u.T, v @ v.T
        off = ~torch.eye(N, dtype=torch.bool)
        S.diagonal().mean(), S.diagonal().var(correction=0)
        S[off].mean(),       S[off].var(correction=0)
        W = torch.cat([A[off], B[off]]);  W.mean(), W.var(correction=0)

    The sums over pairs are taken in closed form, sum_ij S_ij² = <U'U, V'V>_F, so time is O(N D²) and memory
    O(N D + D²): no N x N matrix exists, N = 50 000 is fine. Nothing synchronises the device.

    Means and variances have absolute errors below 1e-14, measured for clusters of every spread up to N = 50 000 (on
    MPS, which has no float64, that of float32). A variance is a difference of numbers up to 1: of a cluster so tight that
    its variance is below 1e-14, only that is known.

    Args:
        z0, z1: (N, D) projections of both views, N ≥ 2, any floating dtype; row i of both is one sample.

    Returns six 0-dim tensors (cosines). Sample indices are taken to be distinct: every i ≠ j is a negative pair.
    Edge cases: a collapse gives mean 1 and variance 0, up to the error. A row that is not finite makes all six NaN.
    Source: the quantities of Lee et al., ICML 2025 (arXiv 2506.09781), Sections 4 and 5.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
        >>> round(varloss.metrics.similarity_statistics(z0, z1).cross_mean.item(), 4)
        0.3536
    """
    return SimilaritySums.of_grams(Grams.of(*wide_rows(2, "a negative pair", z0=z0, z1=z1))).statistics()
