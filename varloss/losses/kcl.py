"""The kernel contrastive loss."""

from typing import Literal

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import mean
from varloss._core.pairs import Gathered, TwoViews, check_two_views, scaled
from varloss._core.ranks import ProcessGroup
from varloss.losses.base import TwoViewLoss


def kcl(
    z0: Tensor,
    z1: Tensor,
    *,
    gamma: float = 16.0,
    kernel: Literal["gaussian"] = "gaussian",
    t: float = 2.0,
    gathered: Gathered | None = None,
    check: bool = False,
) -> Tensor:
    r"""Kernel contrastive loss: within-view energy of a kernel against the kernel of the positive pairs.

    .. math::
        -\frac2N \sum_i K(u_i, v_i) + \frac{\gamma}{N(N-1)} \sum_{i \ne j} K(u_i, u_j) + K(v_i, v_j), \qquad
        K(x, y) = e^{-t|x-y|^2}

    Equivalent to::

        u, v = normalize(z0), normalize(z1)
        energy = pdist(u).square().mul(-t).exp().mean() + pdist(v).square().mul(-t).exp().mean()
        loss = -2 * (u - v).square().sum(1).mul(-t).exp().mean() + gamma * energy

    Its expectation does not depend on the batch size: a mini-batch is an unbiased estimate of the full-batch loss.

    Args:
        z0, z1, gathered, check: as :func:`nt_xent`.
        gamma: weight of the energy, >= 0.
        kernel: ``"gaussian"``.
        t: the kernel's scale, > 0.

    Returns a scalar in [-2, 2 gamma], at least float32, also under autocast. Raises as :func:`nt_xent`.
    Edge cases: as :func:`sigmoid_loss`; bounded, so far-apart positives barely attract each other at large ``t``.
    Source: Koromilas et al. 2024 (arXiv 2405.18045), kernel contrastive learning, in the scale of the authors' code.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.kcl(torch.randn(16, 128), torch.randn(16, 128), gamma=8)
    """
    check_two_views(z0, z1, gathered, check)
    checks.one_of(kernel, ("gaussian",), "kernel")
    gamma = checks.not_negative("gamma", gamma)
    checks.positive("t", t)
    views = TwoViews.of(z0, z1, gathered)

    def gaussian(s: Tensor) -> Tensor:
        return torch.exp(2 * t * (s - 1))

    loss = 2 * gamma * views.mean_over_pairs(gaussian, "within") - 2 * mean(gaussian(views.positive))
    return scaled(loss, gathered)


class KCLLoss(TwoViewLoss):
    """:func:`varloss.functional.kcl` (kernel contrastive loss) as a module. Arguments as there.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.KCLLoss(gamma=8)(torch.randn(16, 128), torch.randn(16, 128))
    """

    _function = staticmethod(kcl)
    _options = ("gamma", "kernel", "t")

    def __init__(
        self,
        *,
        gamma: float = 16.0,
        kernel: Literal["gaussian"] = "gaussian",
        t: float = 2.0,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        self.gamma = checks.not_negative("gamma", gamma)
        self.kernel: Literal["gaussian"] = checks.one_of(kernel, ("gaussian",), "kernel")
        self.t = checks.positive("t", t)

    def _check_options(self) -> None:
        checks.not_negative("gamma", self.gamma)
        checks.one_of(self.kernel, ("gaussian",), "kernel")
        checks.positive("t", self.t)
