"""Variance reduction of negative-pair similarities (VRN): direct, in closed form, and from sums over ranks."""

import contextlib
import warnings

import torch
from torch import Tensor

from varloss import distributed
from varloss._core import checks
from varloss._core.checks import Form
from varloss._core.grams import Grams
from varloss._core.numerics import follows_operations, nothing
from varloss._core.pairs import PAIRS, Gathered, Pairs, TwoViews, check_two_views, scaled
from varloss._core.ranks import ProcessGroup, agree, one_agreement
from varloss._kernels import autograd, dense, gram
from varloss._kernels.problem import Problem
from varloss.losses.base import TwoViewLoss


def vrn(
    z0: Tensor,
    z1: Tensor,
    *,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Pairs = "cross",
    exponent: float = 2,
    form: Form = "auto",
    gathered: Gathered | None = None,
    check: bool = False,
) -> Tensor:
    r"""Variance auxiliary loss: pulls the similarity of every negative pair to the value of the full-batch optimum.

    .. math:: \frac{1}{N(N-1)} \sum_{i \ne j} |S_{ij} - \delta|^p, \qquad \delta = -\frac{1}{n-1}

    for ``pairs="cross"``, :math:`S_{ij} = u_i \cdot v_j`; ``"within"`` takes the mean over the pairs inside view 0 and inside
    view 1, ``"both"`` half of each. For p = 2 it is the population variance of the negative similarities plus the square
    of their mean's distance from :math:`\delta`. Equivalent to::

        s = normalize(z0) @ normalize(z1).T
        loss = (s[~eye(N, dtype=bool)] - delta).pow(2).mean()

    For p = 2 there is a closed form with O(N D^2) work and O(D^2) memory,
    :math:`\sum_{i,j}(S_{ij}-\delta)^2 = \langle U^\top U, V^\top V\rangle_F - 2\delta\,(\sum_i u_i)\cdot(\sum_j v_j) + N^2\delta^2`,
    less the N diagonal terms. It is used where it is cheaper, N > 2 D. Its error is at most 16 eps times the sum of the
    value, :math:`\delta^2` and 1/(N-1); up to 12 eps were measured. That counts where the value is tiny: for rows that are
    nearly orthogonal, and for a cluster around a ``target`` far from 0, whose value is the difference of numbers near
    :math:`\delta^2`. The dense form has a few eps of each similarity there.

    Args:
        z0, z1, gathered, check: as :func:`nt_xent`.
        num_samples: n, the number of TRAINING samples (not the batch), at least 2. Give this or ``target``.
        target: :math:`\delta` itself, in [-1, 1].
        pairs: ``"cross"`` (the paper's), ``"within"`` or ``"both"``. Cross alone with a large weight can destroy alignment
            when D < n - 1: shrinking :math:`S_{ij}` is cheapest by moving the views into different subspaces. ``"both"`` does not.
        exponent: p >= 1.
        form: ``"dense"`` (N x N), ``"linear"`` (the closed form, p = 2 only), or ``"auto"``, by cost.

    Returns a scalar, at least float32, also under autocast; not multiplied by a weight (see ``VRNRegularizer``).
    Raises as :func:`nt_xent`; for neither or both of ``num_samples`` and ``target``; for the closed form of p != 2.
    Edge cases: 0, attached to the graph, for one sample or none. 0 where every negative similarity is :math:`\delta`;
    rounding leaves up to some 1e-6 in fp32, in the closed form also below 0. Finite, not 0, for collapsed embeddings.
    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 5.7; the closed form is this package's own.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.vrn(torch.randn(16, 128), torch.randn(16, 128), num_samples=50_000, pairs="both")
    """
    number = check_two_views(z0, z1, gathered, check)
    checks.one_of(pairs, PAIRS, "pairs")
    checks.one_of(form, checks.FORMS, "form")
    delta, p = checks.delta(num_samples, target), checks.exponent(exponent)
    if form == "linear" and p != 2:
        raise ValueError(f"form='linear' needs exponent 2; got {exponent}. Use form='dense' or 'auto'.")
    if not number:
        return nothing(z0, z1, *(() if gathered is None else gathered.keys))
    keys = z0 if gathered is None else gathered.keys[0]
    closed = form == "linear" or (
        form == "auto" and p == 2 and gram.is_cheaper(z0.shape[0], keys.shape[0], z0.shape[1])
    )
    # One step of autograd; torch.compile fuses what it sees well enough, and an operator would hide it.
    if p == 2 and gathered is None and not torch.compiler.is_compiling() and not follows_operations(z0):
        problem = Problem(1.0, pairs, True, 1.0, delta, pairs)
        return autograd.vrn(
            z0, z1, problem, closed, lambda given: dense.vrn(TwoViews.of(*given[:2]), delta, 2, pairs, closed=closed)
        )
    return scaled(dense.vrn(TwoViews.of(z0, z1, gathered), delta, p, pairs, closed=closed), gathered)


