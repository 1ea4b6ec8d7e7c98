"""Derivatives beyond one backward pass, transforms of the function, and records of it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from support.conformance.grid import mechanism
from support.conformance.subject import Call, Subject, close, measured

derived = functools.partial(mechanism, "Derivatives and transforms", may_refuse=True)
F64 = torch.float64


def gradient(subject: Subject, z0: Tensor, z1: Tensor) -> list[Tensor]:
    """By the rows, of a new loss."""
    views = [z.detach().clone().requires_grad_() for z in (z0, z1)]
    measured(subject, subject.built(), *views)
    return [torch.zeros_like(z) if z.grad is None else z.grad for z in views]


def tangents(subject: Subject) -> list[Tensor]:
    return [z.detach() for z in subject.views(seed=5, dtype=F64)]


def along(gradients: list[Tensor], directions: list[Tensor]) -> Tensor:
    return torch.stack([(g * t).sum() for g, t in zip(gradients, directions, strict=True)]).sum()


def new(subject: Subject, dtype: torch.dtype = F64) -> tuple[Call, list[Tensor]]:
    """A new loss as a function, and rows without gradient."""
    return partial(subject.call, subject.built()), [z.detach() for z in subject.views(dtype=dtype)]


@functools.cache
def second_derivative(subject: Subject) -> list[Tensor]:
    """The derivative of the gradient along the tangents, by differences; keys without gradient stand still."""
    step, rows = 1e-5, [z.detach() for z in subject.views(dtype=F64)]
    moves = [float(g.any()) for g in gradient(subject, *rows)]
    ends = [
        gradient(subject, *(z + sign * step * m * t for z, t, m in zip(rows, tangents(subject), moves, strict=True)))
        for sign in (1, -1)
    ]
    return [(up - down) / (2 * step) for up, down in zip(*ends, strict=True)]


@mechanism("Derivatives and transforms", applies=lambda subject: not subject.stops)
def double_backward(subject: Subject) -> None:
    """Second derivatives by `create_graph`."""
    call, rows = new(subject)
    views = [z.requires_grad_() for z in rows]
    first = torch.autograd.grad(call(*views), views, create_graph=True, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(along(list(first), tangents(subject)), views, allow_unused=True, materialize_grads=True)
    for name, x, expected in zip(("z0", "z1"), found, second_derivative(subject), strict=True):
        close(f"second derivative by {name}", x, expected, tolerance=1e-4)


@mechanism("Derivatives and transforms")
def double_backward_by_parameters(subject: Subject) -> None:
    """A gradient penalty in fp32, as a training step takes it."""
    rows = {}
    for dtype in (torch.float32, F64):
        loss = subject.built()
        views = subject.views(dtype=dtype)
        first = torch.autograd.grad(
            subject.call(loss, *views), views, create_graph=True, allow_unused=True, materialize_grads=True
        )
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        learned = [*loss.parameters()] if isinstance(loss, nn.Module) else []
        rows[dtype] = torch.autograd.grad(penalty, [*views, *learned], allow_unused=True, materialize_grads=True)
    for x, expected in zip(rows[torch.float32], rows[F64], strict=True):
        close("gradient of the penalty", x, expected, tolerance=2e-3)


@derived()
def batched_gradients(subject: Subject) -> None:
    """`torch.autograd.grad` with `is_grads_batched`."""
    z0, z1 = subject.views()
    value = subject.call(subject.built(), z0, z1)
    found = torch.autograd.grad(value, z0, torch.tensor([1.0, -2.0]), is_grads_batched=True)[0]
    expected = measured(subject, subject.built(), *subject.views()).gradients["z0"]
    close("gradient", found, torch.stack([expected, -2 * expected]))


@derived(applies=lambda subject: not subject.has_bank() and not subject.stops and subject.rows[0] < 50)
def gradcheck(subject: Subject) -> None:
    """`torch.autograd.gradcheck` and `gradgradcheck`, forward mode and batched gradients included."""
    call, rows = new(subject)
    views = [z.requires_grad_() for z in rows]
    torch.autograd.gradcheck(call, views, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    torch.autograd.gradgradcheck(call, views, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@derived()
def dual_numbers(subject: Subject) -> None:
    """Forward-mode AD: dual numbers."""
    for dtype in (torch.float32, F64):
        call, rows = new(subject, dtype)
        directions = [t.to(dtype) for t in tangents(subject)]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(z, t) for z, t in zip(rows, directions, strict=True)]
            value, tangent = forward_ad.unpack_dual(call(*duals))
        close("value", value, measured(subject, subject.built(), *rows).value)
        expected = along(gradient(subject, *rows), directions)
        close("tangent", torch.zeros_like(value) if tangent is None else tangent, expected, tolerance=1e-4)


@derived()
def dual_numbers_of_one_view(subject: Subject) -> None:
    """Forward-mode AD: a tangent on one view, rows with `requires_grad`."""
    call, (z0, z1) = new(subject)
    direction = tangents(subject)[0]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z0.requires_grad_(), direction)
        tangent = forward_ad.unpack_dual(call(dual, z1)).tangent
    expected = (gradient(subject, z0, z1)[0] * direction).sum()
    close("tangent", torch.zeros(()) if tangent is None else tangent.detach(), expected, tolerance=1e-4)


@derived()
def func_jvp(subject: Subject) -> None:
    """`torch.func.jvp`."""
    call, rows = new(subject)
    value, tangent = torch.func.jvp(call, tuple(rows), tuple(tangents(subject)))
    close("value", value, measured(subject, subject.built(), *rows).value)
    close("tangent", tangent, along(gradient(subject, *rows), tangents(subject)), tolerance=1e-4)


def same_gradients(subject: Subject, transform: Callable[[Call], Callable[..., Any]]) -> None:
    for dtype in (torch.float32, F64):
        call, rows = new(subject, dtype)
        found = transform(call)(*rows)
        for name, x, expected in zip(("z0", "z1"), found, gradient(subject, *rows), strict=True):
            close(f"gradient by {name}", x, expected)


@derived()
def func_grad(subject: Subject) -> None:
    """`torch.func.grad`."""
    same_gradients(subject, lambda call: torch.func.grad(call, argnums=(0, 1)))


@derived()
def func_jacrev(subject: Subject) -> None:
    """`torch.func.jacrev`."""
    same_gradients(subject, lambda call: torch.func.jacrev(call, argnums=(0, 1)))


@derived(applies=lambda subject: subject.rows[0] < 50)  # as many tangents as there are entries
def func_jacfwd(subject: Subject) -> None:
    """`torch.func.jacfwd`."""
    same_gradients(subject, lambda call: torch.func.jacfwd(call, argnums=(0, 1)))


@derived(applies=lambda subject: not subject.stops)
def func_hessian(subject: Subject) -> None:
    """`torch.func`: forward over reverse, as `hessian` does."""
    call, rows = new(subject)
    direction = torch.ones_like(rows[0])
    product = torch.func.jvp(lambda z: torch.func.grad(call)(z, rows[1]), (rows[0],), (direction,))[1]
    step = 1e-5
    up, down = (gradient(subject, rows[0] + sign * step * direction, rows[1])[0] for sign in (1, -1))
    close("second derivative", product, (up - down) / (2 * step), tolerance=1e-4)


def batches(subject: Subject, dtype: torch.dtype) -> list[Tensor]:
    return [
        torch.stack(views)
        for views in zip(*([z.detach() for z in subject.views(seed=s, dtype=dtype)] for s in range(3)), strict=True)
    ]


@derived()
def func_vmap(subject: Subject) -> None:
    """`torch.func.vmap` over batches of two views."""
    for dtype in (torch.float32, F64):
        call, _ = new(subject)
        z0, z1 = batches(subject, dtype)
        found = torch.func.vmap(call)(z0, z1)
        expected = torch.stack([measured(subject, subject.built(), a, b).value for a, b in zip(z0, z1, strict=True)])
        close("values", found, expected)


@derived()
def func_vmap_of_grad(subject: Subject) -> None:
    """Gradients of several batches at once: `vmap` of `grad`."""
    call, _ = new(subject)
    z0, z1 = batches(subject, F64)
    found = torch.func.vmap(torch.func.grad(call))(z0, z1)
    expected = torch.stack([gradient(subject, a, b)[0] for a, b in zip(z0, z1, strict=True)])
    close("gradients", found, expected)


@derived(applies=Subject.has_module)
def functional_call(subject: Subject) -> None:
    """`torch.func.functional_call` with other parameters, and its gradient."""
    loss, other = subject.built(), subject.built()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
    expected = measured(subject, other, *subject.views())
    start = subject.built()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(0.7)
    named = {name: p.detach() for name, p in start.named_parameters()}
    buffers = {name: b.clone() for name, b in start.named_buffers()}

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
            return subject.call(self.loss, z0, z1)

    def value(parameters: dict[str, Tensor], z0: Tensor, z1: Tensor) -> Tensor:
        given = {f"loss.{name}": x for name, x in {**parameters, **buffers}.items()}
        return torch.func.functional_call(Called(), given, (z0, z1))

    z0, z1 = subject.views()
    found = value(named, z0, z1)
    close("value", found.detach(), expected.value)
    found.backward()
    close("gradient by z0", z0.grad, expected.gradients["z0"])
    if named:
        rows = [z.detach() for z in subject.views()]
        gradients = torch.func.grad(value)(named, *rows)
        for name in named:
            close(f"gradient by {name}", gradients[name], expected.gradients[name])


# --- Records. ----------------------------------------------------------------------------------------------------------------


class Recorded(nn.Module):
    """A loss as a module of two views."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.loss, self.subject = subject.built(), subject

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return self.subject.call(self.loss, z0, z1)


