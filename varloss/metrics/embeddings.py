"""Metrics of embeddings: alignment, uniformity, tolerance, effective rank, and how hard the negatives are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from varloss._core import checks, numerics
from varloss._core.pairs import PAIRS, Pairs

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Rows of a similarity tile: 1024 rows against 50 000 columns are 400 MB in float64, and large enough to keep a
# matrix product efficient.
_BLOCK_ROWS = 1024


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, count))


def without_autocast(function: _Function) -> _Function:
    """Run ``function`` with autocast off on the device of its first tensor: wide stays wide."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is None:
            given = ", ".join(type(value).__name__ for value in (*args, *kwargs.values())) or "nothing"
            raise TypeError(f"{function.__name__} takes tensors, got {given}")
        with numerics.no_autocast(first.device.type):
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def wide_rows(minimum: int, why: str, **named: Tensor) -> list[Tensor]:
    """Matrices of equal width and at least ``minimum`` rows, checked, in the widest dtype."""
    checks.embeddings(mixed=True, **named)
    for name, z in named.items():
        if z.shape[0] < minimum:
            raise ValueError(f"{why} needs at least {minimum} rows; {name} has {z.shape[0]}.")
    return [numerics.widest(numerics.wide(z)) for z in named.values()]


def unit_rows(z: Tensor, minimum: int, why: str) -> Tensor:
    """Checked rows of unit length in the widest dtype."""
    return numerics.unit(wide_rows(minimum, why, z=z)[0])


def unit_views(z0: Tensor, z1: Tensor, minimum: int, why: str) -> tuple[Tensor, Tensor]:
    """Both views' checked rows of unit length in the widest dtype."""
    u, v = wide_rows(minimum, why, z0=z0, z1=z1)
    checks.alike(z0=u, z1=v)
    return numerics.unit(u), numerics.unit(v)


def finite_rows(**named: Tensor) -> tuple[list[Tensor], Tensor]:
    """Matrices of one shape in the widest dtype, with zeros for the samples that are not finite in one, and which are left.

    There may be no sample at all, before or after. Nothing synchronises the device.
    """
    wide = wide_rows(0, "a batch", **named)
    if len(named) > 1:
        checks.alike(**dict(zip(named, wide, strict=True)))
    keep = torch.stack([z.isfinite().all(dim=1) for z in wide]).all(dim=0)
    return [z.masked_fill(~keep.unsqueeze(1), 0) for z in wide], keep


def class_ids(labels: Tensor, z: Tensor) -> Tensor:
    """Labels of any real dtype as int64, checked against the rows ``z``; -1 for a number that is not whole."""
    if isinstance(labels, Tensor) and not labels.is_complex():
        labels = (labels.where(labels.frac() == 0, -1) if labels.is_floating_point() else labels).long()
    return checks.ids("labels", labels, z, "z")


@without_autocast
def alignment(z0: Tensor, z1: Tensor, *, alpha: float = 2.0) -> Tensor:
    r"""Alignment E ||u_i - v_i||^alpha: how far the two views of a sample lie apart. Smaller is better aligned.

    Equivalent to, with u, v the normalised rows of ``z0``, ``z1``::

        (u - v).norm(dim=1).pow(alpha).mean()

    For alpha = 2 it equals 2 - 2·E[u_i·v_i]. Differentiable.

    Args:
        z0, z1: (N, D) projections of both views, N ≥ 1; row i of both is one sample.
        alpha: exponent, above 0; ValueError otherwise.

    Returns a value in [0, 2^alpha], a distance to the power alpha; 0 where both views coincide.
    Source: Wang & Isola, ICML 2020 (arXiv 2005.10242), Section 4.1.1.

    Example:
        >>> import torch, varloss
        >>> varloss.metrics.alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
        2.0
    """
    alpha = checks.positive("alpha", alpha)
    u, v = unit_views(z0, z1, 1, "alignment")
    squared = (u - v).square().sum(1)
    # The square root of 0 has an infinite slope: an even power needs none.
    return (squared if alpha == 2 else squared.pow(alpha / 2)).mean()


