"""Three ranks of which some form a group, or of which one has something wrong: what a child runs, which imports it by name."""

from __future__ import annotations

import copy
import datetime
import functools
import pickle
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import varloss
from support import ranks
from support.doc_examples import ROOT, blocks
from support.ranks import ON
from varloss import distributed
from varloss._core.ranks import agree

# A rank that waits for one that never comes raises after this time.
TIMEOUT = datetime.timedelta(seconds=20)
MEMBERS = [0, 2]
OUTSIDE = 1
FAULTY = 1
DIM = 4


def everything(x0: Tensor, x1: Tensor) -> dict[str, Any]:
    """All results of one start of the ranks. The order is that of the calls: a wait in one of them fails the next."""
    # Every rank makes every group: torch asks for that.
    pair, alone = dist.new_group(MEMBERS), dist.new_group([OUTSIDE])
    found: dict[str, Any] = {}
    if dist.get_rank() in MEMBERS:
        # The rank outside calls nothing here, not even what makes a group for the hosts.
        sizes = [7, 5]
        found["losses"] = {name: ranks.one_step(name, x0, x1, sizes, pair) for name in ranks.losses()}
        found["hosts"] = hosts(pair)
        found["compiled"] = compiled(x0.float(), x1.float(), pair)
    else:
        found["alone"] = ranks.one_step("with-vrn", x0, x1, [len(x0)], alone)
        found["outside"] = ranks.message(lambda: varloss.NTXentLoss(**ON, process_group=pair)(x0, x1))
        found["printed outside"] = str(varloss.NTXentLoss(**ON, process_group=pair))
    later = dist.new_group()
    total = torch.ones(())
    dist.all_reduce(total, group=later)
    found["later group"] = total
    found["copies"] = copies(pair)
    dist.destroy_process_group(later)
    found["destroyed"] = ranks.message(lambda: varloss.NTXentLoss(**ON, process_group=later)(x0, x1))
    found["faults"] = faults()
    found["constant"] = {name: constant_on_one_rank(name) for name in ranks.losses() if "indexed" not in name}
    found["calls"] = calls()
    found["mesh"] = of_the_page(x0, x1)
    found["temperatures"] = temperatures()
    return found


@functools.cache
def page() -> dict[str, Any]:
    """What the page on several ranks defines."""
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "distributed.md", "python"):
        exec(block, names)
    return names


