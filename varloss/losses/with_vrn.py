"""Any two-view loss with VRN added to it."""

from typing import Any, cast

from torch import Tensor, nn

from varloss._core.pairs import Pairs
from varloss.losses.nt_xent import NTXentLoss
from varloss.losses.vrn import VRNRegularizer


class WithVRN(nn.Module):
    """Any two-view loss plus weighted VRN, under the loss's own call.

    Args:
        base: a module or function of two (N, D) views that returns a scalar.
        weight, num_samples, target, pairs, exponent: as :class:`VRNRegularizer`.
        gather_distributed: takes VRN's pairs from the global batch. The base decides for itself.

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
        )

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        # A subclass with a forward of its own, or a hook on either part, must be called.
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if getattr(type(self.base), "forward", None) is NTXentLoss.forward and not any(
            getattr(part, kind) for part in (self.base, self.regularizer) for kind in kinds
        ):
            return cast(Tensor, self.base._with_regularizer(self.regularizer, z0, z1))
        return cast(Tensor, self.base(z0, z1) + self.regularizer(z0, z1))
