"""Closed-form values, bounds and optima of free unit vectors, as plain numbers.

They hold for free unit vectors in full batches or fixed mini-batches. A network is neither free nor sees fixed batches, so no
default of this package is derived from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from varloss.functional import Pairs
from varloss_bench.studies.theory import arguments


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _increasing_root(f: Callable[[float], float], low: float, high: float) -> float:
    """The root of an increasing function, by bisection to the last bit; the nearer end of the interval if there is none."""
    if f(low) >= 0:
        return low
    if f(high) <= 0:
        return high
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return low


def _negatives_each(batch_size: int, negatives: Pairs) -> int:
    arguments.one_of(negatives, arguments.PAIRS, "negatives")
    m = arguments.at_least("batch_size", batch_size, 2)
    return 2 * (m - 1) if negatives == "both" else m - 1


def symmetric_nt_xent(
    similarity: float,
    *,
    batch_size: int,
    temperature: float,
    negatives: Pairs = "both",
    decoupled: bool = False,
) -> float:
    r"""NT-Xent's value where all positives are 1 and all negatives a: :math:`\psi(k\,e^{(a-1)/t})`.

    k = m - 1 negatives for ``"cross"`` and ``"within"``, 2(m - 1) for ``"both"``; :math:`\psi(x)` is log(1 + x), or log x when
    decoupled. With a = -1/(m-1) and dim >= m - 1 this is the loss's global minimum.

    Args:
        similarity: a.
        batch_size: m, at least 2.
        temperature: t > 0.
        negatives: ``"cross"``, ``"within"`` or ``"both"``.
        decoupled: the positive stays out of the denominator.

    Raises:
        ValueError: for numbers out of range.

    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 3.1 evaluated at the symmetric point; Thm 5.1 for the minimum.
    """
    t = arguments.positive("temperature", temperature)
    log_x = (similarity - 1) / t + math.log(_negatives_each(batch_size, negatives))
    return log_x if decoupled else _softplus(log_x)


def symmetric_dhel(
    similarity: float, *, batch_size: int, temperature: float, scale: Literal["paper", "official"] = "paper"
) -> float:
    r"""DHEL's value at positives 1, negatives a: (a-1)/t + log(m-1) (paper), -1/t + 2(a/t + log(m-1)) (official).

    Args and errors as :func:`symmetric_nt_xent`.
    """
    arguments.one_of(scale, ("paper", "official"), "scale")
    t = arguments.positive("temperature", temperature)
    count = 1.0 if scale == "paper" else 2.0
    return -1 / t + count * (similarity / t + math.log(_negatives_each(batch_size, "within")))


def symmetric_sigmoid(
    similarity: float, *, batch_size: int, scale: float = 10.0, bias: float = -10.0, negatives: Pairs = "cross"
) -> float:
    r"""SigLIP's value at positives 1, negatives a: :math:`\mathrm{softplus}(-(t+b)) + k\,\mathrm{softplus}(ta+b)`.

    k = m - 1 for ``"cross"`` and ``"within"``, 2(m - 1) for ``"both"``; t is a SCALE here and b has open_clip's sign.
    """
    count = _negatives_each(batch_size, negatives)
    return _softplus(-(scale + bias)) + count * _softplus(scale * similarity + bias)


def symmetric_spectral(similarity: float, *, negatives: Pairs = "cross") -> float:
    """The spectral loss at positives 1, negatives a: -1 + a² (``"both"``: -1 + 2 a²).

    Its minimum is at a = 0 when dim >= n, not at the simplex: it is the exception to Lee et al.'s Thm 5.1.
    """
    arguments.one_of(negatives, arguments.PAIRS, "negatives")
    return -1 + (2 if negatives == "both" else 1) * similarity**2


def symmetric_vrn(similarity: float, *, num_samples: int) -> float:
    """VRN where all negatives are a: (a + 1/(n-1))². For a batch of m < n vectors the minimum is 0, at a = -1/(n-1)."""
    return (similarity + 1 / (arguments.at_least("num_samples", num_samples, 2) - 1)) ** 2


def alignment_bound(negative_mean: float, *, num_samples: int) -> float:
    r"""The largest mean positive similarity that n samples can have at a given mean cross-view negative similarity.

    .. math:: \mathrm{pos} \le 1 + \frac{2(n-1)}{n-2}\Big(\mathrm{neg} + \frac{1}{n-1}\Big)

    and never more than 1. Equality below 1 exactly when u_i - v_i is the same vector for all i and the sum of u + v is 0:
    :func:`split_simplex` attains it. Negatives below -1/(n-1) therefore cost alignment.

    Args:
        negative_mean: mean of u_i . v_j over i != j, in [-1, 1].
        num_samples: n >= 3.

    Raises:
        ValueError: for n < 3 (two samples leave the positives free) or a mean outside [-1, 1].

    Source: tightens Lee et al. 2025 (arXiv 2506.09781) Thm 5.2, pos <= 1 + neg + 1/(n-1): from
    ``sum_i |u_i - v_i|² >= |sum_i (u_i - v_i)|²/n`` and ``|sum (u + v)|² >= 0``.
    """
    n = arguments.at_least("num_samples", num_samples, 3)
    if not -1 <= negative_mean <= 1:
        raise ValueError(f"negative_mean is a cosine similarity and must lie in [-1, 1]; got {negative_mean}.")
    return min(1.0, 1 + 2 * (n - 1) / (n - 2) * (negative_mean + 1 / (n - 1)))


class VarianceBounds(NamedTuple):
    """Bounds on the population variance of all cross-view negative similarities."""

    lower: float
    upper: float


def _fixed_batches(num_samples: int, batch_size: int) -> tuple[int, int]:
    m = arguments.at_least("batch_size", batch_size, 2)
    return arguments.at_least("num_samples", num_samples, m), m


def fixed_batch_variance_bounds(*, num_samples: int, batch_size: int) -> VarianceBounds:
    r"""Variance of the negative similarities at the optimum of FIXED mini-batches, over all pairs of the n samples.

    .. math:: \frac{n-m}{(m-1)(n-1)^2} \le \mathrm{Var} \le n\,\frac{n-m}{(m-1)(n-1)^2}

    At that optimum positives are 1, in-batch negatives -1/(m-1), and the mean over all pairs is -1/(n-1). With dim = m - 1
    the variance equals the upper bound. Reshuffled batches have no such optimum; their remaining variance is optimisation
    noise.

    Args:
        num_samples: n.
        batch_size: m, from 2 to n.

    Raises:
        ValueError: for m < 2 or n < m.

    Source: Lee et al. 2025 (arXiv 2506.09781) Thm 5.5.
    """
    n, m = _fixed_batches(num_samples, batch_size)
    lower = (n - m) / ((m - 1) * (n - 1) ** 2)
    return VarianceBounds(lower, n * lower)


def rotated_batch_variance(*, num_samples: int, batch_size: int, dim: int) -> float:
    r"""Expected variance of the negative similarities for batches rotated independently in R^d.

    .. math:: \mathbb{E}[\mathrm{Var}] = \frac{n-m}{(m-1)(n-1)^2} + \frac{n-m}{d(n-1)}

    Args:
        num_samples: n.
        batch_size: m, from 2 to n.
        dim: d >= m - 1.

    Raises:
        ValueError: for numbers out of range.

    Source: the lower bound of Lee et al. 2025 (arXiv 2506.09781) Thm 5.5 plus the similarity 1/d of unrelated batches.
    """
    n, m = _fixed_batches(num_samples, batch_size)
    return fixed_batch_variance_bounds(num_samples=n, batch_size=m).lower + (n - m) / (
        arguments.at_least("dim", dim, m - 1) * (n - 1)
    )


def vrn_rank_floor(*, num_samples: int, dim: int) -> float:
    r"""The least VRN that aligned views (all positives 1) of the whole data set can have in d dimensions.

    .. math:: L_\mathrm{VRN} \ge \frac{n(n-1-d)}{d(n-1)^2} \quad (d < n-1)

    and 0 for d >= n - 1. The variance alone obeys it only where the embeddings sum to 0: full collapse has variance 0.

    Args:
        num_samples: n >= 2.
        dim: d >= 1.

    Raises:
        ValueError: for numbers out of range.

    Source: the Gram matrix of n unit vectors in R^d has n/d as its least mean squared eigenvalue (Welch's bound).
    """
    n, d = arguments.at_least("num_samples", num_samples, 2), arguments.at_least("dim", dim, 1)
    return max(0.0, n * (n - 1 - d) / (d * (n - 1) ** 2))


class SplitOptimum(NamedTuple):
    """Similarities of positives, cross-view and within-view negatives where each kind has one value."""

    positive: float
    cross: float
    within: float


def siglip_optimum(
    *,
    num_samples: int,
    scale: float = 10.0,
    bias: float = -10.0,
    vrn_weight: float = 0.0,
) -> SplitOptimum:
    r"""The full-batch optimum of cross-view-only SigLIP, with or without VRN: it can separate positive pairs.

    On a :func:`split_simplex` with positives x the cross-view negatives are :math:`g(x) = ((n-2)x - n)/(2(n-1))` and the loss is

    .. math:: h(x) = \mathrm{softplus}(-(tx+b)) + (n-1)\,\mathrm{softplus}(t\,g(x)+b) + \lambda\,(g(x) + \tfrac{1}{n-1})^2

    which is convex: its minimiser x* in [-1, 1] is found by bisection. x* < 1 is excessive separation; VRN of weight lambda
    reduces it but cannot remove it; within-view negatives remove it (x* = 1). Free vectors in dim >= n.

    Args:
        num_samples: n >= 2.
        scale: t > 0, SigLIP's inverse temperature.
        bias: b in open_clip's sign (initially -10); Lee et al. write -b.
        vrn_weight: lambda >= 0 of cross-view VRN with the same n.

    Returns:
        x*, g(x*) and the within-view similarity 1 - (1 + x*) n/(2(n-1)).

    Raises:
        ValueError: for numbers out of range.

    Source: Lee et al. 2025 (arXiv 2506.09781) section 5 on excessive separation, with the tight g.
    """
    n = arguments.at_least("num_samples", num_samples, 2)
    t, b = arguments.positive("scale", scale), bias
    weight = arguments.not_negative("vrn_weight", vrn_weight)
    slope = (n - 2) / (2 * (n - 1))

    def negative(x: float) -> float:
        return ((n - 2) * x - n) / (2 * (n - 1))

    def derivative(x: float) -> float:
        g = negative(x)
        pull = -t * _sigmoid(-(t * x + b))
        return pull + slope * ((n - 1) * t * _sigmoid(t * g + b) + 2 * weight * (g + 1 / (n - 1)))

    x = _increasing_root(derivative, -1.0, 1.0)
    return SplitOptimum(x, negative(x), 1 - (1 + x) * n / (2 * (n - 1)))


class VRNEquilibrium(NamedTuple):
    """The point at which the contrastive loss and VRN balance; see :func:`vrn_equilibrium`."""

    negative: float
    threshold_weight: float


def vrn_equilibrium(
    *,
    num_samples: int,
    batch_size: int,
    temperature: float,
    weight: float,
    negatives: Pairs = "cross",
    decoupled: bool = False,
) -> VRNEquilibrium:
    r"""In-batch negative similarity at the optimum of loss + weight x VRN. Free vectors, fixed batches only.

    The loss pushes negatives down to -1/(m-1), VRN pulls them up to -1/(n-1). With k negatives per anchor and
    :math:`x = k e^{(a-1)/t}` the similarity a* solves

    .. math:: \frac1t \frac{x}{1+x} + 2\lambda\Big(a + \frac{1}{n-1}\Big) = 0

    (decoupled: 1/t instead of the first term), clipped below at -1/(m-1), the least possible value. Below the threshold weight

    .. math:: \lambda_0 = \frac{\frac1t \frac{x_0}{1+x_0}}{2\left(\frac{1}{m-1} - \frac{1}{n-1}\right)}, \qquad x_0 = k e^{(-1/(m-1) - 1)/t}

    VRN changes nothing for free vectors and fixed batches. This is not advice for training a network: at t = 0.5, n = 997 and
    negatives of both views the threshold is 12, 63 and 338 for m = 16, 64 and 256, while weight 3 nearly halves the variance
    in a network (its batches are reshuffled and its vectors are not free).

    Args:
        num_samples: n.
        batch_size: m, from 2 to n.
        temperature: t > 0.
        weight: lambda >= 0.
        negatives: of the contrastive loss: k = m - 1, or 2(m - 1) for ``"both"``.
        decoupled: the positive stays out of the denominator.

    Returns:
        a* and the threshold weight, infinite for m = n (both want -1/(n-1)). Exact for dim >= m, where m vectors of any
        one similarity fit.

    Raises:
        ValueError: for numbers out of range.

    Source: this package; the stationarity condition of Lee et al. 2025 (arXiv 2506.09781) Def. 3.1 plus Def. 5.7 at the symmetric
    point.
    """
    n, m = _fixed_batches(num_samples, batch_size)
    t, weight = arguments.positive("temperature", temperature), arguments.not_negative("weight", weight)
    count, delta = _negatives_each(m, negatives), -1 / (n - 1)
    lowest = -1 / (m - 1)

    def push(a: float) -> float:
        return (1.0 if decoupled else _sigmoid((a - 1) / t + math.log(count))) / t

    threshold = math.inf if m == n else push(lowest) / (2 * (delta - lowest))
    if weight <= threshold:
        return VRNEquilibrium(lowest, threshold)
    return VRNEquilibrium(_increasing_root(lambda a: push(a) + 2 * weight * (a - delta), lowest, delta), threshold)


def uniform_sphere_uniformity(dim: int, *, t: float = 2.0) -> float:
    r"""Uniformity :math:`\log \mathbb{E}\, e^{-t|x-y|^2}` of independent uniform points on the sphere in R^dim.

    .. math:: -2t + \log {}_0F_1\big(; \tfrac{d}{2}; t^2\big)

    -3.93753 for dim = 128, t = 2: the value that the uniformity of good representations approaches.

    Args:
        dim: d >= 2.
        t: scale of the kernel, > 0 (below about 300: the series is summed in floating point).

    Raises:
        ValueError: for numbers out of range.

    Source: E exp(k x . y) on the sphere is a 0F1 function of k²/4 (von Mises-Fisher normalisation); Wang & Isola 2020
    (arXiv 2005.10242) for the metric.
    """
    half = arguments.at_least("dim", dim, 2) / 2
    if not 0 < t < 300:
        raise ValueError(f"t must lie between 0 and 300; got {t}.")
    total = term = 1.0
    k = 0
    while term > 1e-18 * total:
        term *= t * t / ((half + k) * (k + 1))
        total += term
        k += 1
    return -2 * t + math.log(total)