def of_the_page(x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
    """The page's model and loss of a mesh: value and gradient of ranks 0 to 2, each with 4 rows."""
    mesh = init_device_mesh("cpu", (3, 1), mesh_dim_names=("dp", "tp"))
    build = page()["data_parallel"]
    torch.manual_seed(3)
    model, loss_fn = build(torch.nn.Linear(5, 4, dtype=torch.float64), mesh)
    z = model(torch.cat([ranks.shares(x, [4, 4, 4], mesh.get_group("dp")) for x in (x0, x1)]))
    value = loss_fn(*z.chunk(2))
    value.backward()
    return {"value": value.detach(), "weight": next(model.parameters()).grad}


def temperatures() -> dict[str, list[float]]:
    """Learned temperatures after some steps, of a loss beside DistributedDataParallel and of the page's."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    model = torch.nn.Linear(DIM, DIM)
    beside = varloss.NTXentLoss(learnable_temperature=True, **ON)
    inside, adam = page()["loss_and_optimizer"](model)
    found: dict[str, list[float]] = {"beside": [], "inside": []}
    for name, loss_fn, optimizer in (
        ("beside", beside, torch.optim.AdamW(beside.parameters(), lr=0.1)),
        ("inside", inside, adam),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            loss_fn(*torch.randn(2, 4, DIM, generator=generator)).backward()
            optimizer.step()
            found[name].append(next(loss_fn.parameters()).item())
    return found


def hosts(group: Any) -> list[Any]:
    """Sizes of rows on a device whose group takes no CPU tensors, twice, over a gloo group of these ranks."""
    rows = torch.empty(2 + dist.get_rank(), 3, device="meta")
    with mock.patch.object(dist, "get_backend_config", return_value="cuda:nccl"):
        return [list(agree(lambda: (rows,), group).rows) for _ in range(2)]


def compiled(x0: Tensor, x1: Tensor, group: Any) -> dict[str, Tensor]:
    on = {**ON, "process_group": group}
    loss_fn = varloss.WithVRN(varloss.NTXentLoss(**on), weight=2, num_samples=50, **on)
    graph = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    results = {}
    for name, function in (("graph", graph), ("eager", loss_fn)):
        z = [(x[:4] + dist.get_rank()).requires_grad_() for x in (x0, x1)]
        value = function(*z)
        results[name] = torch.cat([value.detach().view(1), torch.autograd.grad(value, z[0])[0].flatten()])
    return results


def copies(group: Any) -> dict[str, Any]:
    loss_fn = varloss.WithVRN(
        varloss.NTXentLoss(**ON, process_group=group), weight=1, num_samples=9, **ON, process_group=group
    )
    z = torch.ones(2, DIM)
    twin, unpickled = copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))
    found = {
        "printed": str(loss_fn.base),
        "shared": twin.base.process_group is group and twin.regularizer.process_group is group,
        "unpickled": ranks.message(lambda: unpickled(z, z)),
        "unpickled twice": ranks.message(lambda: pickle.loads(pickle.dumps(unpickled.base))(z, z)),
        "printed unpickled": str(unpickled.base),
    }
    unpickled.base.process_group = group
    return {**found, "set again": unpickled.base.process_group is group}


def methods(group: Any = None) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """Every way in which ranks meet, called with two views."""
    import varloss_lightly

    vrn = {"vrn_weight": 3, "num_samples": 50}
    local = varloss.WithVRN(varloss.KCLLoss(), weight=1, num_samples=9, **ON)
    learned = varloss.NTXentLoss(learnable_temperature=True, **ON)
    queue = varloss.QueueInfoNCELoss(memory_bank_size=(9, DIM), **ON)
    modules = {name: build() for name, build in ranks.losses().items() if name in varloss.__all__}
    ids = torch.arange(3)
    return {
        **modules,
        "learned": learned,
        "vrn": varloss.VRNRegularizer(weight=1, num_samples=9, **ON),
        "vrn of exponent 1": varloss.VRNRegularizer(weight=1, num_samples=9, exponent=1, **ON),
        "with vrn": varloss.WithVRN(varloss.NTXentLoss(**ON), weight=1, num_samples=9, **ON),
        "with vrn, another base": varloss.WithVRN(varloss.KCLLoss(**ON), weight=1, num_samples=9, **ON),
        "with vrn, a local base": local,
        "queue": queue,
        "enqueue": lambda z0, z1: queue.enqueue(z1),
        "lightly": varloss_lightly.NTXentLoss(0.5, 0, True, **vrn),
        "lightly, bank": varloss_lightly.NTXentLoss(0.5, (9, DIM), True),
        "lightly, dclw": varloss_lightly.DCLWLoss(0.5, 0.5, True, **vrn),
        "lightly, dhel": varloss_lightly.DHELLoss(0.5, True, **vrn),
        "gather_views": distributed.gather_views,
        "gather_rows": lambda z0, z1: distributed.gather_rows(z1, ids, ids),
    }


Views = tuple[Any, Any]
# What rank 1 has in place of its two views, each (3, 4) and fp32.
FAULTS: dict[str, Callable[[Tensor, Tensor], Views]] = {
    "1-D": lambda z0, z1: (z0[0], z1[0]),
    "3-D": lambda z0, z1: (z0[None], z1[None]),
    "another D": lambda z0, z1: (z0[:, :2], z1[:, :2]),
    "dimension 0": lambda z0, z1: (z0[:, :0], z1[:, :0]),
    "views of different N": lambda z0, z1: (z0, z1[:2]),
    "views of different D": lambda z0, z1: (z0, z1[:, :2]),
    "float64": lambda z0, z1: (z0.double(), z1.double()),
    "one view in float64": lambda z0, z1: (z0, z1.double()),
    "half": lambda z0, z1: (z0.half(), z1.half()),
    "one view in half": lambda z0, z1: (z0, z1.half()),
    "integers": lambda z0, z1: (z0.long(), z1.long()),
    "fp8": lambda z0, z1: (z0.to(torch.float8_e4m3fn), z1.to(torch.float8_e4m3fn)),
    "sparse": lambda z0, z1: (z0.to_sparse(), z1.to_sparse()),
    "None": lambda z0, z1: (z0, None),
    "a list": lambda z0, z1: (z0, z1.tolist()),
}
# What rank 1 sets out of range in a module.
OPTIONS: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "negatives": (lambda: varloss.NTXentLoss(**ON), "negatives", "other"),
    "hard_fraction": (lambda: varloss.NTXentLoss(hard_fraction=0.5, **ON), "hard_fraction", 2.0),
    "scale": (lambda: varloss.DHELLoss(**ON), "scale", "other"),
    "gamma": (lambda: varloss.KCLLoss(**ON), "gamma", -1.0),
    "bias": (lambda: varloss.SigmoidLoss(**ON), "bias", float("nan")),
    "weight": (lambda: varloss.SimpleLoss(**ON), "weight", -1.0),
    "spectral": (lambda: varloss.SpectralLoss(**ON), "negatives", None),
    "target": (lambda: varloss.VRNRegularizer(weight=1, target=0.1, **ON), "target", 7),
    "pairs": (lambda: varloss.VRNRegularizer(weight=1, target=0.1, **ON), "pairs", "other"),
    "temperature": (lambda: varloss.QueueInfoNCELoss(memory_bank_size=(9, DIM), **ON), "temperature", 0),
    "vrn of a sum": (
        lambda: varloss.WithVRN(varloss.NTXentLoss(**ON), weight=1, target=0.1, **ON),
        "regularizer.target",
        7,
    ),
}
# What rank 1 passes to a function in place of (z, index, views) or of x.
ROWS: dict[str, Callable[[Tensor, Tensor], tuple[Any, ...]]] = {
    "ids of wrong length": lambda z, ids: (z, ids[:2], ids),
    "ids of floats": lambda z, ids: (z, ids.float(), ids),
    "no ids": lambda z, ids: (z, None, ids),
    "no views": lambda z, ids: (z, ids, None),
    "narrow ids": lambda z, ids: (z, ids.int(), ids),
    "views of wrong length": lambda z, ids: (z, ids, ids[:2]),
}


def outcome(call: Callable[[], Any]) -> tuple[str, float]:
    """The error of a call with its type, "" where there is none, and the seconds until it came."""
    started = time.monotonic()
    text = ""
    try:
        call()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    return text, time.monotonic() - started


def faults() -> dict[str, tuple[str, float]]:
    """The errors of every rank where rank 1 alone has something wrong, and of the sound step after each."""
    faulty = dist.get_rank() == FAULTY
    z = torch.randn(2, 3, DIM)
    ids = torch.arange(3)
    found = {}
    for name, method in methods().items():
        for fault, change in FAULTS.items():
            found[f"{name} / {fault}"] = outcome(lambda m=method, c=change: m(*(c(*z) if faulty else z)))
        found[f"{name} / none"] = outcome(lambda m=method: m(*z))
    for name, (build, option, value) in OPTIONS.items():
        module = build()
        if faulty:
            owner, _, last = option.rpartition(".")
            setattr(module.get_submodule(owner), last, value)
        found[f"option {name}"] = outcome(lambda m=module: m(*z.clone().requires_grad_()))
    for name, change in ROWS.items():
        arguments = change(z[0], ids) if faulty else (z[0], ids, ids)
        found[f"gather_rows / {name}"] = outcome(lambda a=arguments: distributed.gather_rows(*a))
    for name, x in {"shape": z[0, : 3 - faulty], "dtype": z.double() if faulty else z}.items():
        found[f"all_reduce_sum / {name}"] = outcome(lambda x=x: distributed.all_reduce_sum(x))
    with torch.set_grad_enabled(not faulty):
        rows = z.clone().requires_grad_()
        found["no_grad"] = outcome(lambda: varloss.NTXentLoss(**ON)(*rows))
    every = outcome(lambda: varloss.NTXentLoss(**ON)(z[0, 0], z[0, 0]))
    return {**found, "every rank": every, "none": outcome(lambda: varloss.NTXentLoss(**ON)(*z))}


def constant_on_one_rank(name: str) -> Tensor:
    """The gradient of this rank's rows where those of rank 1 require none; all ranks call ``backward``."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    z = torch.randn(2, 4, DIM, generator=generator, dtype=torch.float64)
    both = []
    for constant in (False, True):
        rows = [x.clone().requires_grad_(not (constant and dist.get_rank() == FAULTY)) for x in z]
        ranks.losses()[name]()(*rows).backward()
        both.append(torch.zeros_like(z[0]) if rows[0].grad is None else rows[0].grad)
    return torch.stack(both)


def calls() -> dict[str, list[tuple[str, int]]]:
    """The collectives of a forward pass."""
    z = torch.randn(2, 3, DIM).requires_grad_()
    chosen = (
        "vrn",
        "with vrn",
        "with vrn, another base",
        "with vrn, a local base",
        "queue",
        "lightly, bank",
        "lightly",
    )
    table = methods()
    return {name: ranks.collectives(functools.partial(table[name], *z)) for name in chosen}