@without_autocast
def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    r"""Uniformity log E_{i<j} exp(-t ||x_i - x_j||²): how evenly the rows fill the sphere. Smaller is more uniform.

    Equivalent to, with x the normalised rows of ``z``::

        torch.pdist(x).square().mul(-t).exp().mean().log()

    Self pairs are excluded, and a zero row has similarity 0 to every row. Wang & Liu
    report its negative (3.93753 for the uniform sphere in 128 dimensions at t = 2).
    Works through tiles of 1024 rows: memory O(1024·N). Differentiable (autograd then keeps the tiles).

    Args:
        z: (N, D) projections, N ≥ 2.
        t: scale of the Gaussian kernel, above 0; ValueError otherwise.

    Returns a value in [-4t, 0], in nats; 0 for a collapse. It does not underflow where the kernel does.
    Source: Wang & Isola, ICML 2020 (arXiv 2005.10242), Section 4.1.2.

    Example:
        >>> import torch, varloss
        >>> varloss.metrics.uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item()
        -8.0
    """
    t = checks.positive("t", t)
    x = unit_rows(z, 2, "uniformity")
    n = x.shape[0]
    totals = []
    for block in _blocks(n - 1):
        # Rows against themselves and everything after them: the strict upper triangle is i < j. The last row has none.
        exponent = -2 * t * (1 - x[block] @ x[block.start :].T)
        lower = torch.ones_like(exponent, dtype=torch.bool).tril()
        totals.append(exponent.masked_fill(lower, -torch.inf).flatten().logsumexp(0))
    return torch.stack(totals).logsumexp(0) - math.log(n * (n - 1) / 2)


class ClassSums(NamedTuple):
    """What :func:`tolerance` is made of: they add up over disjoint sets of samples, such as batches and ranks.

    For each of C classes: ``vectors`` (C, D) the sum of its unit rows, ``numbers`` (C,) how many it has, and ``squares`` (C,) the
    sum of their squared lengths, which is the number but for zero rows.

    Example:
        >>> import torch, varloss
        >>> z, labels = torch.randn(10, 8), torch.arange(10) % 3
        >>> packed = sum(varloss.metrics.ClassSums.of(z[i::2], labels[i::2], num_classes=3).pack() for i in (0, 1))
        >>> torch.testing.assert_close(varloss.metrics.ClassSums.unpack(packed).tolerance(), varloss.metrics.tolerance(z, labels))
    """

    vectors: Tensor
    numbers: Tensor
    squares: Tensor

    @classmethod
    def of(cls, z: Tensor, labels: Tensor, *, num_classes: int, keep: Tensor | None = None) -> ClassSums:
        """Sums over the rows of one batch, in float64 (float32 on MPS).

        ``z`` is (N, D) projections, ``labels`` (N,) whole numbers in [0, num_classes) of any real dtype; ``keep`` (N,) is
        False for rows to leave out. Raises ValueError for shapes that do not fit. A label that is out of range or not whole
        is an IndexError or, on a GPU, a device-side assertion.
        """
        x, ids = unit_rows(z, 0, "tolerance"), class_ids(labels, z)
        zeros = x.new_zeros(checks.whole("num_classes", num_classes, 1), x.shape[1] + 2)
        addends = torch.cat([x, torch.ones_like(x[:, :1]), x.square().sum(1, keepdim=True)], dim=1)
        if keep is not None:
            ids, addends = ids.where(keep, 0), addends.where(keep.unsqueeze(1), 0)
        # A look at values costs nothing on a CPU.
        if ids.device.type == "cpu" and ((ids < 0) | (ids >= num_classes)).any():
            raise IndexError(f"labels must be whole numbers in [0, {num_classes}).")
        return cls.unpack(zeros.index_add(0, ids, addends))

    def pack(self) -> Tensor:
        """One (C, D + 2) matrix that adds up over disjoint sets of samples."""
        return torch.cat([self.vectors, self.numbers.unsqueeze(1), self.squares.unsqueeze(1)], dim=1)

    @classmethod
    def unpack(cls, packed: Tensor) -> ClassSums:
        """The sums in a packed matrix, or in the sum of several."""
        return cls(packed[:, :-2], packed[:, -2], packed[:, -1])

    def tolerance(self) -> Tensor:
        """As the function :func:`tolerance`, but NaN where no two samples share a label: this does not synchronise the device."""
        pairs = (self.numbers * (self.numbers - 1)).sum()
        same = self.vectors.square().sum() - self.squares.sum()
        return torch.where(pairs > 0, same / pairs, torch.nan)


