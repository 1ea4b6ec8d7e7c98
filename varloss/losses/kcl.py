"""The kernel contrastive loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import unit
from varloss._kernels.dense import sum_over_negatives
from varloss.losses.base import Pairwise


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
    checks.two_views(z0, z1, keys, offset)
    checks.one_of(kernel, ("gaussian",), "kernel")
    gamma = checks.weight(gamma)
    checks.positive("t", t)
    if check:
        checks.rows_are_sound(z0=z0, z1=z1)
    u, v = unit(z0), unit(z1)
    key_u, key_v = (u, v) if keys is None else (unit(keys[0]), unit(keys[1]))

    def gaussian(s: Tensor) -> Tensor:
        return torch.exp(2 * t * (s - 1))

    energy = sum_over_negatives(gaussian, u, key_u, offset) + sum_over_negatives(gaussian, v, key_v, offset)
    return gamma * energy / (key_u.shape[0] - 1) - 2 * gaussian((u * v).sum(dim=1)).mean()


class KCLLoss(Pairwise):
    """:func:`varloss.functional.kcl` (kernel contrastive loss) as a module.

    Args:
        gamma: weight of the within-view energy.
        kernel: ``"gaussian"``.
        t: the kernel's scale.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
    """

    _shown = ("gamma", "kernel", "t")

    def __init__(
        self,
        *,
        gamma: float = 16.0,
        kernel: Literal["gaussian"] = "gaussian",
        t: float = 2.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(gather_distributed)
        checks.one_of(kernel, ("gaussian",), "kernel")
        checks.positive("t", t)
        self.gamma = checks.weight(gamma)
        self.kernel: Literal["gaussian"] = kernel
        self.t = t

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._call(kcl, z0, z1, gamma=self.gamma, kernel=self.kernel, t=self.t)
