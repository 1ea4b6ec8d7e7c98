"""torch.compile: how often it compiles, and that the compiled loss is the loss."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.conformance.grid import mechanism
from support.conformance.mechanisms.copies import numbers
from support.conformance.mechanisms.derivatives import Recorded
from support.conformance.subject import MismatchError, NotRun, Subject, compare, measured

compiled = functools.partial(mechanism, "torch.compile", slow=True)
# Minutes each: for one loss of each kind.
compiled_by_few = functools.partial(
    mechanism, "torch.compile", slowest=True, applies=lambda subject: subject.representative or not subject.is_ours
)
MOST_COMPILATIONS = 3


class Backend:
    """aot_eager, which traces forward and backward pass and generates no code; counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


Batch = Callable[[], list[Tensor]]


def steps(
    subject: Subject,
    batches: list[Batch],
    *,
    change: Callable[[nn.Module], Callable[..., Tensor]] = lambda loss: loss,
    before: Callable[[int, Any], None] = lambda number, loss: None,
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    backend: Any = "aot_eager",
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    """Training steps by a compiled loss, each against the same step of a plain one."""
    torch._dynamo.reset()
    loss, plain = Recorded(subject), subject.built()
    called = torch.compile(change(loss), backend=backend, **options)

    def how(call: Any, z0: Tensor, z1: Tensor) -> Tensor:
        with within():
            return called(z0, z1)

    for number, batch in enumerate(batches):
        for each in (loss.loss, plain):
            before(number, each)
        found = measured(subject, loss.loss, *batch(), how=how)
        compare(found, measured(subject, plain, *batch()), tolerance)


def counted(subject: Subject, batches: list[Batch], most: int, **options: Any) -> None:
    """The same, with at most so many compilations."""
    backend = Backend()
    steps(subject, batches, backend=backend, fullgraph=True, **options)
    if backend.graphs > most:
        raise MismatchError(f"{backend.graphs} compilations over {len(batches)} steps")


def same(subject: Subject, times: int) -> list[Batch]:
    """Batches of one size."""
    return [functools.partial(subject.views, seed=seed) for seed in range(times)]


@compiled()
def compile_static(subject: Subject) -> None:
    """`fullgraph=True`: one graph, compiled once."""
    counted(subject, same(subject, 3), 1, dynamic=False)


@compiled()
def compile_dynamic(subject: Subject) -> None:
    """`fullgraph=True, dynamic=True`, with five batch sizes."""
    sizes = [functools.partial(subject.views, number) for number in (7, 11, 6, 9, 16)]
    counted(subject, sizes, MOST_COMPILATIONS, dynamic=True)


@compiled()
def compile_mark_dynamic(subject: Subject) -> None:
    """`mark_dynamic` on the batch, with five batch sizes."""

    def marked(number: int) -> list[Tensor]:
        views = subject.views(number)
        for z in views:
            torch._dynamo.mark_dynamic(z, 0)
        return views

    sizes = [functools.partial(marked, number) for number in (7, 11, 6, 9, 16)]
    counted(subject, sizes, MOST_COMPILATIONS)


@compiled(applies=lambda subject: bool(numbers(subject.example)))
def compile_schedule(subject: Subject) -> None:
    """A schedule of each number (temperature, weight, scale, hard_fraction): six values, at most three compilations."""
    for index, (_, name, start) in enumerate(numbers(subject.example)):

        def change(number: int, loss: Any, index: int = index, start: float = start) -> None:
            owner, name, _ = numbers(loss)[index]
            setattr(owner, name, start * (1 - 0.05 * number))

        try:
            counted(subject, same(subject, 6), MOST_COMPILATIONS, before=change)
        except MismatchError as error:
            raise MismatchError(f"{name}: {error}", error.kind) from error


@compiled()
def compile_frozen_view(subject: Subject) -> None:
    """`fullgraph=True` with keys that carry no gradient."""

    def half_frozen() -> list[Tensor]:
        z0, z1 = subject.views()
        return [z0, z1.detach()]

    steps(subject, [half_frozen] * 2, fullgraph=True)


@compiled(slow=False, slowest=True)
def compile_function(subject: Subject) -> None:
    """A compiled function that calls the loss and a layer."""
    layer = nn.Linear(subject.rows[1], subject.rows[1], bias=False)
    nn.init.eye_(layer.weight)

    def change(loss: nn.Module) -> Callable[..., Tensor]:
        return lambda z0, z1: loss(layer(z0), layer(z1))

    steps(subject, same(subject, 1), change=change, fullgraph=True)


@compiled(slow=False, slowest=True)
def compile_evaluation(subject: Subject) -> None:
    """A compiled call of rows without gradient, and a training step after it."""

    def detached() -> list[Tensor]:
        return [z.detach() for z in subject.views()]

    steps(subject, [detached, subject.views], fullgraph=True)


@compiled_by_few()
def compile_checkpoint(subject: Subject) -> None:
    """A compiled checkpoint around the loss."""

    def change(loss: nn.Module) -> Callable[..., Tensor]:
        return lambda z0, z1: checkpoint(loss, z0, z1, use_reentrant=False)

    steps(subject, same(subject, 1), change=change, fullgraph=True)


@compiled_by_few()
def compile_autocast(subject: Subject) -> None:
    """A compiled loss in bf16 autocast."""
    within = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    steps(subject, same(subject, 1), within=within, tolerance=3e-2, fullgraph=True)


@compiled_by_few()
def compile_inductor(subject: Subject) -> None:
    """`torch.compile` with inductor, which generates code."""
    steps(subject, same(subject, 2), backend="inductor", fullgraph=True)


@compiled_by_few()
def compile_reduce_overhead(subject: Subject) -> None:
    """`mode="reduce-overhead"`, which records CUDA graphs."""
    if not torch.cuda.is_available():
        raise NotRun("no CUDA device")

    def on_card(seed: int) -> list[Tensor]:
        return [z.detach().cuda().requires_grad_() for z in subject.views(seed=seed)]

    torch._dynamo.reset()
    loss, plain = Recorded(subject).cuda(), Recorded(subject).cuda()
    called = torch.compile(loss, mode="reduce-overhead")
    for seed in range(4):  # the first runs record
        found = measured(subject, loss.loss, *on_card(seed), how=lambda call, z0, z1: called(z0, z1).clone())
        compare(found, measured(subject, plain.loss, *on_card(seed)))
