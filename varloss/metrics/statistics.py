"""Similarity statistics, and the sums over batches and ranks that they are made of. Public in ``varloss.metrics``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from varloss._core import checks, numerics

_Function = TypeVar("_Function", bound=Callable[..., Any])


class SimilarityStatistics(NamedTuple):
    """Mean and population variance of three kinds of cosine similarities; see ``similarity_statistics``.

    Attributes:
        positive_mean: Mean of u_i·v_i.
        positive_var: Population variance of u_i·v_i.
        cross_mean: Mean of u_i·v_j over i ≠ j, the cross-view negatives.
        cross_var: Their population variance, the quantity VRN reduces.
        within_mean: Mean of u_i·u_j and v_i·v_j over i ≠ j, the within-view negatives of both views pooled.
        within_var: Their population variance about the pooled mean.
    """

    positive_mean: Tensor
    positive_var: Tensor
    cross_mean: Tensor
    cross_var: Tensor
    within_mean: Tensor
    within_var: Tensor


def without_autocast(function: _Function) -> _Function:
    """Run ``function`` with autocast off on the device of its first tensor: wide stays wide."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is None:
            given = ", ".join(type(value).__name__ for value in (*args, *kwargs.values())) or "nothing"
            raise TypeError(f"{function.__name__} takes tensors, got {given}")
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def rows(minimum: int, why: str, **named: Tensor) -> list[Tensor]:
    """Check matrices of equal width and at least ``minimum`` rows and return them in the widest dtype."""
    checks.embeddings(**named)
    for name, z in named.items():
        if z.shape[0] < minimum:
            raise ValueError(f"{why} needs at least {minimum} rows; {name} has {z.shape[0]}.")
    return [numerics.widest(numerics.wide(z)) for z in named.values()]


def unit_rows(z: Tensor, minimum: int, why: str) -> Tensor:
    """Checked rows of unit length in the widest dtype."""
    return numerics.unit(rows(minimum, why, z=z)[0])


def unit_views(z0: Tensor, z1: Tensor, minimum: int, why: str) -> tuple[Tensor, Tensor]:
    """Both views' checked rows of unit length in the widest dtype."""
    u, v = rows(minimum, why, z0=z0, z1=z1)
    if z0.shape != z1.shape:
        raise ValueError(f"z0 and z1 must have the same shape; got {tuple(z0.shape)} and {tuple(z1.shape)}.")
    return numerics.unit(u), numerics.unit(v)


