"""Sets of unit vectors whose similarities are known exactly: the optima of the theory, and test inputs."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from varloss_bench.studies.theory import arguments

Arrangement = Literal["orthogonal", "aligned", "random"]


def _width(dim: int | None, least: int, what: str) -> int:
    if dim is None:
        return least
    if arguments.at_least("dim", dim, 1) < least:
        raise ValueError(f"{what} needs dim >= {least}; got {dim}.")
    return dim


def _padded(rows: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, dim - rows.shape[1]))


def simplex(n: int, dim: int | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Vertices of the regular simplex: n unit vectors with :math:`w_i \cdot w_j = -1/(n-1)` that sum to 0.

    The full-batch optimum of every member of Lee et al.'s two families that the theorem covers, if both views coincide with it.
    Equivalent, in n dimensions instead of n - 1, to::

        w = normalize(eye(n) - 1 / n)

    Args:
        n: number of vectors, at least 2.
        dim: width of the rows, at least n - 1 (the default); further columns are 0.
        dtype: of the result.

    Returns:
        (n, dim), on the CPU.

    Raises:
        ValueError: for n < 2 or dim < n - 1, because that many vectors cannot be so far apart.

    Source: Lee et al. 2025 (arXiv 2506.09781) Thm 5.1.
    """
    n = arguments.at_least("n", n, 2)
    width = _width(dim, n - 1, f"a simplex of {n} vectors")
    # Rows of the Helmert matrix: row k is (1, ..., 1, -k, 0, ..., 0) / sqrt(k (k+1)), orthonormal and orthogonal to ones.
    k = torch.arange(1, n, dtype=torch.float64)[:, None]
    column = torch.arange(n, dtype=torch.float64)
    helmert = torch.where(column < k, 1.0, torch.where(column == k, -k, 0.0)) / (k * (k + 1)).sqrt()
    return _padded(helmert.T.contiguous() * math.sqrt(n / (n - 1)), width).to(dtype)


def equiangular(n: int, similarity: float, dim: int | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Unit vectors, n of them, with one similarity a between any two: a simplex shrunk by a common direction.

    :math:`x_i = r w_i + \sqrt{1-r^2}\,e` with w a simplex, e orthogonal to it, :math:`r^2 = (1-a)(n-1)/n`.

    Args:
        n: number of vectors, at least 2.
        similarity: a, from -1/(n-1) (the simplex) to 1 (collapse).
        dim: width of the rows, at least n (the default).
        dtype: of the result.

    Returns:
        (n, dim), on the CPU.

    Raises:
        ValueError: for a similarity that n vectors cannot have, n < 2, or dim < n.
    """
    vertices = simplex(n)
    width = _width(dim, n, f"{n} vectors of one similarity")
    least = -1 / (n - 1)
    # One ulp of tolerance, because callers compute -1/(n-1) with different rounding.
    if not least - 1e-12 <= similarity <= 1:
        raise ValueError(f"{n} unit vectors can have one similarity between {least:.6g} and 1; got {similarity}.")
    share = min((1 - similarity) * (n - 1) / n, 1.0)
    common = torch.full((n, 1), math.sqrt(1 - share), dtype=torch.float64)
    return _padded(torch.cat([math.sqrt(share) * vertices, common], dim=1), width).to(dtype)


def split_simplex(
    n: int, positive: float, dim: int | None = None, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    r"""Two views of a simplex pulled apart along a common direction: all positives have similarity x.

    :math:`u_i = a w_i + c,\ v_i = a w_i - c` with w a simplex, c orthogonal to it, :math:`a^2 = (1+x)/2`,
    :math:`|c|^2 = (1-x)/2`. Then

    .. math:: u_i \cdot v_j = \frac{(n-2)x - n}{2(n-1)}, \qquad u_i \cdot u_j = 1 - \frac{(1+x)\,n}{2(n-1)}

    for i != j. It meets :func:`alignment_bound` with equality and is the optimum of cross-view-only SigLIP
    (:func:`siglip_optimum`): the excessive separation of positive pairs.

    Args:
        n: number of samples, at least 2.
        positive: x in [-1, 1]; 1 gives two coinciding simplices.
        dim: width of the rows, at least n (the default).
        dtype: of the results.

    Returns:
        The two views, each (n, dim), on the CPU.

    Raises:
        ValueError: for x outside [-1, 1], n < 2, or dim < n.

    Source: Lee et al. 2025 (arXiv 2506.09781) section 5; this is the construction that attains the tight bound.
    """
    vertices = simplex(n)
    width = _width(dim, n, f"a split simplex of {n} samples")
    if not -1 <= positive <= 1:
        raise ValueError(f"positive is a cosine similarity and must lie in [-1, 1]; got {positive}.")
    common = torch.full((n, 1), math.sqrt((1 - positive) / 2), dtype=torch.float64)
    vertices = math.sqrt((1 + positive) / 2) * vertices
    views = (_padded(torch.cat([vertices, sign * common], dim=1), width).to(dtype) for sign in (1, -1))
    return next(views), next(views)


def batch_simplices(
    num_samples: int,
    batch_size: int,
    dim: int | None = None,
    *,
    arrangement: Arrangement = "orthogonal",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""The optimum of FIXED mini-batches: every batch is a separate simplex, with batch k in rows k m ... (k+1) m - 1.

    Both views coincide. The relative orientation of the simplices is free. It determines the variance of the negative
    similarities between the bounds of :func:`fixed_batch_variance_bounds`: ``"orthogonal"`` subspaces attain the lower bound,
    ``"aligned"`` copies of one simplex attain the upper bound, and ``"random"`` rotations in R^dim lie between
    (:func:`rotated_batch_variance` in expectation).

    Args:
        num_samples: n, a multiple of the batch size.
        batch_size: m, at least 2.
        dim: width of the rows. At least (n/m)(m - 1) for ``"orthogonal"``, m - 1 otherwise; these are the defaults.
        arrangement: relative orientation of the batches.
        generator: of the random rotations.
        dtype: of the result.

    Returns:
        (n, dim), on the CPU.

    Raises:
        ValueError: for n that is not a multiple of m, m < 2, or dim too small.

    Source: Lee et al. 2025 (arXiv 2506.09781) Thm 5.5.
    """
    arguments.one_of(arrangement, ("orthogonal", "aligned", "random"), "arrangement")
    m = arguments.at_least("batch_size", batch_size, 2)
    batches, rest = divmod(arguments.at_least("num_samples", num_samples, m), m)
    if rest:
        raise ValueError(f"num_samples must be a multiple of batch_size; got {num_samples} and {batch_size}.")
    least = batches * (m - 1) if arrangement == "orthogonal" else m - 1
    width = _width(dim, least, f"{batches} {arrangement} simplices of {m} vectors")
    one = simplex(m)
    if arrangement == "orthogonal":
        rows = _padded(torch.kron(torch.eye(batches, dtype=torch.float64), one), width)
    elif arrangement == "aligned":
        rows = _padded(one.repeat(batches, 1), width)
    else:
        # The Q of a Gaussian matrix with the signs of R's diagonal taken out is uniform over rotations and reflections.
        gaussian = torch.randn(batches, width, width, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        rotations = q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :]
        rows = (_padded(one, width) @ rotations).flatten(0, 1)
    return rows.to(dtype)