ONE_SIDED = (
    "VRN between views of which only one carries a gradient pulls queries away from keys that follow them; MoCo trained "
    "that way collapsed to a single point in 2 of 4 runs. Keep the loss against the keys without VRN, and add VRN between "
    "two views of the query encoder: "
    "loss = criterion(query0, key1) + VRNRegularizer(weight, num_samples=n)(query0, query1)."
)


class VRNRegularizer(TwoViewLoss):
    """``weight`` times :func:`varloss.functional.vrn`, a term to add to any two-view loss.

    Args:
        weight: factor on the term. There is no default, since the weight that helps depends on n, D and the schedule. On a
            thousand digits 1 to 10 were much alike; Lee et al. used 30 to 40 for n >= 50 000. A warm-up sets the attribute; it
            is not part of ``state_dict``.
        num_samples, target, pairs, exponent: as the function.
        gather_distributed: takes the pairs of the global batch. With exponent 2 only two D x D Gram matrices cross the
            wire; with another exponent the rows are gathered. Ranks may differ in batch size.
        process_group: the ranks to gather from, by default the world.

    Example:
        >>> import torch, varloss
        >>> loss_fn, regularizer = varloss.NTXentLoss(), varloss.VRNRegularizer(weight=3, num_samples=50_000)
        >>> z0, z1 = torch.randn(2, 16, 128)
        >>> loss = loss_fn(z0, z1) + regularizer(z0, z1)
    """

    _function = staticmethod(vrn)
    _options = ("num_samples", "target", "pairs", "exponent")
    _shown = ("pairs", "exponent")

    def __init__(
        self,
        *,
        weight: float,
        num_samples: int | None = None,
        target: float | None = None,
        pairs: Pairs = "cross",
        exponent: float = 2,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        self.weight = weight
        self.num_samples = num_samples
        self.target = target
        self.pairs: Pairs = pairs
        self.exponent = exponent
        self._check_options()
        self.warned_of_one_side = False

    def _check_options(self) -> None:
        checks.delta(self.num_samples, self.target)
        checks.one_of(self.pairs, PAIRS, "pairs")
        checks.exponent(self.exponent)

    @property
    def delta(self) -> float:
        """The similarity that negatives are pulled to."""
        return checks.delta(self.num_samples, self.target)

    @property
    def weight(self) -> float:
        """The factor on the term, at least 0."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = checks.not_negative("weight", value)

    def warn_if_one_sided(self, z0: Tensor, z1: Tensor) -> None:
        """Warns, once, where only one of the views carries a gradient, as momentum keys do not."""
        # A compiled graph warns no one, and a flag that a call changes would break it.
        if self.warned_of_one_side or torch.compiler.is_compiling():
            return
        if self.weight == 0 or z0.requires_grad == z1.requires_grad:
            return
        self.warned_of_one_side = True
        warnings.warn(ONE_SIDED, UserWarning, stacklevel=3)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        aim = f"num_samples={self.num_samples}" if self.target is None else f"target={self.target}"
        return f"weight={self.weight}, {aim}, {super().extra_repr()}"

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Weighted VRN of two views, each (N, D)."""
        if self.is_distributed() and self.exponent == 2:
            agreed = agree(lambda: self._look(z0, z1), self.process_group)
            self.warn_if_one_sided(z0, z1)
            packed = distributed.summed(Grams.of(z0, z1).pack(), agreed, self.process_group)
            return self.weight * Grams.unpack(packed, z0.shape[1]).vrn(target=self.delta, pairs=self.pairs)
        gathered = self._gathered(z0, z1)
        self.warn_if_one_sided(z0, z1)
        return self.weight * self._value(z0, z1, gathered=gathered)


VRN_FORWARD = VRNRegularizer.forward


def one_agreement_with(regularizer: object) -> contextlib.AbstractContextManager[None]:
    """For the call of a loss and VRN of the same rows: their ranks agree once, and errors of both raise on every rank."""
    if torch.compiler.is_compiling() or not isinstance(regularizer, VRNRegularizer):
        return contextlib.nullcontext()
    if type(regularizer).forward is not VRN_FORWARD or not regularizer.is_distributed():
        return contextlib.nullcontext()
    return one_agreement(regularizer._check_options, regularizer.process_group)
