"""Workers for several ranks on one machine: real process groups over gloo, one process per rank.

They are not in the test modules, because these processes import them by name.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import os
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import varloss
from support import cases, forked
from varloss import distributed, functional
from varloss._core import ranks as core_ranks
from varloss._core.ranks import agree
from varloss.losses.base import TwoViewLoss

TIMEOUT = datetime.timedelta(seconds=180)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _start(rank: int, world: int, port: int, timeout: datetime.timedelta = TIMEOUT) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0, TIMEOUT)
    # A short timeout must not include the time that processes take to start.
    store.set(f"started/{rank}", "")
    store.wait([f"started/{other}" for other in range(world)])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)


def _enter(
    rank: int,
    world: int,
    port: int,
    folder: str,
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    finale: Callable[[Path], None] | None,
    timeout: datetime.timedelta,
) -> None:
    _start(rank, world, port, timeout)
    torch.save(worker(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    if finale is not None:
        finale(Path(folder))
    # Not destroy_process_group(): before torch 2.5 gloo's teardown can deadlock with the interpreter's lock.
    os._exit(0)


def run(
    world: int,
    folder: Path,
    worker: Callable[..., Any],
    *arguments: Any,
    finale: Callable[[Path], None] | None = None,
    timeout: datetime.timedelta = TIMEOUT,
) -> list[Any]:
    """The results of ``worker(*arguments)`` on each of ``world`` ranks, in rank order. ``finale`` may end ranks.

    A collective for which a rank is missing raises after ``timeout``.
    """
    forked.context()
    arguments = (world, free_port(), str(folder), worker, arguments, finale, timeout)
    mp.start_processes(_enter, arguments, nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def shares(z: Tensor, sizes: list[int], group: Any = None) -> Tensor:
    """This rank's rows of the whole batch."""
    return z.split(sizes)[dist.get_rank(group)]


ON = {"gather_distributed": True}


class ByHand(nn.Module):
    """A function of gathered rows, called with rows that the caller has gathered."""

    def __init__(self, function: Callable[..., Tensor], group: Any = None, **options: Any) -> None:
        super().__init__()
        self.function, self.options, self.group = function, options, [group]

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return self.function(
            z0, z1, gathered=distributed.gather_views(z0, z1, process_group=self.group[0]), **self.options
        )


class ByIndex(nn.Module):
    """A function of rows by index, gathered as in solo-learn: rows, indices and views of all ranks.

    Sample 3 repeats sample 0, and sample 4 has only one view, so ranks have different numbers of anchors and pairs.
    """

    def __init__(self, function: Callable[..., Tensor], group: Any = None, **options: Any) -> None:
        super().__init__()
        self.function, self.options, self.group = function, options, [group]

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        (group,) = self.group
        n, rows = z0.shape[0], agree(lambda: (z0,), group).rows
        samples = torch.arange(sum(rows))
        samples[3] = 0
        index = torch.stack([samples, samples])
        index[1, 4] = 99
        before = sum(rows[: distributed.rank(group)])
        mine = index[:, before : before + n].flatten()
        views = torch.arange(2).repeat_interleave(n)
        z = torch.cat([z0, z1])
        gathered = distributed.gather_rows(z, mine, views, process_group=group)
        return self.function(z, mine, views=views, gathered=gathered, **self.options)


def _queue(build: Callable[[], nn.Module]) -> nn.Module:
    """A loss with a bank that starts with the same keys on all ranks, as after DistributedDataParallel's broadcast."""
    torch.manual_seed(5)
    loss_fn = build()
    loss_fn.memory_bank.double()
    loss_fn.memory_bank.enqueue(torch.randn(4, 4))
    return loss_fn


