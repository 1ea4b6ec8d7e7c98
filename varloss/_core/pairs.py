"""Which pairs of rows a two-view loss looks at: the views of a batch, the rows of other ranks, the hard among the negatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import as_tensor, is_symbol, is_traced, own_columns, products, unit

Pairs = Literal["cross", "within", "both"]
"""Pairs of different samples: one row from each view, two rows of one view, or both kinds."""
PAIRS: tuple[Pairs, ...] = ("cross", "within", "both")


class Gathered(NamedTuple):
    """The rows of both views from all ranks, as a two-view loss takes them: one argument, ``gathered``.

    ``loss(z0, z1, gathered=varloss.distributed.gather_views(z0, z1))`` is all that several ranks need: the mean over ranks of the
    values is the value of one process on all rows. A caller that gathers in another way builds it by hand. ``keys`` are the
    rows of view 0 and of view 1 of all ranks, each (M, D), with this rank's (N, D) among them, in order, from row ``offset``
    on. ``share`` is this rank's number of rows over the mean of all ranks; 1 where all ranks have as many.

    Example:
        >>> import torch, varloss
        >>> k0, k1 = torch.randn(2, 12, 8)
        >>> second_of_three_ranks = varloss.distributed.Gathered((k0, k1), offset=4)
        >>> second_of_three_ranks.scale(torch.tensor(0.5)).item()
        0.5
    """

    keys: tuple[Tensor, Tensor]
    offset: int
    share: float = 1.0

    def scale(self, local_mean: Tensor) -> Tensor:
        """``local_mean * share``: averages over ranks to the mean over all ranks' rows. Losses that take ``gathered`` apply it."""
        return local_mean if self.share == 1 else local_mean * self.share


def scaled(loss: Tensor, gathered: Gathered | None) -> Tensor:
    return loss if gathered is None else gathered.scale(loss)


def check_two_views(z0: Tensor, z1: Tensor, gathered: Gathered | None, look: bool = False) -> int:
    """Checks a two-view batch and, where given, the gathered rows that contain it; ``look`` looks at the values too.

    Returns the number of pairs of a sample of the batch and another one.
    """
    checks.alike(z0=z0, z1=z1)
    total = z0.shape[0]
    if gathered is not None:
        if not isinstance(gathered, Gathered):
            raise TypeError(f"gathered must be a varloss.distributed.Gathered; got {type(gathered).__name__}.")
        keys, offset, _ = gathered
        if not isinstance(keys, tuple) or len(keys) != 2:
            raise TypeError("keys must be a pair (keys of view 0, keys of view 1) of tensors.")
        checks.embeddings(z0=z0, keys0=keys[0], keys1=keys[1])
        if keys[0].shape != keys[1].shape:
            raise ValueError(
                f"keys of the two views must have the same shape; got {tuple(keys[0].shape)} and {tuple(keys[1].shape)}."
            )
        total = keys[0].shape[0]
        checks.rows_inside(z0.shape[0], total, offset)
    if look:
        checks.rows_are_sound(z0=z0, z1=z1)
    return z0.shape[0] * (total - 1) if total else 0


