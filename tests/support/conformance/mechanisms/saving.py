"""What reads the tensors that a loss saves for its backward pass, and when the backward pass runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.conformance.grid import mechanism
from support.conformance.subject import Call, MismatchError, Subject, check, close

saving = partial(mechanism, "Saved tensors and backward passes")


def encoder(dim: int) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(dim, dim, bias=False)
    layer.weight = nn.Parameter(torch.randn(dim, dim, generator=generator))
    return layer


def around_model(call: Call, z0: Tensor, z1: Tensor, *, reentrant: bool | None) -> Tensor:
    """A layer and the loss as one checkpointed function, or plainly."""
    layer = encoder(z0.shape[1])

    def both(a: Tensor, b: Tensor) -> Tensor:
        return call(layer(a), layer(b))

    return both(z0, z1) if reentrant is None else checkpoint(both, z0, z1, use_reentrant=reentrant)


@saving()
def checkpoint_loss(subject: Subject) -> None:
    """Activation checkpointing around the loss."""
    check(subject, lambda call, z0, z1: checkpoint(call, z0, z1, use_reentrant=False))


@saving()
def checkpoint_loss_reentrant(subject: Subject) -> None:
    """Reentrant activation checkpointing around the loss."""
    check(subject, lambda call, z0, z1: checkpoint(call, z0, z1, use_reentrant=True))


@saving()
def checkpoint_model(subject: Subject) -> None:
    """Activation checkpointing around model and loss."""
    check(subject, partial(around_model, reentrant=False), plain=partial(around_model, reentrant=None))


@saving()
def checkpoint_model_reentrant(subject: Subject) -> None:
    """Reentrant activation checkpointing around model and loss."""
    check(subject, partial(around_model, reentrant=True), plain=partial(around_model, reentrant=None))


@saving()
def checkpoint_in_autocast(subject: Subject) -> None:
    """Activation checkpointing around model and loss, in bf16 autocast."""

    def how(call: Call, z0: Tensor, z1: Tensor, reentrant: bool | None) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return around_model(call, z0, z1, reentrant=reentrant)

    check(subject, partial(how, reentrant=False), plain=partial(how, reentrant=None), tolerance=2e-2)


@saving()
def saved_tensor_hooks(subject: Subject) -> None:
    """Saved-tensor hooks: as many tensors unpacked as packed."""
    packed, unpacked = [], []

    def unpack(number: int) -> Tensor:
        unpacked.append(number)
        return packed[number]

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x.detach()) or len(packed) - 1, unpack):
            return call(z0, z1)

    check(subject, how)
    if sorted(unpacked) != list(range(len(packed))):
        raise MismatchError(f"{len(packed)} tensors packed, {len(unpacked)} unpacked")


@saving()
def saved_tensors_as_arrays(subject: Subject) -> None:
    """Saved tensors kept as NumPy arrays."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().numpy().copy(), torch.from_numpy):
            return call(z0, z1)

    check(subject, how)


@saving()
def save_on_cpu(subject: Subject) -> None:
    """Saved tensors offloaded by `save_on_cpu`."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return call(z0, z1)

    check(subject, how)


@saving()
def mutation_of_rows(subject: Subject) -> None:
    """Rows changed in place before the backward pass, under `allow_mutation_on_saved_tensors`."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            a, b = z0.clone(), z1.clone()
            value = call(a, b)
            with torch.no_grad():
                a.zero_()
                b.add_(3)
            value.backward()
            return value.detach()

    check(subject, how)


@saving()
def two_backwards(subject: Subject) -> None:
    """Two backward passes with `retain_graph`."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        value = call(z0, z1)
        value.backward(retain_graph=True)
        value.backward()
        return value.detach()

    def twice(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        value = call(z0, z1)
        (2 * value).backward()
        return value.detach()

    check(subject, how, plain=twice)


@saving()
def accumulation(subject: Subject) -> None:
    """Gradients accumulated over two batches."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        call(z0, z1).backward()
        return call(z0.flip(1), z1)

    def at_once(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        first, second = call(z0, z1), call(z0.flip(1), z1)
        return first - first.detach() + second

    check(subject, how, plain=at_once)


@saving()
def anomaly_mode(subject: Subject) -> None:
    """Anomaly mode."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        with torch.autograd.set_detect_anomaly(True):
            value = call(z0, z1)
            value.backward()
        return value.detach()

    check(subject, how)


@saving()
def hooks_on_rows(subject: Subject) -> None:
    """Hooks on the rows: they fire once and may change the gradient."""
    fired = []

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        a, b = z0.clone(), z1.clone()
        for name, z in (("z0", a), ("z1", b)):
            z.register_hook(lambda gradient, name=name: fired.append(name) or 2 * gradient)
        return call(a, b)

    def plain(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        return call(*(2 * z - z.detach() for z in (z0, z1)))  # the value once, the gradient twice

    check(subject, how, plain=plain)
    if len(fired) != len(set(fired)):
        raise MismatchError(f"hooks fired for {fired}")


@saving()
def backward_on_threads(subject: Subject) -> None:
    """The backward pass in another thread than the call."""

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        value = call(z0, z1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(value.backward).result()
        return value.detach()

    check(subject, how)


@saving()
def step_in_backward(subject: Subject) -> None:
    """An optimizer that steps inside the backward pass."""

    def trained(inside: bool) -> list[Tensor]:
        loss, layer = subject.built(), encoder(subject.rows[1])
        parameters = [*layer.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
        optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in parameters}

        def step(p: Tensor) -> None:
            optimizers[p].step()
            optimizers[p].zero_grad()

        handles = [p.register_post_accumulate_grad_hook(step) for p in parameters] if inside else []
        z0, z1 = (z.detach() for z in subject.views())
        subject.call(loss, layer(z0), layer(z1)).backward()
        if not inside:
            for p in parameters:
                step(p)
        for handle in handles:
            handle.remove()
        return [p.detach() for p in parameters]

    for found, expected in zip(trained(inside=True), trained(inside=False), strict=True):
        close("parameter after the step", found, expected)
