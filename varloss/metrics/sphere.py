"""The law of the cosine between two independent uniform points on a sphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import widest


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
        ValueError: for dim < 2 (on a line the cosine is ±1 and has no density).
    """
    power = checks.whole("dim", dim, 2) - 2
    # cos(φ)^k <= exp(-kφ²/2): beyond 10/sqrt(k) less than 1e-21 of the mass is left.
    limit = min(math.pi / 2, 10 / math.sqrt(power)) if power else math.pi / 2
    level = widest(q).clamp(0, 1)
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