def _grams(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """U'U, V'V, sums of u and v, and (6,) sums of S_ii, A_ii, B_ii and of their squares. They add up over samples."""
    products = torch.stack([(u * v).sum(1), (u * u).sum(1), (v * v).sum(1)])
    return u.T @ u, v.T @ v, u.sum(0), v.sum(0), torch.cat([products.sum(1), products.square().sum(1)])


def _moments(count: Tensor | int, gram_u: Tensor, gram_v: Tensor, sums: tuple[Tensor, Tensor], own: Tensor) -> Tensor:
    """(8,): positives, cross-view pairs, and sum and sum of squares of the three kinds. They add up over sets of pairs."""
    sum_u, sum_v = sums
    s, a, b, ss, aa, bb = own.unbind()
    positives = torch.as_tensor(count, dtype=own.dtype, device=own.device)
    # sum_ij (u_i·v_j)^2 = <U'U, V'V>_F and sum_ij u_i·v_j = (sum u)·(sum v); the diagonal goes as it was summed.
    return torch.stack(
        [
            positives,
            positives * (positives - 1),
            s,
            ss,
            sum_u @ sum_v - s,
            (gram_u * gram_v).sum() - ss,
            sum_u @ sum_u - a + sum_v @ sum_v - b,
            gram_u.square().sum() - aa + gram_v.square().sum() - bb,
        ]
    )


def statistics_from_moments(moments: Tensor) -> SimilarityStatistics:
    """``SimilarityStatistics`` of the pairs that were summed.

    Args:
        moments: (8,) sum of ``similarity_moments`` over batches and ranks, or ``moments_from_grams``. With fewer than two
            samples the statistics of negatives are NaN: whether there were any, only the values can tell.

    Raises:
        ValueError: Not (8,).
    """
    if moments.shape != (8,):
        raise ValueError(f"moments must have shape (8,); got {tuple(moments.shape)}.")
    positives, pairs, s, ss, cross, cross_sq, within, within_sq = moments.unbind()

    def mean_and_variance(total: Tensor, total_sq: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        mean = total / count
        # Rounding may leave a variance of -1e-17.
        return mean, (total_sq / count - mean.square()).clamp_min(0)

    return SimilarityStatistics(
        *mean_and_variance(s, ss, positives),
        *mean_and_variance(cross, cross_sq, pairs),
        # Both views have within-view pairs: twice as many.
        *mean_and_variance(within, within_sq, 2 * pairs),
    )


@without_autocast
def similarity_moments(z0: Tensor, z1: Tensor) -> Tensor:
    """What ``similarity_statistics`` are made of, in a form that adds up over batches and ranks.

    The sum of several results holds the positives and the IN-BATCH pairs of all of them; ``statistics_from_moments`` turns it
    into means and variances. For the pairs BETWEEN batches too, sum ``similarity_grams``.

    Args:
        z0: (N, D) projections of the first view, N ≥ 1. A single row counts as a positive without negatives.
        z1: (N, D) projections of the second view.

    Returns:
        (8,): number of positives, number of cross-view negatives, then sum and sum of squares of the similarities of
        positives, cross-view and within-view negatives. Float64 (float32 on MPS).

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that differ or are not (N, D), or N < 1.
    """
    u, v = unit_views(z0, z1, 1, "a positive pair")
    gram_u, gram_v, sum_u, sum_v, own = _grams(u, v)
    return _moments(u.shape[0], gram_u, gram_v, (sum_u, sum_v), own)


@without_autocast
def similarity_grams(z0: Tensor, z1: Tensor) -> Tensor:
    """Sums over samples from which the statistics of ALL their pairs follow, also of pairs between batches and ranks.

    Args:
        z0: (N, D) projections of the first view, N ≥ 1.
        z1: (N, D) projections of the second view.

    Returns:
        (2D² + 2D + 7,): both Gram matrices, both sums, six sums over S_ii, A_ii, B_ii, and N. Add the results of disjoint
        sets of samples, then call ``moments_from_grams``. Float64 (float32 on MPS).

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that differ or are not (N, D), or N < 1.
    """
    u, v = unit_views(z0, z1, 1, "a positive pair")
    parts = [part.flatten() for part in _grams(u, v)]
    return torch.cat([*parts, parts[0].new_full((1,), u.shape[0])])


def moments_from_grams(grams: Tensor, dim: int) -> Tensor:
    """The (8,) moments of all pairs of the samples summed by ``similarity_grams``, whose width was ``dim``.

    Raises:
        ValueError: A length that does not fit ``dim``.
    """
    sizes = [dim * dim, dim * dim, dim, dim, 6, 1]
    if grams.shape != (sum(sizes),):
        raise ValueError(f"grams of dim {dim} must have shape ({sum(sizes)},); got {tuple(grams.shape)}.")
    gram_u, gram_v, sum_u, sum_v, own, count = torch.split_with_sizes(grams, sizes)
    return _moments(count[0], gram_u, gram_v, (sum_u, sum_v), own)


@without_autocast
def similarity_statistics(z0: Tensor, z1: Tensor) -> SimilarityStatistics:
    r"""Mean and population variance of positive, cross-view negative and within-view negative similarities.

    With u, v the normalised rows of ``z0``, ``z1``::

        S, A, B = u @ v.T, u @ u.T, v @ v.T
        off = ~torch.eye(N, dtype=torch.bool)
        S.diagonal().mean(), S.diagonal().var(correction=0)
        S[off].mean(),       S[off].var(correction=0)
        W = torch.cat([A[off], B[off]]);  W.mean(), W.var(correction=0)

    The sums over pairs are taken in closed form, sum_ij S_ij² = <U'U, V'V>_F, so time is O(N D²) and memory
    O(N D + D²): no N x N matrix exists, N = 50 000 is fine. Nothing synchronises the device. Variances carry an
    absolute error of about 1e-15 (that of fp32 on MPS, which has no float64). Variance 0, mean near 1 is collapse.

    Args:
        z0: (N, D) projections of the first view, N ≥ 2, any floating dtype.
        z1: (N, D) projections of the second view; row i belongs to the same sample as row i of ``z0``.

    Returns:
        ``SimilarityStatistics`` of six 0-dim tensors (cosines, so dimensionless), float64 (float32 on MPS). The
        sample indices are taken to be distinct: every i ≠ j is a negative pair.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that differ or are not (N, D), or N < 2 (no negative pair).

    Reference: the quantities of Lee et al., ICML 2025 (arXiv 2506.09781), Sections 4 and 5.
    """
    u, v = unit_views(z0, z1, 2, "a negative pair")
    gram_u, gram_v, sum_u, sum_v, own = _grams(u, v)
    return statistics_from_moments(_moments(u.shape[0], gram_u, gram_v, (sum_u, sum_v), own))
