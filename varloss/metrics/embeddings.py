"""Embedding metrics: alignment, uniformity, tolerance, rank, hardness."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from varloss._core import checks, numerics
from varloss._core.checks import Negatives
from varloss.metrics.statistics import rows, unit_rows, unit_views, without_autocast

# Rows of a similarity tile: 1024 rows against 50 000 columns are 400 MB in float64, and large enough to keep a
# matrix product efficient.
_BLOCK_ROWS = 1024


def _positive(name: str, value: float) -> float:
    number = checks.real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0; got {value}.")
    return number


def _blocks(count: int, rows: int = _BLOCK_ROWS) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


@without_autocast
def alignment(z0: Tensor, z1: Tensor, *, alpha: float = 2.0) -> Tensor:
    r"""Alignment E ||u_i - v_i||^alpha; 0 when both views coincide, smaller is better aligned.

    ::

        (u - v).norm(dim=1).pow(alpha).mean()

    For alpha = 2 it equals 2 - 2·E[u_i·v_i]. Differentiable.

    Args:
        z0: (N, D) projections of the first view, N ≥ 1.
        z1: (N, D) projections of the second view.
        alpha: Exponent, > 0.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that differ or are not (N, D), N < 1, alpha ≤ 0.

    Reference: Wang & Isola, ICML 2020 (arXiv 2005.10242), Section 4.1.1.
    """
    alpha = _positive("alpha", alpha)
    u, v = unit_views(z0, z1, 1, "alignment")
    squared = (u - v).square().sum(1)
    # The square root of 0 has an infinite slope: an even power needs none.
    return (squared if alpha == 2 else squared.pow(alpha / 2)).mean()


@without_autocast
def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    r"""Uniformity log E_{i<j} exp(-t ||x_i - x_j||²); between -4t and 0, smaller is more uniform.

    ::

        torch.pdist(x).square().mul(-t).exp().mean().log()

    Self pairs are excluded. Wang & Liu report its negative (3.93753 for the uniform sphere in 128 dimensions at t = 2).
    Works through tiles of 1024 rows: memory O(1024·N). Differentiable (autograd then keeps the tiles).

    Args:
        z: (N, D) projections, N ≥ 2.
        t: Scale of the Gaussian kernel, > 0.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Not (N, D), N < 2 (no pair), t ≤ 0.

    Reference: Wang & Isola, ICML 2020 (arXiv 2005.10242), Section 4.1.2.
    """
    t = _positive("t", t)
    x = unit_rows(z, 2, "uniformity")
    n = x.shape[0]
    totals = []
    for block in _blocks(n - 1):
        # Rows against themselves and everything after them: the strict upper triangle is i < j. The last row has none.
        exponent = -2 * t * (1 - x[block] @ x[block.start :].T)
        lower = torch.ones_like(exponent, dtype=torch.bool).tril()
        totals.append(exponent.masked_fill(lower, -torch.inf).flatten().logsumexp(0))
    return torch.stack(totals).logsumexp(0) - math.log(n * (n - 1) / 2)


@without_autocast
def tolerance_sums(z: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """What ``tolerance`` is made of, in a form that adds up over batches and ranks.

    Args:
        z: (N, D) projections, N ≥ 1.
        labels: (N,) integer labels in [0, num_classes).
        num_classes: C.

    Returns:
        (C, D + 2): for every class the sum of its unit rows, their number, and the sum of their squared lengths.

    Raises:
        TypeError: ``z`` not floating-point or ``labels`` not integer.
        ValueError: Shapes do not fit. A label out of range is an IndexError or, on a GPU, a device-side assertion.
    """
    x = unit_rows(z, 1, "tolerance")
    checks.ids("labels", labels, z, "z")
    addends = torch.cat([x, torch.ones_like(x[:, :1]), x.square().sum(1, keepdim=True)], dim=1)
    sums = x.new_zeros(checks.whole("num_classes", num_classes, 1), x.shape[1] + 2)
    return sums.index_add(0, labels, addends)


def tolerance_from_sums(sums: Tensor) -> Tensor:
    """Mean cosine of same-label pairs from (C, D + 2) sums of ``tolerance_sums``.

    Raises:
        ValueError: No two samples share a label (synchronises the device).
    """
    vectors, counts, squares = sums[:, :-2], sums[:, -2], sums[:, -1]
    pairs = (counts * (counts - 1)).sum()
    if pairs.item() == 0:
        raise ValueError(f"tolerance needs two samples with the same label; all {int(counts.sum())} labels differ.")
    return (vectors.square().sum() - squares.sum()) / pairs


@without_autocast
def tolerance(z: Tensor, labels: Tensor) -> Tensor:
    r"""Tolerance: mean cosine over pairs i ≠ j that carry the SAME label; large = samples of a class stay together.

    ::

        same = labels[:, None] == labels[None, :]
        same.fill_diagonal_(False)
        (x @ x.T)[same].mean()

    This is the conditional mean. Wang & Liu print E[x·y · 1(same label)], which with 10 classes cannot exceed 0.1
    and so cannot give the .372 of their table. Computed from class sums, ``sum_{i≠j} x_i·x_j = |Σx|² - Σ|x|²``, in O(N D).

    Args:
        z: (N, D) projections or features, N ≥ 2.
        labels: (N,) integer labels, any values.

    Raises:
        TypeError: ``z`` not floating-point or ``labels`` not integer.
        ValueError: Shapes do not fit, or no two samples share a label (which only the values can tell: this function
            synchronises the device).

    Reference: Wang & Liu, CVPR 2021 (arXiv 2012.09740), Section 4.
    """
    rows(2, "tolerance", z=z)
    checks.ids("labels", labels, z, "z")
    values, inverse = torch.unique(labels, return_inverse=True)
    return tolerance_from_sums(tolerance_sums(z, inverse, num_classes=values.numel()))


def sphere_cosine_quantile(q: Tensor, dim: int) -> Tensor:
    r"""Quantile function of the cosine between two independent uniform points on the sphere in R^dim.

    The cosine is x = 2·Beta((dim-1)/2, (dim-1)/2) - 1; written x = sin(φ), φ has the density ∝ cos(φ)^(dim-2) on
    [-π/2, π/2], which is bounded for every dim ≥ 2 (that of x is not for dim = 2). Its distribution function is
    tabulated by Simpson's rule and inverted by Newton's method from the table. Absolute error below 1e-10.

    Args:
        q: Probabilities in [0, 1], any shape, floating-point.
        dim: Dimension of the space, ≥ 2.

    Returns:
        Quantiles in [-1, 1], shape of ``q``, in float64 (float32 on MPS).

    Raises:
        ValueError: dim < 2 (on a line the cosine is ±1 and has no density).
    """
    power = checks.whole("dim", dim, 2) - 2
    # cos(φ)^k <= exp(-kφ²/2): beyond 10/sqrt(k) less than 1e-21 of the mass is left.
    limit = min(math.pi / 2, 10 / math.sqrt(power)) if power else math.pi / 2
    level = numerics.widest(q).clamp(0, 1)
    tiny = torch.finfo(level.dtype).tiny
    cells = 4096
    step = 2 * limit / cells

    def density(phi: Tensor) -> Tensor:
        return torch.cos(phi).pow(power)

    grid = torch.linspace(-limit, limit, cells + 1, dtype=level.dtype, device=level.device)
    middle = grid[:-1] + step / 2
    mass = (density(grid[:-1]) + 4 * density(middle) + density(grid[1:])) * (step / 6)
    cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    target = level * cumulative[-1]
    cell = (torch.searchsorted(cumulative, target, right=True) - 1).clamp(0, cells - 1)
    left, below = grid[cell], cumulative[cell]
    # Linear interpolation, then Newton within the cell; the density vanishes only at ±π/2, where clamping holds it.
    phi = left + step * ((target - below) / mass[cell].clamp_min(tiny)).clamp(0, 1)
    for _ in range(2):
        part = (density(left) + 4 * density((left + phi) / 2) + density(phi)) * ((phi - left) / 6)
        slope = density(phi).clamp_min(tiny)
        phi = torch.minimum(torch.maximum(phi - (below + part - target) / slope, left), left + step)
    # The tails beyond the table matter at the two ends alone.
    x = torch.sin(phi)
    return torch.where(level <= 0, -1.0, torch.where(level >= 1, 1.0, x)).to(x.dtype)


@without_autocast
def wasserstein_uniformity(z: Tensor) -> Tensor:
    r"""W1 distance between the cosines of all pairs i < j and the law they would have on the uniform sphere.

    ::

        cosines = sorted(x_i·x_j for i < j);  P = len(cosines)
        mean_k |cosines[k] - Q((k + ½)/P)|,   Q = quantiles of 2·Beta((D-1)/2, (D-1)/2) - 1

    0 is uniform; collapse to a point gives 1. The quantiles are analytic for every D (``sphere_cosine_quantile``),
    where the published code samples the law for D = 128. Memory O(N²/2): about 0.4 GB at N = 10 000.

    Args:
        z: (N, D) projections, N ≥ 2, D ≥ 2.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Not (N, D), N < 2 or D < 2.

    Reference: Koromilas et al., ICML 2024 (arXiv 2405.18045), the metric and the law in its appendix.
    """
    x = unit_rows(z, 2, "Wasserstein uniformity")
    if x.shape[1] < 2:
        raise ValueError("Wasserstein uniformity needs D >= 2: in one dimension cosines are ±1 and have no density")
    tiles = (x[block] @ x[block.start :].T for block in _blocks(x.shape[0]))
    cosines = torch.cat([tile[torch.ones_like(tile, dtype=torch.bool).triu(1)] for tile in tiles])
    pairs = cosines.numel()
    levels = (torch.arange(pairs, dtype=cosines.dtype, device=cosines.device) + 0.5) / pairs
    return (cosines.sort().values - sphere_cosine_quantile(levels, x.shape[1])).abs().mean()


@without_autocast
def effective_rank(z: Tensor, *, normalize: bool = False) -> Tensor:
    r"""Effective rank exp(H(p)), p_k = sigma_k / Σ sigma, of the uncentred embedding matrix; between 1 and min(N, D).

    ::

        sigma = torch.linalg.svdvals(z);  p = sigma / sigma.sum()
        torch.exp(-(p * p.log()).sum())          # with 0·log 0 = 0

    Args:
        z: (N, D) embeddings, N ≥ 1. Taken as they are, as RankMe does.
        normalize: Scale the rows to unit length first.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Not (N, D), N < 1, or all entries 0 (no direction to count; synchronises the device, as the
            singular value decomposition does anyway).

    Reference: Roy & Vetterli, EUSIPCO 2007; for label-free quality Garrido et al., ICML 2023 (arXiv 2210.02885).
    """
    (x,) = rows(1, "effective rank", z=z)
    if normalize:
        x = numerics.unit(x)
    singular = torch.linalg.svdvals(x)
    total = singular.sum()
    if total.item() == 0:
        raise ValueError("effective rank is undefined for an embedding matrix of zeros")
    p = singular / total
    entropy: Tensor = torch.special.entr(p).sum()
    return entropy.exp()


@without_autocast
def relative_penalty_entropy(
    z0: Tensor, z1: Tensor, *, temperature: float = 0.5, negatives: Negatives = "cross"
) -> Tensor:
    r"""Mean entropy (nats) of the relative penalties r_ij = softmax over negatives j of s_ij / temperature.

    ::

        for every anchor: r = softmax(similarities to its negatives / temperature)
        mean over anchors of -(r * r.log()).sum()

    r_ij is the share of anchor i's repulsion that negative j receives. A low entropy means that a few hard negatives
    take it all; it grows strictly with the temperature, up to log(number of negatives per anchor).

    Args:
        z0: (N, D) projections of the first view, N ≥ 2.
        z1: (N, D) projections of the second view. Anchors are the 2N rows of both.
        temperature: > 0.
        negatives: "cross" (N-1 per anchor, the other view), "within" (N-1, the anchor's own view) or "both" (2N-2).

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that differ or are not (N, D), N < 2, temperature ≤ 0, an unknown ``negatives``.

    Reference: Wang & Liu, CVPR 2021 (arXiv 2012.09740), the relative penalty of Section 3.
    """
    checks.one_of(negatives, checks.KINDS, "negatives")
    temperature = _positive("temperature", temperature)
    u, v = unit_views(z0, z1, 2, "a negative pair")
    n = u.shape[0]
    total = u.new_zeros(())
    for anchors, others in ((u, v), (v, u)):
        keys = {"cross": others, "within": anchors, "both": torch.cat([others, anchors])}[negatives]
        for block in _blocks(n):
            logits = (anchors[block] @ keys.T) / temperature
            sample = torch.arange(keys.shape[0], device=u.device) % n
            own = sample[None, :] == torch.arange(block.start, block.stop, device=u.device)[:, None]
            log_r = logits.masked_fill(own, -torch.inf).log_softmax(1)
            total = total - (log_r.exp() * log_r.masked_fill(own, 0)).sum()
    return total / (2 * n)