@without_autocast
def tolerance(z: Tensor, labels: Tensor) -> Tensor:
    r"""Tolerance: mean cosine over pairs i ≠ j that carry the SAME label. Large: samples of a class stay together.

    Equivalent to, with x the normalised rows of ``z``::

        same = labels[:, None] == labels[None, :]
        same.fill_diagonal_(False)
        (x @ x.T)[same].mean()

    This is the conditional mean. Wang & Liu print E[x·y · 1(same label)], which with 10 classes cannot exceed 0.1
    and so cannot give the 0.372 of their table. Computed from class sums, ``sum_{i≠j} x_i·x_j = |Σx|² - Σ|x|²``, in O(N D);
    :class:`ClassSums` adds them up over batches and ranks.

    ``z`` holds (N, D) projections or features, N ≥ 2; ``labels`` (N,) numbers of any real dtype, any values.

    Returns a value in [-1, 1], a cosine; 1 where every class is one point. A label that occurs once adds no pair.
    Raises TypeError for labels that are not real, ValueError for shapes that do not fit, or where no two samples share a
    label. The latter depends on the values: this function synchronises the device. A label NaN is a class of its own.
    Source: Wang & Liu, CVPR 2021 (arXiv 2012.09740), Section 4.

    Example:
        >>> import torch, varloss
        >>> z, labels = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 7, 5])
        >>> varloss.metrics.tolerance(z, labels).item()
        1.0
    """
    wide_rows(2, "tolerance", z=z)
    class_ids(labels, z)
    values, inverse = torch.unique(labels if labels.is_floating_point() else labels.long(), return_inverse=True)
    if values.numel() == labels.numel():
        raise ValueError(f"tolerance needs two samples with the same label; all {labels.numel()} labels differ.")
    return ClassSums.of(z, inverse, num_classes=values.numel()).tolerance()


@without_autocast
def wasserstein_uniformity(z: Tensor) -> Tensor:
    r"""W1 distance between the cosines of all pairs i < j and the law they would have on the uniform sphere.

    Equivalent to, with x the normalised rows of ``z``::

        cosines = sorted(x_i·x_j for i < j);  P = len(cosines)
        mean_k |cosines[k] - Q((k + ½)/P)|,   Q = quantiles of 2·Beta((D-1)/2, (D-1)/2) - 1

    Smaller is more uniform. The quantiles are analytic for every D, where the published code samples the law for D = 128.
    Memory O(N²/2): about 0.4 GB at N = 10 000. ``z`` is (N, D) projections, N ≥ 2, D ≥ 2; ValueError for D < 2.

    Returns a difference of cosines: 1 for a collapse to a point; small positive, not 0, for a finite sample of the uniform
    law.
    Source: Koromilas et al., ICML 2024 (arXiv 2405.18045), the metric and the law in its appendix.

    Example:
        >>> import torch, varloss
        >>> round(varloss.metrics.wasserstein_uniformity(torch.ones(50, 64)).item(), 4)
        1.0
    """
    x = unit_rows(z, 2, "Wasserstein uniformity")
    if x.shape[1] < 2:
        raise ValueError("Wasserstein uniformity needs D >= 2: in one dimension cosines are ±1 and have no density")
    tiles = (x[block] @ x[block.start :].T for block in _blocks(x.shape[0]))
    cosines = torch.cat([tile[torch.ones_like(tile, dtype=torch.bool).triu(1)] for tile in tiles])
    pairs = cosines.numel()
    levels = (torch.arange(pairs, dtype=cosines.dtype, device=cosines.device) + 0.5) / pairs
    return (cosines.sort().values - sphere_cosine_quantile(levels, x.shape[1])).abs().mean()


