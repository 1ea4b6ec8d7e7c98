"""What a loss takes of other ranks: gathered rows and sums, with gradient.

Ranks may have batches of different sizes: sizes cross first, on the host, then rows padded to the largest batch. A loss that
is the mean over a rank's own rows is multiplied by that rank's share, so that everything equals one process. What is wrong
on one rank crosses with the sizes, so that every rank raises it and none waits.

The functions that are not in ``__all__`` are for the modules of this package.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from varloss._core import checks, ranks
from varloss._core.numerics import wide
from varloss._core.pairs import Gathered
from varloss._core.ranks import Agreed, Parts, ProcessGroup, agree, assume_equal_batches

__all__ = ["Gathered", "GatheredRows", "all_reduce_sum", "assume_equal_batches", "gather_rows", "gather_views"]

rank, world_size = ranks.rank, ranks.world_size


def require_available() -> None:
    """Raises ValueError where this build of torch has no distributed support."""
    if not dist.is_available():
        raise ValueError(
            "gather_distributed=True, but torch.distributed is not available: use gather_distributed=False or a torch "
            "build with distributed support."
        )


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks, forwards and backwards: every rank's result depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, process_group: ProcessGroup | None) -> Tensor:
        ctx.process_group = process_group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduceSum.apply(grad, ctx.process_group), None


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; the gradient of this rank's rows is summed over the ranks that used them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: tuple[int, ...] | None, process_group: ProcessGroup | None) -> Tensor:
        ctx.rows, ctx.own, ctx.dtype, ctx.process_group = rows, x.shape[0], x.dtype, process_group
        if rows is not None and x.shape[0] < max(rows):
            x = torch.cat([x, x.new_zeros(max(rows) - x.shape[0], *x.shape[1:])])
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(process_group))]
        dist.all_gather(parts, x, group=process_group)
        if rows is not None:
            parts = [part[:count] for part, count in zip(parts, rows, strict=True)]
        gathered = torch.cat(parts)
        # Half precision on the wire, fp32 from there on: the backward pass then adds the ranks' gradients in fp32.
        return wide(gathered) if gathered.is_floating_point() else gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total: Tensor = _AllReduceSum.apply(grad, ctx.process_group)
        me = dist.get_rank(ctx.process_group)
        start = me * ctx.own if ctx.rows is None else sum(ctx.rows[:me])
        return total[start : start + ctx.own].to(ctx.dtype), None, None


def all_reduce_sum(x: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
    """Sum of ``x`` over ranks, on every rank, with gradient; ``x`` itself where no process group runs.

    ``x`` has one shape and one dtype on all ranks; every rank raises ValueError where it has not. With a loss L_r = f(sum) on
    each rank, the gradient of a rank's input is the number of ranks times that of one process: the average that
    DistributedDataParallel takes over ranks makes the gradient of the parameters that of one process.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.randn(2, 16, 8)
        >>> grams = varloss.metrics.Grams.unpack(varloss.distributed.all_reduce_sum(varloss.metrics.Grams.of(z0, z1).pack()), dim=8)
        >>> loss = grams.vrn(num_samples=50_000)
    """
    if world_size(process_group) == 1:
        return x
    return summed(x, agree(lambda: (x.unsqueeze(0),), process_group), process_group)


def summed(x: Tensor, agreed: Agreed, process_group: ProcessGroup | None) -> Tensor:
    """:func:`all_reduce_sum` where ranks have agreed."""
    return _AllReduceSum.apply(trained(x, agreed), process_group)  # type: ignore[no-any-return]


def trained(x: Tensor, agreed: Agreed) -> Tensor:
    """``x``, or a copy that requires a gradient where rows of other ranks do: their backward pass waits for this rank's."""
    return x.clone().requires_grad_() if agreed.trained and torch.is_grad_enabled() and not x.requires_grad else x


def gather(x: Tensor, agreed: Agreed, process_group: ProcessGroup | None) -> Tensor:
    """Rows of all ranks, (N, ...) -> (sum of N over ranks, ...), in rank order, with gradient; precision as :func:`gather_views`."""
    # All ranks have as many rows under torch.compile, and torch 2.4 does not take a tuple of symbols as an argument.
    rows = None if torch.compiler.is_compiling() else agreed.rows
    return _Gather.apply(x, rows, process_group)  # type: ignore[no-any-return]


