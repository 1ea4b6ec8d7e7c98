"""Hard negatives: the ones most similar to their anchor."""

from __future__ import annotations

import math

from torch import Tensor

from varloss._core import checks


def check_hard(hard_fraction: float | None, hard_count: int | None) -> None:
    """Raises unless at most one of the two is given and it is in range."""
    if hard_fraction is not None and hard_count is not None:
        raise ValueError(
            f"give hard_fraction or hard_count, not both; got hard_fraction={hard_fraction} and hard_count={hard_count}."
        )
    if hard_count is not None:
        checks.whole("hard_count", hard_count, 1)
    if hard_fraction is not None and not 0 < checks.real("hard_fraction", hard_fraction) <= 1:
        raise ValueError(f"hard_fraction must lie in (0, 1]; got {hard_fraction}.")


def count_of_hard(available: int, hard_fraction: float | None, hard_count: int | None) -> int | None:
    """How many of an anchor's ``available`` negatives are kept, None for all."""
    check_hard(hard_fraction, hard_count)
    if hard_count is not None and hard_count > available:
        raise ValueError(f"hard_count must be at most the {available} negatives of an anchor; got {hard_count}.")
    # Rounded before it is rounded up: 0.1 * 30 is 3.0000000000000004.
    kept = hard_count if hard_fraction is None else math.ceil(round(hard_fraction * available, 9))
    return None if kept == available else kept


def mask_easy(logits: Tensor, count: int | None, dim: int) -> Tensor:
    """``logits`` with -inf for all but the ``count`` largest along ``dim``; what ties with the last of them stays."""
    if count is None:
        return logits
    least = logits.detach().topk(count, dim=dim).values.amin(dim=dim, keepdim=True)
    return logits.masked_fill(logits < least, -math.inf)
