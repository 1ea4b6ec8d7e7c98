"""Losses that add over pairs, each pair on its own: SigLIP, spectral, and the kernel contrastive loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from varloss import _checks
from varloss._checks import Negatives
from varloss._numerics import own_columns, products, unit, wide
from varloss._vrn import vrn


def _sum_over_negatives(psi: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, offset: int) -> Tensor:
    """Sum of ``psi(a_i . b_j)`` over local rows i and all rows j of other samples, over the number of rows."""
    values = psi(products(a, b))
    return values.masked_fill(own_columns(a.shape[0], b.shape[0], offset, a.device), 0).sum() / a.shape[0]


def _softplus(x: Tensor) -> Tensor:
    # torch's softplus turns linear at 20, which costs float64 half its digits.
    return -nnf.logsigmoid(-x)


def _number(name: str, value: float | Tensor) -> float | Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a single number; got a tensor of shape {tuple(value.shape)}.")
        return wide(value)
    return _checks.real(name, value)


def sigmoid_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    negatives: Negatives = "cross",
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""The pairwise sigmoid loss (SigLIP), with a choice of negatives: every pair is a yes-or-no question of its own.

    With unit rows :math:`u_i, v_i`, :math:`S_{ij} = u_i \cdot v_j`, A and B the similarities inside view 0 and view 1:

    .. math::
        \frac1N \sum_i \mathrm{softplus}(-(tS_{ii}+b)) + \frac1N \sum_{i \ne j} \mathrm{softplus}(tS_{ij}+b)
        \Big[+ \frac{1}{2N} \sum_{i \ne j} \mathrm{softplus}(tA_{ij}+b) + \mathrm{softplus}(tB_{ij}+b)\Big]

    The middle term is ``negatives="cross"``, the bracket ``"within"``, ``"both"`` adds them. The naive program (cross)::

        logits = scale * normalize(z0) @ normalize(z1).T + bias
        loss = -logsigmoid((2 * eye(N) - 1) * logits).sum() / N

    Cross-view negatives alone can tear positive pairs apart (``theory.siglip_optimum``); within-view negatives cannot.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1; row i is the positive of row i of ``z0``.
        scale: t, MULTIPLIES similarities (an inverse temperature). Where learned, a 0-dim tensor.
        bias: b, open_clip's sign: negative, since most pairs are negatives. Lee et al. write -b.
        negatives: ``"cross"`` (SigLIP's), ``"within"`` or ``"both"``.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar in nats, float64 for float64 input and float32 otherwise, also under autocast. Averaged over ranks of
        equal size it is the single-process value.

    Raises:
        TypeError: for what is not a floating-point tensor or not a number.
        ValueError: for shapes, devices or options that do not fit, or one sample without gathered keys.

    At the edge: grows linearly, never overflows. A zero row has similarity 0 to everything and gets a zero gradient.

    Sources: Zhai et al. 2023 (SigLIP, arXiv 2303.15343) section 3.2; Lee et al. 2025 (arXiv 2506.09781) Def. 3.2 with
    psi = softplus, c1 = c2 = N - 1.
    """
    _checks.two_views(z0, z1, keys, offset)
    _checks.one_of(negatives, _checks.KINDS, "negatives")
    t, b = _number("scale", scale), _number("bias", bias)
    if check:
        _checks.rows_are_sound(z0=z0, z1=z1)
    u, v = unit(z0), unit(z1)
    key_u, key_v = (u, v) if keys is None else (unit(keys[0]), unit(keys[1]))

    def psi(s: Tensor) -> Tensor:
        return _softplus(t * s + b)

    loss = _softplus(-(t * (u * v).sum(dim=1) + b)).mean()
    if negatives != "within":
        loss = loss + _sum_over_negatives(psi, u, key_v, offset)
    if negatives != "cross":
        inside = _sum_over_negatives(psi, u, key_u, offset) + _sum_over_negatives(psi, v, key_v, offset)
        loss = loss + inside / 2
    return loss


