"""Workers for several ranks on one machine: real process groups over gloo, a spawned process a rank.

They live outside the test modules because a spawned child imports them by name.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import varloss

TIMEOUT = datetime.timedelta(seconds=60)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _enter(
    rank: int, world: int, port: int, folder: str, worker: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=TIMEOUT)
    torch.save(worker(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    # Not destroy_process_group(): before torch 2.5 gloo's teardown can deadlock with the interpreter's lock.
    os._exit(0)


def run(world: int, folder: Path, worker: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``worker(*arguments)`` returns on each of ``world`` ranks, in rank order."""
    mp.spawn(_enter, (world, free_port(), str(folder), worker, arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def shares(z: Tensor, sizes: list[int]) -> Tensor:
    """This rank's rows of the whole batch."""
    return z.split(sizes)[dist.get_rank()]


def losses() -> dict[str, Callable[[], nn.Module]]:
    """Every loss that looks across ranks, ready to be built inside a process group."""
    import varloss_lightly

    on = {"gather_distributed": True}
    table: dict[str, Callable[[], nn.Module]] = {
        "lightly-ntxent-vrn": lambda: varloss_lightly.NTXentLoss(0.5, 0, True, vrn_weight=3, num_samples=50),
        "lightly-dclw": lambda: varloss_lightly.DCLWLoss(0.2, 0.5, True),
        "lightly-dcl-weighted": lambda: varloss_lightly.DCLLoss(0.2, lambda a, b: (a * b).sum(1).detach(), True),
        "dhel-official": lambda: varloss.DHELLoss(scale="official", **on),
        "kcl": lambda: varloss.KCLLoss(**on),
        "with-vrn": lambda: varloss.WithVRN(varloss.NTXentLoss(**on), weight=2, num_samples=50, pairs="both", **on),
    }
    for kind in ("cross", "within", "both"):
        for decoupled in (False, True):
            table[f"nt_xent-{kind}-{decoupled}"] = lambda k=kind, d=decoupled: varloss.NTXentLoss(
                negatives=k, decoupled=d, **on
            )
        table[f"sigmoid-{kind}"] = lambda k=kind: varloss.SigmoidLoss(negatives=k, learnable=True, **on)
        table[f"spectral-{kind}"] = lambda k=kind: varloss.SpectralLoss(negatives=k, **on)
        table[f"simple-{kind}-hard"] = lambda k=kind: varloss.SimpleLoss(negatives=k, hard_count=3, **on)
        table[f"nt_xent-{kind}-hard"] = lambda k=kind: varloss.NTXentLoss(negatives=k, hard_fraction=0.4, **on)
        table[f"vrn-{kind}"] = lambda k=kind: varloss.VRNLoss(num_samples=50, pairs=k, **on)
        table[f"vrn-{kind}-p3"] = lambda k=kind: varloss.VRNLoss(num_samples=50, pairs=k, exponent=3, **on)
    return table


def _encoder() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(5, 4, dtype=torch.float64)


def one_step(name: str, x0: Tensor, x1: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    """Value, input gradient through a bare loss, and parameter gradient through DistributedDataParallel."""
    loss_fn = losses()[name]()
    z = [shares(x, sizes).clone().requires_grad_() for x in (x0, x1)]
    value = loss_fn(*z)
    value.backward()
    model = nn.parallel.DistributedDataParallel(_encoder())
    features = model(torch.cat([shares(x, sizes) for x in (x0, x1)]))
    loss_fn(*features.chunk(2)).backward()
    return {
        "value": value.detach(),
        "grad0": z[0].grad,
        "grad1": z[1].grad,
        "weight": model.module.weight.grad,
    }


def one_process(name: str, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
    """The same in this process on the whole batch."""
    loss_fn = losses()[name]()
    z = [x.clone().requires_grad_() for x in (x0, x1)]
    value = loss_fn(*z)
    value.backward()
    model = _encoder()
    loss_fn(*model(torch.cat([x0, x1])).chunk(2)).backward()
    return {"value": value.detach(), "grad0": z[0].grad, "grad1": z[1].grad, "weight": model.weight.grad}


def all_losses(x0: Tensor, x1: Tensor, sizes: list[int]) -> dict[str, dict[str, Tensor]]:
    return {name: one_step(name, x0, x1, sizes) for name in losses()}


def unequal_vrn(x0: Tensor, x1: Tensor, sizes: list[int]) -> dict[str, dict[str, Tensor]]:
    return {name: one_step(name, x0, x1, sizes) for name in ("vrn-cross", "vrn-within", "vrn-both")}


def indexed_rows(x: Tensor, index: Tensor, views: Tensor, sizes: list[int]) -> dict[str, list[Tensor]]:
    """The index entry points as solo-learn gathers: rows, indices and views of all ranks."""
    z = shares(x, sizes).clone().requires_grad_()
    keys = varloss.distributed.gather(z)
    offset = varloss.distributed.rank() * z.shape[0]
    ids = {"keys": keys, "keys_index": index, "keys_views": views, "offset": offset}
    results = {}
    for kind in ("cross", "within", "both"):
        mine = (z, shares(index, sizes))
        for name, value in {
            f"nt_xent-{kind}": varloss.functional.nt_xent_indexed(
                *mine, views=shares(views, sizes), negatives=kind, **ids
            ),
            f"vrn-{kind}": varloss.functional.vrn_indexed(
                *mine, views=shares(views, sizes), num_samples=50, pairs=kind, **ids
            ),
        }.items():
            (grad,) = torch.autograd.grad(value, z, retain_graph=True)
            results[name] = [value.detach(), grad]
    return results


def bank_after_steps(x: Tensor, sizes: list[int], steps: int) -> dict[str, Tensor]:
    loss_fn = varloss.QueueInfoNCELoss(memory_bank_size=(7, x.shape[1]), gather_distributed=True)
    for step in range(steps):
        key = shares(x + step, sizes)
        loss_fn(key.clone().requires_grad_(), key)
    return dict(loss_fn.state_dict())


def second_order(x: Tensor, sizes: list[int]) -> Tensor:
    """The gradient's gradient through both collectives."""
    z = shares(x, sizes).clone().requires_grad_()
    loss = varloss.distributed.gather(z).pow(3).sum() + varloss.distributed.all_reduce_sum(z.sum()).pow(3)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    return torch.autograd.grad(grad.sum(), z)[0]
