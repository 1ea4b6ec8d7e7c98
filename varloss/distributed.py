"""Collectives that carry gradients. The only file of the package that names torch.distributed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def require_available() -> None:
    """Raises ValueError where this build of torch has no distributed support."""
    if not dist.is_available():
        raise ValueError(
            "gather_distributed=True, but torch.distributed is not available: use gather_distributed=False or a torch "
            "build with distributed support."
        )


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process, 0 where no process group runs."""
    return dist.get_rank() if _is_running() else 0


def world_size() -> int:
    """Number of processes, 1 where no process group runs."""
    return dist.get_world_size() if _is_running() else 1


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
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total: Tensor = _AllReduceSum.apply(grad)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of ``x`` over ranks, on every rank, with gradient; ``x`` itself where no process group runs.

    With a loss L_r = f(sum) on each rank, the gradient of a rank's input is world_size times that of a single process: the
    average that DistributedDataParallel takes over ranks makes the parameters' gradient the single-process one.

    Args:
        x: any tensor, of one shape on all ranks.
    """
    total: Tensor = _AllReduceSum.apply(x) if world_size() > 1 else x
    return total


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, (N, ...) -> (world_size N, ...), in rank order, with gradient; ``x`` itself in one process.

    Args:
        x: rows of this rank, of one shape on all ranks: drop the last, smaller batch (``drop_last=True``).
    """
    rows: Tensor = _Gather.apply(x) if world_size() > 1 else x
    return rows


def gather_two_views(z0: Tensor, z1: Tensor) -> tuple[tuple[Tensor, Tensor] | None, int]:
    """``keys`` and ``offset`` of a two-view loss: both views of all ranks in one collective; (None, 0) in one process."""
    if world_size() == 1:
        return None, 0
    both = gather(torch.stack([z0, z1], dim=1))
    return (both[:, 0], both[:, 1]), rank() * z0.shape[0]