def losses(group: Any = None) -> dict[str, Callable[[], nn.Module]]:
    """Every loss that uses the rows of other ranks, those of ``group``; each is built inside a process group."""
    import varloss_lightly

    of = {"process_group": group}
    on = {**ON, **of}
    vrn = {"vrn_weight": 3, "num_samples": 50}
    table: dict[str, Callable[[], nn.Module]] = {
        "info_nce-learnable": lambda: varloss.InfoNCELoss(learnable_temperature=True, **on),
        "dhel-official": lambda: varloss.DHELLoss(scale="official", **on),
        "queue": lambda: _queue(lambda: varloss.QueueInfoNCELoss(memory_bank_size=(19, 4), **on)),
        "with-vrn": lambda: varloss.WithVRN(varloss.NTXentLoss(**on), weight=2, num_samples=50, pairs="both", **on),
        "with-vrn-kcl": lambda: varloss.WithVRN(varloss.KCLLoss(**on), weight=2, num_samples=50, exponent=1, **on),
        "lightly-ntxent": lambda: varloss_lightly.NTXentLoss(0.3, 0, True, **of),
        "lightly-ntxent-vrn": lambda: varloss_lightly.NTXentLoss(0.5, 0, True, **vrn, **of),
        "lightly-queue": lambda: _queue(lambda: varloss_lightly.NTXentLoss(0.2, (19, 4), True, **of)),
        "lightly-dcl": lambda: varloss_lightly.DCLLoss(**on, **vrn),
        "lightly-dcl-weighted": lambda: varloss_lightly.DCLLoss(0.2, lambda a, b: (a * b).sum(1).detach(), True, **of),
        "lightly-dclw": lambda: varloss_lightly.DCLWLoss(0.2, 0.5, True, vrn_pairs="both", **vrn, **of),
        "lightly-dhel": lambda: varloss_lightly.DHELLoss(0.3, True, scale="official", vrn_pairs="within", **vrn, **of),
        "lightly-vrn": lambda: varloss_lightly.VRNRegularizer(3, True, num_samples=50, **of),
        "indexed-outside": lambda: ByIndex(functional.nt_xent_indexed, group, positives="outside"),
    }
    for kind in ("cross", "within", "both"):
        for decoupled in (False, True):
            cell = {"negatives": kind, "decoupled": decoupled}
            table[f"nt_xent-{kind}-{decoupled}"] = lambda c=cell: varloss.NTXentLoss(**c, **on)
            for form in ("linear", "dense"):
                table[f"nt_xent-{kind}-{decoupled}-{form}"] = lambda c=cell, f=form: ByHand(
                    functional.nt_xent, group, form=f, **c
                )
        # Exponentials of 1/0.001 overflow float64 without a shift.
        table[f"nt_xent-{kind}-cold"] = lambda k=kind: varloss.NTXentLoss(temperature=0.001, negatives=k, **on)
        table[f"nt_xent-{kind}-hard"] = lambda k=kind: varloss.NTXentLoss(negatives=k, hard_fraction=0.4, **on)
        table[f"sigmoid-{kind}"] = lambda k=kind: varloss.SigmoidLoss(negatives=k, learnable=True, **on)
        table[f"spectral-{kind}"] = lambda k=kind: varloss.SpectralLoss(negatives=k, **on)
        table[f"simple-{kind}"] = lambda k=kind: varloss.SimpleLoss(negatives=k, **on)
        table[f"simple-{kind}-hard"] = lambda k=kind: varloss.SimpleLoss(negatives=k, hard_count=3, **on)
        for p in (1, 2, 3):
            table[f"vrn-{kind}-p{p}"] = lambda k=kind, e=p: varloss.VRNRegularizer(
                weight=1, num_samples=50, pairs=k, exponent=e, **on
            )
        for form in ("dense", "linear"):
            table[f"vrn-{kind}-{form}"] = lambda k=kind, f=form: ByHand(
                functional.vrn, group, form=f, num_samples=50, pairs=k
            )
        table[f"nt_xent_indexed-{kind}"] = lambda k=kind: ByIndex(functional.nt_xent_indexed, group, negatives=k)
        table[f"vrn_indexed-{kind}"] = lambda k=kind: ByIndex(functional.vrn_indexed, group, num_samples=50, pairs=k)
    for name in varloss.__all__:
        module = getattr(varloss, name)
        if inspect.isclass(module) and issubclass(module, TwoViewLoss) and cases.takes_two_views_alone(module):
            table[name] = functools.partial(module, **on)
    return table


@functools.cache
def _model(replicated: bool, group: Any = None) -> nn.Module:
    """The encoder. It is made once, because wrapping it costs more than a step."""
    torch.manual_seed(3)
    encoder = nn.Linear(5, 4, dtype=torch.float64)
    return nn.parallel.DistributedDataParallel(encoder, process_group=group) if replicated else encoder


def one_step(name: str, x0: Tensor, x1: Tensor, sizes: list[int] | None, group: Any = None) -> dict[str, Tensor]:
    """Value, input gradient through a bare loss, and parameter gradient through DistributedDataParallel.

    Without ``sizes`` it runs on the whole batch in one process.
    """
    loss_fn = losses(group)[name]()
    mine = [x if sizes is None else shares(x, sizes, group) for x in (x0, x1)]
    # Momentum keys carry no gradient.
    z = [x[:, :4].clone().requires_grad_("queue" not in name or i == 0) for i, x in enumerate(mine)]
    value = loss_fn(*z)
    value.backward()
    of_loss = {f"parameter {key}": p.grad.clone() for key, p in loss_fn.named_parameters()}
    model = _model(sizes is not None, group)
    z0, z1 = model(torch.cat(mine)).chunk(2)
    loss_fn(z0, z1.detach() if "queue" in name else z1).backward()
    (weight,) = (p.grad.clone() for name, p in model.named_parameters() if name.endswith("weight"))
    model.zero_grad()
    grads = {f"grad{i}": x.grad for i, x in enumerate(z) if x.grad is not None}
    return {"value": value.detach(), **grads, "weight": weight, **of_loss}


