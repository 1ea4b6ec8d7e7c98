"""Two ways to one loss give one value and one gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_same(ours: Tensor, reference: Tensor, inputs: Sequence[Tensor], relative: float = 1e-10) -> None:
    """Value and gradient agree; a missing gradient counts as zero."""
    torch.testing.assert_close(ours, reference, rtol=relative, atol=relative)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, retain_graph=True, materialize_grads=True),
        torch.autograd.grad(reference, inputs, retain_graph=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=relative, atol=relative)
