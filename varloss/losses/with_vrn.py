"""Any two-view loss with VRN added to it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from varloss._core.pairs import Pairs
from varloss._core.ranks import ProcessGroup
from varloss.losses.base import calls_only
from varloss.losses.nt_xent import NT_XENT_FORWARD
from varloss.losses.vrn import VRNRegularizer, one_agreement_with


class WithVRN(nn.Module):
    """Any two-view loss plus weighted VRN, under the loss's own call.

    Args:
        base: a module or function of two (N, D) views that returns a scalar, or a dictionary of scalars that the caller adds
            up, as open_clip's ``ClipLoss(...)(..., output_dict=True)`` does.
        weight, num_samples, target, pairs, exponent: as :class:`VRNRegularizer`.
        gather_distributed: takes VRN's pairs from the global batch, that of ``process_group``. The base decides for itself.

    Example:
        >>> import torch, varloss
        >>> loss_fn = varloss.WithVRN(varloss.NTXentLoss(temperature=0.5), weight=3, num_samples=50_000)
        >>> loss = loss_fn(torch.randn(16, 128), torch.randn(16, 128))
    """

    def __init__(
        self,
        base: Any,
        *,
        weight: float,
        num_samples: int | None = None,
        target: float | None = None,
        pairs: Pairs = "cross",
        exponent: float = 2,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not callable(base):
            raise TypeError(f"base must be a loss module or function of two views; got {type(base).__name__}.")
        self.base = base
        self.regularizer = VRNRegularizer(
            weight=weight,
            num_samples=num_samples,
            target=target,
            pairs=pairs,
            exponent=exponent,
            gather_distributed=gather_distributed,
            process_group=process_group,
        )

    def forward(self, z0: Tensor, z1: Tensor) -> Any:
        """Loss of two views, each (N, D): a scalar, or the base's dictionary of losses with VRN added under ``"vrn"``."""
        with one_agreement_with(self.regularizer):
            if calls_only(self.base, NT_XENT_FORWARD):
                return self.base._with_regularizer(self.regularizer, z0, z1)
            loss, term = self.base(z0, z1), self.regularizer(z0, z1)
        if isinstance(loss, Mapping):
            return {**loss, "vrn": term}
        if not isinstance(loss, (Tensor, float, int)):
            raise TypeError(
                f"base must return a scalar or a dictionary of scalars to add up; got {type(loss).__name__}."
            )
        return loss + term