def assert_is_one_process(world: int, results: list[dict[str, Tensor]], truth: dict[str, Tensor]) -> None:
    """Mean of values; input gradient times the number of ranks; parameter gradient."""
    value = torch.stack([result["value"] for result in results]).mean()
    torch.testing.assert_close(value, truth["value"], rtol=1e-12, atol=1e-14)
    for key, expected in truth.items():
        if key.startswith("grad"):
            whole = torch.cat([result[key] for result in results])
            torch.testing.assert_close(whole, world * expected, rtol=1e-10, atol=1e-13)
        elif key.startswith("parameter"):
            # Learned in fp32; DistributedDataParallel averages it.
            mean = torch.stack([result[key] for result in results]).mean(dim=0)
            torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-7)
    for result in results:
        torch.testing.assert_close(result["weight"], truth["weight"], rtol=1e-10, atol=1e-13)


def every_loss(x0: Tensor, x1: Tensor, splits: dict[str, list[int]]) -> dict[str, dict[str, dict[str, Tensor]]]:
    return {split: {name: one_step(name, x0, x1, sizes) for name in losses()} for split, sizes in splits.items()}


def everything(x0: Tensor, x1: Tensor, labels: Tensor, splits: dict[str, list[int]]) -> dict[str, Any]:
    """All results that the tests need for one number of ranks, so that its processes start only once."""
    uneven = splits["uneven"]
    metrics = {}
    if find_spec("torchmetrics"):
        from support import metric_ranks

        metrics = metric_ranks.synchronised(*(shares(x, uneven) for x in (x0, x1, labels)))
    return {
        "losses": every_loss(x0, x1, splits),
        "banks": {name: bank_after_steps(name, x0[:, :4], uneven) for name in ("queue", "lightly-queue")},
        "second order": second_order(x0, uneven),
        "half": half_precision(x0, x1, uneven),
        "metrics": metrics,
        "errors": errors(),
        "without sizes": without_sizes(x0, x1, splits["even"]),
        "group of hosts": group_of_hosts(),
        "payload": payload(),
        # Dynamo takes as long as everything else, so this runs once.
        "compiled": compiled(x0.float(), x1.float()) if dist.get_world_size() == 2 else {},
    }


