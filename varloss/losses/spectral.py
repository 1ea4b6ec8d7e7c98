"""The spectral contrastive loss."""

from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import mean, unit, wide
from varloss._core.pairs import PAIRS, Gathered, Pairs, check_two_views, scaled
from varloss._core.ranks import ProcessGroup
from varloss.losses.base import TwoViewLoss
from varloss.losses.vrn import vrn


def spectral_loss(
    z0: Tensor, z1: Tensor, *, negatives: Pairs = "cross", gathered: Gathered | None = None, check: bool = False
) -> Tensor:
    r"""The spectral contrastive loss on unit vectors, with a choice of negatives.

    .. math::
        -\frac1N \sum_i S_{ii} + \frac{1}{N(N-1)} \sum_{i \ne j} S_{ij}^2
        \Big[+ \frac{1}{2N(N-1)} \sum_{i \ne j} A_{ij}^2 + B_{ij}^2\Big]

    The middle term is ``negatives="cross"``, the bracket ``"within"``, ``"both"`` adds them. Equivalent to (cross)::

        s = normalize(z0) @ normalize(z1).T
        loss = -s.diagonal().mean() + s[~eye(N, dtype=bool)].square().mean()

    This is Lee et al.'s form. HaoChen et al. have -2 on the positive term and clipped, not unit, features. The negatives'
    term is VRN with target 0 and shares its closed form: O(N D²) work where N > 2 D. Its optimum for D >= N are ORTHOGONAL
    negatives, not the simplex. Arguments, errors and edge cases as :func:`nt_xent`.

    Returns a scalar in [-1, 2] (up to 3 for ``"both"``), at least float32, also under autocast.
    Sources: HaoChen et al. 2021 (arXiv 2106.04156) section 3; Lee et al. 2025 (arXiv 2506.09781) Def. 3.2 with
    psi(x) = x², c1 = c2 = 1.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.spectral_loss(torch.randn(16, 128), torch.randn(16, 128), negatives="within")
    """
    check_two_views(z0, z1, gathered)
    checks.one_of(negatives, PAIRS, "negatives")
    # Widened once: the two terms' gradients are summed before they are rounded to half precision.
    z0, z1 = wide(z0), wide(z1)
    squares = vrn(z0, z1, target=0.0, pairs=negatives, gathered=gathered, check=check)
    # VRN's "both" averages the two kinds where Def. 3.2 adds them.
    squares = 2 * squares if negatives == "both" else squares
    return squares - scaled(mean((unit(z0) * unit(z1)).sum(dim=1)), gathered)


class SpectralLoss(TwoViewLoss):
    """:func:`varloss.functional.spectral_loss` as a module. Arguments as there.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.SpectralLoss(negatives="within")(torch.randn(16, 128), torch.randn(16, 128))
    """

    _function = staticmethod(spectral_loss)
    _options = ("negatives",)

    def __init__(
        self,
        *,
        negatives: Pairs = "cross",
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        self.negatives: Pairs = negatives
        self._check_options()

    def _check_options(self) -> None:
        checks.one_of(self.negatives, PAIRS, "negatives")
