"""What a loss takes of other ranks: gathered rows and sums, with gradient. The only file that names torch.distributed.

Ranks may have batches of different sizes: sizes cross first, on the host, then rows padded to the largest batch. A loss that
is the mean over a rank's own rows is multiplied by that rank's share, so that everything equals one process.

The functions that are not in ``__all__`` are for the modules of this package.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import wide
from varloss._core.pairs import Gathered

__all__ = ["Gathered", "GatheredRows", "all_reduce_sum", "assume_equal_batches", "gather_rows", "gather_views"]

# Names cross as their places in this list: all ranks run one build of torch.
_DTYPES = sorted({str(x) for x in vars(torch).values() if isinstance(x, torch.dtype)})

_equal_batches = False
# The group over which sizes cross where the default one takes no CPU tensors, and the default group it was made for.
_host_group: tuple[Any, Any] | None = None


def require_available() -> None:
    """Raises ValueError where this build of torch has no distributed support."""
    if not dist.is_available():
        raise ValueError(
            "gather_distributed=True, but torch.distributed is not available: use gather_distributed=False or a torch "
            "build with distributed support."
        )


def world_size() -> int:
    """Number of processes, 1 where no process group runs."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, 0 where no process group runs."""
    return dist.get_rank() if world_size() > 1 else 0


def assume_equal_batches(equal: bool = True) -> None:
    """Declares that all ranks have batches of one size (``drop_last=True``): sizes are then not exchanged.

    This saves one small collective of the hosts for each gathering. It holds for the whole process, and must be called on all
    ranks. Where batches differ all the same, the collective hangs or fails without a message of this package.

    ``equal=False`` takes the declaration back.

    Example:
        >>> import varloss
        >>> varloss.distributed.assume_equal_batches()
        >>> varloss.distributed.assume_equal_batches(False)
    """
    global _equal_batches  # noqa: PLW0603  (a fact about the process's data, not about any one loss)
    _equal_batches = equal


def sizes(x: Tensor) -> tuple[int, ...]:
    """Number of rows that each rank has of ``x``, in rank order. A collective: every rank must call it.

    The numbers travel between hosts, over the process group itself where it takes CPU tensors and over a gloo group made on
    the first call where it does not (NCCL): no host waits for its device. Under torch.compile, and after
    :func:`assume_equal_batches`, nothing travels and all ranks are taken to have as many rows as this one.

    ``x`` is (N, ...), of one dtype and one shape but for N on all ranks. Raises ValueError, on every rank, where a rank has no
    rows, or where the widths of rows or their dtypes differ.
    """
    ranks = world_size()
    if ranks == 1 or _equal_batches or torch.compiler.is_compiling():
        return (x.shape[0],) * ranks
    # device: a default one (torch.set_default_device) may be the accelerator, whose numbers the hosts' group does not take.
    mine = torch.tensor([x.shape[0], x.shape[1:].numel(), _DTYPES.index(str(x.dtype))], device="cpu")
    parts = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(parts, mine, group=_group_of_hosts(x))
    rows, widths, dtypes = zip(*(part.tolist() for part in parts), strict=True)
    if len(set(zip(widths, dtypes, strict=True))) > 1:
        raise ValueError(
            "all ranks must gather rows of one shape and one dtype; got, in rank order, "
            f"{', '.join(map(str, widths))} numbers a row of {', '.join(_DTYPES[dtype] for dtype in dtypes)}."
        )
    if 0 in rows:
        batches = ", ".join(map(str, rows))
        raise ValueError(f"every rank needs at least one sample; got, in rank order, batches of {batches}.")
    return rows