def bank_after_steps(name: str, x: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    """Three steps, enough to wrap around."""
    loss_fn = losses()[name]()
    for step in range(3):
        key = shares(x + step, sizes)
        loss_fn(key.clone().requires_grad_(), key)
    return dict(loss_fn.memory_bank.state_dict())


def second_order(x: Tensor, sizes: list[int]) -> Tensor:
    """The second derivative through both collectives."""
    z = shares(x, sizes).clone().requires_grad_()
    gathered = distributed.gather_rows(z)
    loss = (z if gathered is None else gathered.keys).pow(3).sum() + distributed.all_reduce_sum(z.sum()).pow(3)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    return torch.autograd.grad(grad.sum(), z)[0]


def half_precision(x0: Tensor, x1: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    """Input gradients of half-precision rows, scaled as GradScaler does so that none is subnormal."""
    results = {}
    for dtype in (torch.float16, torch.bfloat16):
        z = [shares(x, sizes).to(dtype).requires_grad_() for x in (x0, x1)]
        value = varloss.WithVRN(varloss.NTXentLoss(**ON), weight=2, num_samples=50, **ON)(*z)
        (2**8 * value).backward()
        results[str(dtype)] = torch.stack([x.grad for x in z])
    return results


def message(call: Callable[[], Any]) -> str:
    """The message of the ValueError of ``call``; empty if it raises none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def errors() -> dict[str, str]:
    """The errors on ranks whose rows do not match. Every rank raises, and none waits for the others."""
    me = dist.get_rank()
    loss_fn = varloss.NTXentLoss(**ON)
    z = torch.ones(3, 4, requires_grad=True)
    wide, double = torch.ones(3, 4 + me), torch.ones(3, 4, dtype=torch.float64 if me else torch.float32)
    half = torch.ones(3, 4, dtype=torch.bfloat16 if me else torch.float16)
    return {
        "width": message(lambda: loss_fn(wide, wide)),
        "dtype": message(lambda: loss_fn(double, double)),
        # Both have the same size in bytes, so the collective itself would not notice.
        "half": message(lambda: loss_fn(half, half)),
        "views": message(lambda: loss_fn(z, z[:2])),
        # After all errors the ranks are still synchronised.
        "none": message(lambda: loss_fn(z, z).backward()),
    }


class Collectives(TorchDispatchMode):
    """Names of the collectives, and the bytes that this rank passes to them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__
            sent = {"allreduce_": 0, "allgather_": 1}[name]
            self.calls.append((name, sum(x.nbytes for x in args[sent])))
        return function(*args, **(kwargs or {}))


def collectives(call: Callable[[], Any]) -> list[tuple[str, int]]:
    with Collectives() as seen:
        call()
    return seen.calls


def without_sizes(x0: Tensor, x1: Tensor, sizes: list[int]) -> dict[str, Any]:
    """With `assume_equal_batches`: the same value, and no exchange of sizes."""
    loss_fn = varloss.NTXentLoss(**ON)
    z = [shares(x, sizes) for x in (x0, x1)]
    usual = {"usual": collectives(lambda: loss_fn(*z)), "usual value": loss_fn(*z)}
    distributed.assume_equal_batches()
    try:
        return {**usual, "promised": collectives(lambda: loss_fn(*z)), "value": loss_fn(*z)}
    finally:
        distributed.assume_equal_batches(False)


def group_of_hosts() -> list[list[int]]:
    """Sizes of rows on a device whose process group takes no CPU tensors, twice; they use a separate gloo group."""
    rows = torch.empty(2 + dist.get_rank(), 3, device="meta")
    with mock.patch.object(dist, "get_backend_config", return_value="cuda:nccl"):
        found = [list(agree(lambda: (rows,)).rows) for _ in range(2)]
    assert list(core_ranks._host_groups) == [dist.group.WORLD] * (dist.get_world_size() > 1)
    return found


PAYLOAD_ROWS, PAYLOAD_DIM = 64, 16


def payload() -> dict[str, list[tuple[str, int]]]:
    """What each form of VRN passes to the collectives in a step (forward, then backward), and queues in an evaluation."""
    z = [torch.randn(PAYLOAD_ROWS, PAYLOAD_DIM, requires_grad=True) for _ in range(2)]
    ways = {
        "gram": varloss.VRNRegularizer(weight=1, num_samples=50, **ON),
        "rows": ByHand(functional.vrn, num_samples=50),
    }
    found = {name: collectives(lambda f=loss_fn: f(*z).backward()) for name, loss_fn in ways.items()}
    rows = torch.randn(3, 4)
    for name in ("queue", "lightly-queue"):
        with torch.no_grad():
            found[name] = collectives(functools.partial(losses()[name](), rows, rows))
    return found


def compiled(x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
    """A single graph that includes the collectives, for two batch sizes."""
    loss_fn = varloss.WithVRN(varloss.NTXentLoss(**ON), weight=2, num_samples=50, **ON)
    graph = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    results = {}
    # The second size is the first one that dynamo treats as a symbol.
    for rows in (len(x0), len(x0) - 1):
        z = [(x[:rows] + dist.get_rank()).requires_grad_() for x in (x0, x1)]
        for name, function in (("graph", graph), ("eager", loss_fn)):
            value = function(*z)
            results[f"{name} {rows}"] = torch.cat(
                [value.detach().view(1), torch.autograd.grad(value, z[0])[0].flatten()]
            )
    return results


def step_with_a_casualty(folder: Path, fate: Callable[[], Any]) -> None:
    """A normal step, then one in which rank 1 calls ``fate`` between the forward and the backward pass.

    Each other rank writes its error, and after how many seconds it was raised, to a file.
    """
    loss_fn = varloss.WithVRN(varloss.NTXentLoss(**ON), weight=2, num_samples=50, **ON)
    z = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    loss_fn(*z).backward()
    loss = loss_fn(*z)
    if dist.get_rank() == 1:
        fate()
    started = time.monotonic()
    try:
        loss.backward()
    except RuntimeError as error:
        Path(folder, f"error-{dist.get_rank()}").write_text(f"{time.monotonic() - started}\n{error}")


def rank_1_dies(folder: Path) -> None:
    # Exit status 0, because otherwise the parent would stop the others before they notice.
    step_with_a_casualty(folder, lambda: os._exit(0))


def _hang(rank: int, world: int, port: int, folder: str) -> None:
    _start(rank, world, port, datetime.timedelta(seconds=5))
    step_with_a_casualty(Path(folder), lambda: time.sleep(TIMEOUT.total_seconds()))
    os._exit(0)


def rank_1_hangs(world: int, folder: Path) -> None:
    arguments = (world, free_port(), str(folder))
    processes = [forked.context().Process(target=_hang, args=(rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for rank, process in enumerate(processes):
        if rank != 1:
            process.join(TIMEOUT.total_seconds())
    for process in processes:
        process.kill()
        process.join()


def errors_of_others(folder: Path) -> dict[int, str]:
    """The errors on the other ranks after rank 1 was gone."""
    return {int(path.name.removeprefix("error-")): path.read_text() for path in folder.glob("error-*")}