def sphere_cosine_quantile(q: Tensor, dim: int) -> Tensor:
    r"""Quantile function of the cosine between two independent uniform points on the sphere in R^dim.

    The cosine is x = 2·Beta((dim-1)/2, (dim-1)/2) - 1; written x = sin(φ), φ has the density ∝ cos(φ)^(dim-2) on
    [-π/2, π/2], which is bounded for every dim ≥ 2 (that of x is not for dim = 2). Its distribution function is
    tabulated by Simpson's rule and inverted by Newton's method from the table. Absolute error below 1e-10.
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
def effective_rank(z: Tensor, *, normalize: bool = False) -> Tensor:
    r"""Effective rank exp(H(p)), p_k = sigma_k / Σ sigma, of the uncentred embedding matrix.

    Equivalent to::

        sigma = torch.linalg.svdvals(z);  p = sigma / sigma.sum()
        torch.exp(-(p * p.log()).sum())          # with 0·log 0 = 0

    Large: the embeddings use many directions.

    ``z`` holds (N, D) embeddings, N ≥ 1, taken as they are, as RankMe does; ``normalize`` scales the rows to unit length.

    Returns a value in [1, min(N, D)], a number of dimensions; 1 for a collapse to one direction, with rows of any length.
    Raises ValueError where all entries are 0 (no direction to count; synchronises the device, as the singular value
    decomposition does anyway).
    Source: Roy & Vetterli, EUSIPCO 2007; for label-free quality Garrido et al., ICML 2023 (arXiv 2210.02885).

    Example:
        >>> import torch, varloss
        >>> round(varloss.metrics.effective_rank(torch.eye(6)).item(), 4)
        6.0
    """
    (x,) = wide_rows(1, "effective rank", z=z)
    if normalize:
        x = numerics.unit(x)
    singular = torch.linalg.svdvals(x)
    total = singular.sum()
    if total.item() == 0:
        raise ValueError("effective rank is undefined for an embedding matrix of zeros")
    p = singular / total
    return torch.special.entr(p).sum().exp()  # type: ignore[no-any-return]


@without_autocast
def relative_penalty_entropy(z0: Tensor, z1: Tensor, *, temperature: float = 0.5, negatives: Pairs = "cross") -> Tensor:
    r"""Mean entropy (nats) of the relative penalties r_ij = softmax over negatives j of s_ij / temperature.

    Equivalent to::

        for every anchor: r = softmax(similarities to its negatives / temperature)
        mean over anchors of -(r * r.log()).sum()

    r_ij is the share of anchor i's repulsion that negative j receives. A low entropy means that a few hard negatives
    take it all; it grows strictly with the temperature, up to log(number of negatives per anchor).

    Args:
        z0, z1: (N, D) projections of both views, N ≥ 2; row i of both is one sample. Anchors are the 2N rows.
        temperature: divides the cosine similarities, above 0.
        negatives: "cross" (N-1 per anchor, the other view), "within" (N-1, the anchor's own view) or "both" (2N-2).

    Returns a value in [0, log(number of negatives per anchor)], in nats: the upper end for a collapse; 0 at a temperature
    that leaves one negative per anchor. Raises ValueError for temperature ≤ 0 or an unknown ``negatives``.
    Source: Wang & Liu, CVPR 2021 (arXiv 2012.09740), the relative penalty of Section 3.

    Example:
        >>> import torch, varloss
        >>> z = torch.ones(4, 8)
        >>> bool(varloss.metrics.relative_penalty_entropy(z, z).isclose(torch.tensor(3.0).log().double()))
        True
    """
    checks.one_of(negatives, PAIRS, "negatives")
    temperature = checks.positive("temperature", temperature)
    u, v = unit_views(z0, z1, 2, "a negative pair")
    everyone = torch.ones_like(u[:, 0], dtype=torch.bool)
    return sum_of_entropies(u, v, temperature, negatives, everyone) / (2 * u.shape[0])


@without_autocast
def sum_of_entropies(u: Tensor, v: Tensor, temperature: float, negatives: Pairs, keep: Tensor) -> Tensor:
    """Sum of :func:`relative_penalty_entropy` over the anchors of the samples in ``keep``; 0 for one without a negative."""
    n = u.shape[0]
    total = u.new_zeros(())
    for anchors, others in ((u, v), (v, u)):
        keys = {"cross": others, "within": anchors, "both": torch.cat([others, anchors])}[negatives]
        for block in _blocks(n):
            logits = (anchors[block] @ keys.T) / temperature
            sample = torch.arange(keys.shape[0], device=u.device) % n
            own = sample[None, :] == torch.arange(block.start, block.stop, device=u.device)[:, None]
            negative = ~own & keep[sample]
            log_r = logits.masked_fill(~negative, -torch.inf).log_softmax(1)
            entropies = -(log_r.exp() * log_r.where(negative, 0)).sum(1)
            total = total + entropies.where(keep[block] & negative.any(dim=1), 0).sum()
    return total
