"""A loss as a subject of the grid, one call of it, and the comparison with the plain call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Call = Callable[[Tensor, Tensor], Tensor]
# Takes the loss as a function of two views, and the views.
How = Callable[[Call, Tensor, Tensor], Tensor]


def zero(similarity: Tensor) -> Tensor:
    return 0 * similarity


@dataclass(frozen=True)
class Subject:
    """One loss. ``alone`` is its value for one row a view, given their similarity; None where a bank has negatives for it."""

    name: str
    make: Callable[[], Any]
    call: Callable[[Any, Tensor, Tensor], Tensor] = lambda loss, z0, z1: loss(z0, z1)
    functions: tuple[str, ...] = ()
    rows: tuple[int, int] = (7, 5)
    alone: Callable[[Tensor], Tensor] | None = zero
    package: str = "varloss"
    # Weights in it depend on the rows and carry no gradient, so that differences of the gradient are no derivative of it.
    stops: bool = False
    # Stands for others where a mechanism is slow: the default run leaves the others out.
    representative: bool = False

    @property
    def is_ours(self) -> bool:
        return self.package.startswith("varloss")

    def built(self) -> Any:
        """A new module, or a function; a random bank is the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return self.make()

    @functools.cached_property
    def example(self) -> Any:
        """One of them to look at."""
        return self.built()

    def has_module(self) -> bool:
        return isinstance(self.example, nn.Module)

    def is_called(self) -> bool:
        """Whether calling the subject is calling its module, so that hooks on it fire."""
        return self.has_module() and type(self.example).forward is not nn.Module.forward

    def parts(self) -> list[str]:
        """Names of the terms that are modules of their own, and "" for the whole."""
        return ["", *(n for n in ("base", "regularizer") if isinstance(getattr(self.example, n, None), nn.Module))]

    def has_bank(self) -> bool:
        return self.has_module() and any(True for _ in self.example.buffers())

    def learns(self) -> bool:
        return self.has_module() and any(True for _ in self.example.parameters())

    def views(self, number: int | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Two new leaf tensors of related rows."""
        n, dim = self.rows
        generator = torch.Generator().manual_seed(seed)
        z0, noise = torch.randn(2, n if number is None else number, dim, dtype=torch.float64, generator=generator)
        return [z.to(dtype).requires_grad_() for z in (z0, z0 + noise)]


class Result(NamedTuple):
    value: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


class MismatchError(AssertionError):
    """A mechanism changed what a loss gives, and nothing said so. ``kind`` is the short form."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind or message


class NotRun(Exception):  # noqa: N818  (a state, not an error)
    """This machine or this torch cannot run the cell."""


def plainly(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
    return call(z0, z1)


def measured(subject: Subject, loss: Any, z0: Tensor, z1: Tensor, how: How = plainly) -> Result:
    """One step: the value, and the gradients by rows and parameters; none where nothing asks for them."""
    is_module = isinstance(loss, nn.Module)
    learned = dict(loss.named_parameters()) if is_module else {}
    leaves = {"z0": z0, "z1": z1, **learned}
    for leaf in learned.values():
        leaf.grad = None
    value = how(partial(subject.call, loss), z0, z1)
    if value.requires_grad:
        value.backward()
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
        for name, leaf in leaves.items()
        if leaf.requires_grad
    }
    buffers = {name: buffer.clone() for name, buffer in loss.named_buffers()} if is_module else {}
    return Result(value.detach(), gradients, buffers)


def compare(found: Result, expected: Result, tolerance: float = 1e-5) -> None:
    """Raises where the two differ, relative to the largest entry."""
    close("value", found.value, expected.value, tolerance)
    missing = expected.gradients.keys() ^ found.gradients.keys()
    if missing:
        raise MismatchError(f"gradient by {', '.join(sorted(missing))} on one side only", "wrong gradient")
    for name, gradient in expected.gradients.items():
        close(f"gradient by {name}", found.gradients[name], gradient, tolerance)
    for name, buffer in expected.buffers.items():
        close(f"buffer {name}", found.buffers[name], buffer, tolerance)


def close(name: str, found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Raises where the two differ; the first word of ``name`` is what it is: value, gradient, buffer."""
    kind = f"wrong {name.split(maxsplit=1)[0]}"
    if found.shape != expected.shape:
        raise MismatchError(f"{name} has shape {tuple(found.shape)}, not {tuple(expected.shape)}", kind)
    if not torch.isfinite(found).all():
        raise MismatchError(f"{name} is not finite", kind)
    gap = (found.double() - expected.double()).abs()
    scale = expected.abs().max().item() if expected.numel() else 0.0
    if (gap > tolerance * max(scale, 0.1)).any():
        if found.numel() == 1:
            raise MismatchError(f"{name} is {found.item():.5g}, not {expected.item():.5g}", kind)
        raise MismatchError(f"{name} differs by {gap.max().item() / max(scale, 1e-30):.1g} of its largest entry", kind)


def check(
    subject: Subject,
    how: How = plainly,
    *,
    plain: How = plainly,
    prepare: Callable[[Any], Any] = lambda loss: loss,
    rows: Callable[[], list[Tensor]] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """The loss called ``how`` gives what a new one, called plainly, gives: value, gradients, buffers."""
    rows = subject.views if rows is None else rows
    expected = measured(subject, subject.built(), *rows(), how=plain)
    found = measured(subject, prepare(subject.built()), *rows(), how=how)
    compare(found, expected, tolerance)


@contextlib.contextmanager
def restored(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Any:
    """A setting of the process for the time of a mechanism."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)