def place(agreed: Agreed, process_group: ProcessGroup | None) -> tuple[int, float]:
    """The ``offset`` and the ``share`` of :class:`Gathered`. Values and averaged gradients are then of all rows."""
    rows, me = agreed.rows, rank(process_group)
    equal = all(count == rows[0] for count in rows)
    return sum(rows[:me]), 1.0 if equal else len(rows) * rows[me] / sum(rows)


def gather_views(z0: Tensor, z1: Tensor, *, process_group: ProcessGroup | None = None) -> Gathered | None:
    """Rows of both views from all ranks, in one collective and with gradient; None in one process.

    ``z0`` and ``z1`` are (N, D) projections; ranks may differ in N, and a rank may have no rows. ``process_group`` is that of
    the ranks, by default the world. Half precision comes back in fp32, so that the backward pass adds the ranks' gradients in
    fp32. Raises, on every rank, TypeError or ValueError where one rank has tensors that are not the two views of a batch,
    and ValueError where ranks differ in D or in dtype.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.randn(2, 16, 128)
        >>> loss = varloss.functional.nt_xent(z0, z1, gathered=varloss.distributed.gather_views(z0, z1))
    """
    return views_of(lambda: two_views(z0, z1), process_group) if world_size(process_group) > 1 else None


def two_views(z0: Tensor, z1: Tensor) -> Parts:
    checks.alike(z0=z0, z1=z1)
    return z0, z1


def views_of(look: Callable[[], Parts], process_group: ProcessGroup | None) -> Gathered:
    """:func:`gather_views` of what ``look`` returns, which may check more."""
    agreed = agree(look, process_group)
    z0, z1 = cast("tuple[Tensor, Tensor]", agreed.parts)  # text: torch 2.4 does not trace a generic
    both = gather(trained(torch.stack([z0, z1], dim=1), agreed), agreed, process_group)
    return Gathered((both[:, 0], both[:, 1]), *place(agreed, process_group))


class GatheredRows(NamedTuple):
    """Rows of all ranks with their ids, as a loss by sample index takes them: one argument, ``gathered``.

    :func:`gather_rows` makes it; a caller that gathers in another way makes it by hand. ``keys`` are the (M, D) rows of all
    ranks, with this rank's (R, D) among them from row ``offset`` on. ``keys_index`` (M,) is the sample or label of each key
    and ``keys_views`` (M,) its view; None where the rows have none, as those of a queue. ``share`` is as in :class:`Gathered`.

    Example:
        >>> import torch, varloss
        >>> keys, labels = torch.randn(12, 8), torch.arange(12) // 2
        >>> mine = slice(4, 8)
        >>> gathered = varloss.distributed.GatheredRows(keys, labels, offset=4)
        >>> loss = varloss.functional.nt_xent_indexed(keys[mine], labels[mine], gathered=gathered)
    """

    keys: Tensor
    keys_index: Tensor | None = None
    keys_views: Tensor | None = None
    offset: int = 0
    share: float = 1.0


def gather_rows(
    z: Tensor, index: Tensor | None = None, views: Tensor | None = None, *, process_group: ProcessGroup | None = None
) -> GatheredRows | None:
    """Rows of all ranks and their ids, with gradient; None in one process.

    ``z`` is (R, D), ``index`` (R,) integers, the sample or label of each row, ``views`` (R,) integers, the view of each row.
    Ranks may differ in R. ``process_group``, precision and errors are those of :func:`gather_views`.

    Example:
        >>> import torch, varloss
        >>> z, labels = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])
        >>> loss = varloss.functional.nt_xent_indexed(z, labels, gathered=varloss.distributed.gather_rows(z, labels))
    """
    if world_size(process_group) == 1:
        return None

    def look() -> Parts:
        checks.embeddings(z=z)
        ids = [None if x is None else checks.ids(name, x, z, "z") for name, x in (("index", index), ("views", views))]
        return z, *ids

    agreed = agree(look, process_group)
    rows, *ids = agreed.parts
    keys = gather(trained(cast(Tensor, rows), agreed), agreed, process_group)
    keys_index, keys_views = (None if x is None else gather(x, agreed, process_group) for x in ids)
    return GatheredRows(keys, keys_index, keys_views, *place(agreed, process_group))