def _group_of_hosts(x: Tensor) -> Any:
    """A process group that takes CPU tensors; None is the default one."""
    global _host_group  # noqa: PLW0603  (a process group belongs to the process)
    if x.device.type == "cpu" or "cpu:" in dist.get_backend_config():
        return None
    if _host_group is None or _host_group[0] is not dist.group.WORLD:
        _host_group = (dist.group.WORLD, dist.new_group(backend="gloo"))
    return _host_group[1]


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks, forwards and backwards: every rank's result depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduceSum.apply(grad)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; the gradient of this rank's rows is summed over the ranks that used them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: tuple[int, ...] | None) -> Tensor:
        ctx.rows, ctx.own, ctx.dtype = rows, x.shape[0], x.dtype
        if rows is not None and x.shape[0] < max(rows):
            x = torch.cat([x, x.new_zeros(max(rows) - x.shape[0], *x.shape[1:])])
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        if rows is not None:
            parts = [part[:count] for part, count in zip(parts, rows, strict=True)]
        gathered = torch.cat(parts)
        # Half precision on the wire, fp32 from there on: the backward pass then adds the ranks' gradients in fp32.
        return wide(gathered) if gathered.is_floating_point() else gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total: Tensor = _AllReduceSum.apply(grad)
        me = dist.get_rank()
        start = me * ctx.own if ctx.rows is None else sum(ctx.rows[:me])
        return total[start : start + ctx.own].to(ctx.dtype), None


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over ranks, on every rank, with gradient; ``x`` itself where no process group runs.

    ``x`` has one shape on all ranks. With a loss L_r = f(sum) on each rank, the gradient of a rank's input is world_size times
    that of one process: the average that DistributedDataParallel takes over ranks makes the gradient of the parameters that
    of one process.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.randn(2, 16, 8)
        >>> grams = varloss.metrics.Grams.unpack(varloss.distributed.all_reduce_sum(varloss.metrics.Grams.of(z0, z1).pack()), dim=8)
        >>> loss = grams.vrn(num_samples=50_000)
    """
    return _AllReduceSum.apply(x) if world_size() > 1 else x


def gather(x: Tensor, rows: tuple[int, ...] | None = None) -> Tensor:
    """Rows of all ranks, (N, ...) -> (sum of N over ranks, ...), in rank order, with gradient; ``x`` itself in one process.

    Precision as :func:`gather_views`, errors as :func:`sizes`. ``rows`` is what that returned, where it is known already.
    """
    if world_size() == 1:
        return x
    rows = sizes(x) if rows is None else rows
    # All ranks have as many rows there, and torch 2.4 does not take a tuple of symbols as an argument.
    return _Gather.apply(x, None if torch.compiler.is_compiling() else rows)  # type: ignore[no-any-return]


def share(rows: tuple[int, ...]) -> float:
    """The ``share`` of :class:`Gathered`, of what :func:`sizes` returned. Values and averaged gradients are then of all rows."""
    if all(count == rows[0] for count in rows):
        return 1.0
    return len(rows) * rows[rank()] / sum(rows)


def as_share(local_mean: Tensor, z: Tensor) -> Tensor:
    """A mean over this rank's rows ``z`` as its share of the mean over all ranks' rows. A collective, as :func:`sizes`."""
    return local_mean * share(sizes(z))


def gather_views(z0: Tensor, z1: Tensor) -> Gathered | None:
    """Rows of both views from all ranks, in one collective and with gradient; None in one process.

    ``z0`` and ``z1`` are (N, D) projections; ranks may differ in N. Half precision comes back in fp32, so that the backward
    pass adds the ranks' gradients in fp32. Raises TypeError or ValueError for tensors that are not the two views of one batch,
    and ValueError on every rank where a rank has no rows, or where ranks differ in D or in dtype.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.randn(2, 16, 128)
        >>> loss = varloss.functional.nt_xent(z0, z1, gathered=varloss.distributed.gather_views(z0, z1))
    """
    if world_size() == 1:
        return None
    checks.alike(z0=z0, z1=z1)
    rows = sizes(z0)
    both = gather(torch.stack([z0, z1], dim=1), rows)
    return Gathered((both[:, 0], both[:, 1]), sum(rows[: rank()]), share(rows))


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


def gather_rows(z: Tensor, index: Tensor | None = None, views: Tensor | None = None) -> GatheredRows | None:
    """Rows of all ranks and their ids, with gradient; None in one process.

    ``z`` is (R, D), ``index`` (R,) integers, the sample or label of each row, ``views`` (R,) integers, the view of each row.
    Ranks may differ in R. Precision and errors are those of :func:`gather_views`.

    Example:
        >>> import torch, varloss
        >>> z, labels = torch.randn(4, 8), torch.tensor([0, 0, 1, 1])
        >>> loss = varloss.functional.nt_xent_indexed(z, labels, gathered=varloss.distributed.gather_rows(z, labels))
    """
    if world_size() == 1:
        return None
    rows = sizes(z)
    keys = gather(z, rows)
    keys_index, keys_views = (None if ids is None else gather(ids, rows) for ids in (index, views))
    return GatheredRows(keys, keys_index, keys_views, sum(rows[: rank()]), share(rows))