@dataclass(frozen=True)
class TwoViews:
    """Unit rows of this rank's views, ``u`` and ``v`` (N, D), and of all ranks', ``keys`` (M, D); row i of both is one sample.

    The anchors start at row ``offset`` of the keys; where nothing was gathered they are the keys.
    """

    u: Tensor
    v: Tensor
    keys: tuple[Tensor, Tensor]
    offset: int = 0

    @classmethod
    def of(cls, z0: Tensor, z1: Tensor, gathered: Gathered | None = None) -> TwoViews:
        u, v = unit(z0), unit(z1)
        if gathered is None:
            return cls(u, v, (u, v))
        return cls(u, v, (unit(gathered.keys[0]), unit(gathered.keys[1])), gathered.offset)

    @property
    def positive(self) -> Tensor:
        """(N,) similarities of the positive pairs."""
        return (self.u * self.v).sum(dim=1)

    def own(self) -> Tensor:
        """(N, M) mask: true where a key is the anchor's own sample."""
        return own_columns(self.u.shape[0], self.keys[0].shape[0], self.offset, self.u.device)

    def number_of_negatives(self, pairs: Pairs) -> int:
        return max(self.keys[0].shape[0] - 1, 0) * (2 if pairs == "both" else 1)

    def over_negatives(
        self,
        function: Callable[[Tensor, int], Tensor],
        pairs: Pairs,
        kept: int | Tensor | None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """(2, N): ``function(similarities * scale, dim)`` over the ``kept`` hardest negatives of each anchor; None keeps all.

        A matrix holds each anchor's similarities along ``dim``, and -inf for its own sample and for negatives that are not
        kept. What ties with the last one that is kept stays.
        """

        def reduce(similarities: Tensor, dim: int) -> Tensor:
            if kept is not None:
                if isinstance(kept, Tensor):
                    least = similarities.detach().sort(dim, descending=True).values.index_select(dim, kept.view(1) - 1)
                else:
                    least = similarities.detach().topk(kept, dim=dim).values.amin(dim=dim, keepdim=True)
                similarities = similarities.masked_fill(similarities < least, -math.inf)
            return function(similarities, dim)

        u, v = self.u * scale, self.v * scale
        if pairs == "both":
            similarities = products(torch.cat([u, v]), torch.cat(self.keys))
            return reduce(similarities.masked_fill(self.own().repeat(2, 2), -math.inf), 1).view(2, -1)
        if pairs == "cross" and self.keys[0] is self.u:
            # The anchors of view 1 are the columns.
            similarities = products(u, self.v).masked_fill(self.own(), -math.inf)
            return torch.stack([reduce(similarities, 1), reduce(similarities, 0)])
        keys = torch.stack(self.keys if pairs == "within" else self.keys[::-1])
        return reduce(products(torch.stack([u, v]), keys).masked_fill(self.own(), -math.inf), 2)

    def mean_over_pairs(self, cost: Callable[[Tensor], Tensor], pairs: Pairs) -> Tensor:
        """Mean of ``cost(similarity)`` over the pairs of different samples; ``"both"`` is the mean of both kinds' means."""
        if pairs == "both":
            return (self.mean_over_pairs(cost, "cross") + self.mean_over_pairs(cost, "within")) / 2
        keys0, keys1 = self.keys
        blocks = [(self.u, keys1)] if pairs == "cross" else [(self.u, keys0), (self.v, keys1)]
        costs = [cost(products(rows, keys)) for rows, keys in blocks]
        own = self.own()
        sums = [values.masked_fill(own, 0).sum() for values in costs]
        total = sums[0] if pairs == "cross" else (sums[0] + sums[1]) / 2
        return total / max(own.shape[0] * (own.shape[1] - 1), 1)


def check_hard(hard_fraction: float | None, hard_count: int | None) -> tuple[float | None, int | None]:
    """Returns the two; raises unless at most one of them is given and it is in range."""
    if hard_fraction is not None and hard_count is not None:
        raise ValueError(
            f"give hard_fraction or hard_count, not both; got hard_fraction={hard_fraction} and hard_count={hard_count}."
        )
    if hard_count is not None:
        checks.whole("hard_count", hard_count, 1)
    if hard_fraction is not None and not 0 < checks.real("hard_fraction", hard_fraction) <= 1:
        raise ValueError(f"hard_fraction must lie in (0, 1]; got {hard_fraction}.")
    return hard_fraction, hard_count


def count_of_hard(
    available: int, hard_fraction: float | None, hard_count: int | None, device: torch.device
) -> int | Tensor | None:
    """How many of an anchor's ``available`` negatives are kept, None for all; a tensor where a compiled graph's fraction changes."""
    check_hard(hard_fraction, hard_count)
    available = int(available) if is_traced() else available
    if is_symbol(available) or is_symbol(hard_fraction or 1.0):
        number = as_tensor(available, device)
        if hard_fraction is None:
            return None if hard_count is None else number.clamp_max(hard_count).long()
        return torch.ceil(torch.round(number * hard_fraction, decimals=9)).long()
    # Rounded before it is rounded up: 0.1 * 30 is 3.0000000000000004.
    kept = hard_count if hard_fraction is None else math.ceil(round(hard_fraction * available, 9))
    return None if kept is None or kept >= available else kept