@derived()
def jit_trace(subject: Subject) -> None:
    """`torch.jit.trace`, run on other rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of sizes that become constants, which users see
        rows = tuple(z.detach() for z in subject.views(seed=1))
        traced = torch.jit.trace(Recorded(subject), rows, check_trace=False)
    as_recorded(subject, traced, subject.rows[0])


@derived(slow=True)
def exported(subject: Subject) -> None:
    """`torch.export` of rows with gradient, run on other rows."""
    program = torch.export.export(Recorded(subject), tuple(subject.views(seed=1)))
    as_recorded(subject, program.module(), subject.rows[0])


@derived(slow=True)
def exported_dynamic(subject: Subject) -> None:
    """`torch.export` for any number of rows, run on another."""
    rows = tuple(subject.views(seed=1))
    most, other = (8, 5) if subject.has_bank() else (1000, subject.rows[0] + 4)  # fewer rows than slots
    size = torch.export.Dim("rows", min=3, max=most)
    program = torch.export.export(Recorded(subject), rows, dynamic_shapes=({0: size}, {0: size}))
    as_recorded(subject, program.module(), other)


def as_recorded(subject: Subject, record: Callable[..., Tensor], number: int) -> None:
    z0, z1 = subject.views(number)
    value = record(z0, z1)
    expected = measured(subject, subject.built(), *subject.views(number))
    close("value", value.detach(), expected.value)
    value.backward()
    close("gradient by z0", z0.grad, expected.gradients["z0"])