def spectral_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    negatives: Negatives = "cross",
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""The spectral contrastive loss on unit vectors, with a choice of negatives.

    .. math::
        -\frac1N \sum_i S_{ii} + \frac{1}{N(N-1)} \sum_{i \ne j} S_{ij}^2
        \Big[+ \frac{1}{2N(N-1)} \sum_{i \ne j} A_{ij}^2 + B_{ij}^2\Big]

    The middle term is ``negatives="cross"``, the bracket ``"within"``, ``"both"`` adds them. The naive program (cross)::

        s = normalize(z0) @ normalize(z1).T
        loss = -s.diagonal().mean() + s[~eye(N, dtype=bool)].square().mean()

    This is Lee et al.'s form. HaoChen et al. have -2 on the positive term and clipped, not unit, features. The negatives' term is
    VRN with target 0 and shares its closed form: O(N D²) work where N > 2 D. Its optimum for D >= N are
    ORTHOGONAL negatives, not the simplex.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1.
        negatives: ``"cross"``, ``"within"`` or ``"both"``.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar in [-1, 2] (up to 3 for ``"both"``), at least float32, also under autocast.

    Raises:
        TypeError, ValueError: as :func:`sigmoid_loss`.

    At the edge: as :func:`sigmoid_loss`.

    Sources: HaoChen et al. 2021 (arXiv 2106.04156) section 3; Lee et al. 2025 (arXiv 2506.09781) Def. 3.2 with
    psi(x) = x², c1 = c2 = 1.
    """
    _checks.two_views(z0, z1, keys, offset)
    _checks.one_of(negatives, _checks.KINDS, "negatives")
    # Widened once: the two terms' gradients are summed before they are rounded to half precision.
    z0, z1 = wide(z0), wide(z1)
    squares = vrn(z0, z1, target=0.0, pairs=negatives, keys=keys, offset=offset, check=check)
    # VRN's "both" averages the two kinds where Def. 3.2 adds them.
    squares = 2 * squares if negatives == "both" else squares
    return squares - (unit(z0) * unit(z1)).sum(dim=1).mean()


def kcl(
    z0: Tensor,
    z1: Tensor,
    *,
    gamma: float = 16.0,
    kernel: Literal["gaussian"] = "gaussian",
    t: float = 2.0,
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""Kernel contrastive loss: within-view energy of a kernel against the kernel of the positive pairs.

    .. math::
        -\frac2N \sum_i K(u_i, v_i) + \frac{\gamma}{N(N-1)} \sum_{i \ne j} K(u_i, u_j) + K(v_i, v_j), \qquad
        K(x, y) = e^{-t|x-y|^2}

    The naive program::

        u, v = normalize(z0), normalize(z1)
        energy = pdist(u).square().mul(-t).exp().mean() + pdist(v).square().mul(-t).exp().mean()
        loss = -2 * (u - v).square().sum(1).mul(-t).exp().mean() + gamma * energy

    Its expectation does not depend on the batch size: a mini-batch is an unbiased estimate of the full-batch loss.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1.
        gamma: weight of the energy, >= 0.
        kernel: ``"gaussian"``.
        t: the kernel's scale, > 0.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar in [-2, 2 gamma], at least float32, also under autocast.

    Raises:
        TypeError, ValueError: as :func:`sigmoid_loss`.

    At the edge: as :func:`sigmoid_loss`; bounded, so far-apart positives barely attract each other at large ``t``.

    Source: Koromilas et al. 2024 (arXiv 2405.18045), kernel contrastive learning, in the scale of the authors' code.
    """
    _checks.two_views(z0, z1, keys, offset)
    _checks.one_of(kernel, ("gaussian",), "kernel")
    gamma = _checks.weight(gamma)
    _checks.positive("t", t)
    if check:
        _checks.rows_are_sound(z0=z0, z1=z1)
    u, v = unit(z0), unit(z1)
    key_u, key_v = (u, v) if keys is None else (unit(keys[0]), unit(keys[1]))

    def gaussian(s: Tensor) -> Tensor:
        return torch.exp(2 * t * (s - 1))

    energy = _sum_over_negatives(gaussian, u, key_u, offset) + _sum_over_negatives(gaussian, v, key_v, offset)
    return gamma * energy / (key_u.shape[0] - 1) - 2 * gaussian((u * v).sum(dim=1)).mean()
