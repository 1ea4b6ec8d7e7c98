"""A model with its loss inside DistributedDataParallel and FSDP, on two ranks: what a child runs, which imports it by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import varloss
from support import group_ranks, ranks
from support.ranks import ON

DIM = 4
# A module as it stands in a run, and its gradients by name.
Gradients = dict[str, Tensor]


class Model(nn.Module):
    """An encoder and its loss: the loss learns with it."""

    def __init__(self, loss_fn: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Linear(5, DIM)
        self.loss_fn = loss_fn

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        return self.loss_fn(self.encoder(x0), self.encoder(x1))


def losses() -> dict[str, Callable[[], nn.Module]]:
    """Every module that meets other ranks."""
    import varloss_lightly

    vrn = {"vrn_weight": 3, "num_samples": 50}
    found = {name: build for name, build in ranks.losses().items() if name in varloss.__all__}
    return {
        **found,
        "learned temperature": lambda: varloss.NTXentLoss(learnable_temperature=True, **ON),
        "learned scale": lambda: varloss.SigmoidLoss(learnable=True, **ON),
        "queue": lambda: varloss.QueueInfoNCELoss(memory_bank_size=(19, DIM), **ON),
        "vrn": lambda: varloss.VRNRegularizer(weight=1, num_samples=50, **ON),
        "with vrn": lambda: varloss.WithVRN(
            varloss.InfoNCELoss(learnable_temperature=True, **ON), weight=2, num_samples=50, **ON
        ),
        "lightly": lambda: varloss_lightly.NTXentLoss(0.3, 0, True, **vrn),
        "lightly, dclw": lambda: varloss_lightly.DCLWLoss(0.2, 0.5, True, **vrn),
        "lightly, dhel": lambda: varloss_lightly.DHELLoss(0.3, True, **vrn),
    }


def plain(model: nn.Module) -> Gradients:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def ddp(**options: Any) -> Callable[[Model, Any], tuple[nn.Module, Callable[[], Gradients]]]:
    def wrap(model: Model, mesh: Any) -> tuple[nn.Module, Callable[[], Gradients]]:
        return DistributedDataParallel(model, **options), lambda: plain(model)

    return wrap


def fsdp1(model: Model, mesh: Any) -> tuple[nn.Module, Callable[[], Gradients]]:
    wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)

    def gradients() -> Gradients:
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            return {name: parameter.grad.clone() for name, parameter in wrapped.module.named_parameters()}

    return wrapped, gradients


def fsdp2(model: Model, mesh: Any) -> tuple[nn.Module, Callable[[], Gradients]]:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, lambda: {name: p.grad.full_tensor() for name, p in model.named_parameters()}


def fsdp2_of_the_page(model: Model, mesh: Any) -> tuple[nn.Module, Callable[[], Gradients]]:
    group_ranks.page()["sharded"](model.encoder, model.loss_fn, mesh)
    return model, lambda: {name: p.grad.full_tensor() for name, p in model.named_parameters()}


WRAPPERS = {
    "ddp": ddp(),
    "ddp, static graph": ddp(static_graph=True),
    "ddp, unused parameters are looked for": ddp(find_unused_parameters=True),
    "fsdp1": fsdp1,
    "fsdp2": fsdp2,
    "fsdp2, model and loss apart": fsdp2_of_the_page,
}
# How often the model is called, and whether the first backward pass is local.
CALLS = {"once": (1, False), "twice": (2, False), "no_sync": (2, True)}


def batches(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 * number + dist.get_rank())
    return list(torch.randn(2, 3 + dist.get_rank(), 5, generator=generator))


def step(model: nn.Module, calls: str) -> list[Tensor]:
    number, local = CALLS[calls]
    if not local:
        values = [model(*batches(call)) for call in range(number)]
        torch.stack(values).sum().backward()
        return [value.detach() for value in values]
    values = []
    for call in range(number):
        with model.no_sync() if call == 0 and hasattr(model, "no_sync") else nullcontext():
            value = model(*batches(call))
            value.backward()
        values.append(value.detach())
    return values


def expected(name: str, calls: str) -> tuple[list[Tensor], Gradients]:
    """Without a wrapper: the gradients averaged over ranks."""
    model = Model(losses()[name]())
    values = step(model, calls)
    gradients = plain(model)
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient.div_(dist.get_world_size())
    return values, gradients


def cell(name: str, wrapper: str, calls: str, mesh: Any) -> str:
    """ "right", or what is wrong."""
    values, gradients = expected(name, calls)
    try:
        wrapped, read = WRAPPERS[wrapper](Model(losses()[name]()), mesh)
        found, of_wrapped = step(wrapped, calls), read()
        for value, truth in zip(found, values, strict=True):
            torch.testing.assert_close(value, truth)
        for key, truth in gradients.items():
            torch.testing.assert_close(of_wrapped[key], truth, msg=lambda text, key=key: f"{key}: {text}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "right"


def why_not(wrapper: str, calls: str, mesh: Any) -> str:
    """Why this torch does not run the wrapper on CPUs around a loss that is not ours; "" where it does."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
            return (self.scale * z0 * z1).mean()

    try:
        wrapped, read = WRAPPERS[wrapper](Model(Mean()), mesh)
        step(wrapped, calls)
        read()
    except Exception as error:
        return f"not run: {error}"
    return ""


def everything() -> dict[str, str]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for wrapper in WRAPPERS:
        for calls in CALLS:
            reason = why_not(wrapper, calls, mesh)
            for name in losses():
                found[f"{wrapper} / {calls} / {name}"] = reason or cell(name, wrapper, calls, mesh)
    return found
