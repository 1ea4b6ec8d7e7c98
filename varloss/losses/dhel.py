"""DHEL: NT-Xent with negatives from within each view and without the positive pair in the denominator."""

from typing import Literal

from torch import Tensor

from varloss._core import checks
from varloss._core.pairs import Gathered
from varloss._core.ranks import ProcessGroup
from varloss.losses.base import TemperedLoss
from varloss.losses.nt_xent import nt_xent


def dhel(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    scale: Literal["paper", "official"] = "paper",
    gathered: Gathered | None = None,
    check: bool = False,
) -> Tensor:
    r"""Decoupled hyperspherical energy loss, in either of the two scales in circulation.

    .. math:: \frac{1}{N}\sum_i -S_{ii}/t + c \log\sum_{j \ne i} e^{A_{ij}/t} + c \log\sum_{j \ne i} e^{B_{ij}/t}

    with c = 1/2 for ``scale="paper"`` (Lee et al. and their code: this is ``nt_xent(negatives="within",
    decoupled=True)``) and c = 1 for ``scale="official"`` (the authors of DHEL). They weigh alignment differently; no constant
    factor turns one into the other. Equivalent to, in the official scale::

        u, v = normalize(z0), normalize(z1)
        a, b = ((x @ x.T / temperature).fill_diagonal_(-inf) for x in (u, v))
        loss = (-(u * v).sum(1) / temperature + a.logsumexp(1) + b.logsumexp(1)).mean()

    Arguments, result, errors and edge cases otherwise as :func:`nt_xent`.
    Sources: Koromilas et al. 2024 (arXiv 2405.18045); Lee et al. 2025 (arXiv 2506.09781) Def. 3.1.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.dhel(torch.randn(16, 128), torch.randn(16, 128), scale="official")
    """
    checks.one_of(scale, ("paper", "official"), "scale")
    # 2 (-S/2t + mean of the two log-sums) is the official scale: half the weight on the positive, then twice the whole.
    factor = 1.0 if scale == "paper" else 2.0
    loss = nt_xent(
        z0,
        z1,
        temperature=temperature,
        negatives="within",
        decoupled=True,
        positive_weight=None if scale == "paper" else 1 / factor,
        gathered=gathered,
        check=check,
    )
    return factor * loss


class DHELLoss(TemperedLoss):
    """:func:`varloss.functional.dhel` as a module. Arguments as there and as :class:`NTXentLoss`.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.DHELLoss(scale="official")(torch.randn(16, 128), torch.randn(16, 128))
    """

    _function = staticmethod(dhel)
    _options = ("temperature", "scale")
    _shown = ("scale",)

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        scale: Literal["paper", "official"] = "paper",
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
        learnable_temperature: bool = False,
    ) -> None:
        super().__init__(temperature, learnable_temperature, gather_distributed, process_group)
        self.scale: Literal["paper", "official"] = scale
        self._check_options()

    def _check_options(self) -> None:
        checks.one_of(self.scale, ("paper", "official"), "scale")
