"""Hooks, subclasses and replaced parts: whatever a user puts in place of a part is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from support.conformance.grid import mechanism
from support.conformance.subject import Call, MismatchError, Result, Subject, compare, measured

hooked = functools.partial(mechanism, "Hooks, subclasses and patched forwards", applies=Subject.is_called)


def part_of(loss: nn.Module, name: str) -> nn.Module:
    return loss.get_submodule(name)


def with_part_replaced(subject: Subject, name: str, changed: Callable[[Call, Tensor, Tensor], Tensor]) -> Result:
    """What the loss gives where a part, a term of the sum, is another function of the views: from plain calls alone."""
    loss, twin = subject.built(), subject.built()
    if name == "":
        return measured(subject, loss, *subject.views(), how=changed)
    part_call = part_of(twin, name)

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        return call(z0, z1) - part_call(z0, z1) + changed(part_call, z0, z1)

    # The twin's parameters are the loss's, so that their gradients meet.
    for key, parameter in loss.named_parameters():
        owner, _, attribute = key.rpartition(".")
        setattr(twin.get_submodule(owner), attribute, parameter)
    return measured(subject, loss, *subject.views(), how=how)


def against(subject: Subject, name: str, loss: nn.Module, changed: Callable[[Call, Tensor, Tensor], Tensor]) -> None:
    found = measured(subject, loss, *subject.views())
    try:
        compare(found, with_part_replaced(subject, name, changed))
    except MismatchError as error:
        raise MismatchError(f"{name or 'the module'}: {error}", error.kind) from error


def doubled(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
    return 2 * call(z0, z1)


def turned(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
    """The part with other positives."""
    return call(z0, z1.flip(0))


@contextmanager
def fires(what: str, times: int = 1) -> Iterator[list[str]]:
    fired: list[str] = []
    yield fired
    if len(fired) != times:
        raise MismatchError(f"{what} fired {len(fired)} times, not {times}")


# --- Hooks. ------------------------------------------------------------------------------------------------------------------


@hooked()
def forward_hook(subject: Subject) -> None:
    """Forward hooks on the module and each part, which change its result."""
    for name in subject.parts():
        loss = subject.built()
        with fires(f"the hook of {name or 'the module'}") as fired:

            def hook(module: nn.Module, given: Any, result: Tensor, fired: list[str] = fired) -> Tensor:
                fired.append("")
                return 2 * result

            part_of(loss, name).register_forward_hook(hook)
            against(subject, name, loss, doubled)


@hooked(applies=lambda subject: subject.is_called() and subject.package != "pytorch-metric-learning")
def forward_pre_hook(subject: Subject) -> None:
    """Forward pre-hooks on the module and each part, which change what it gets."""
    for name in subject.parts():
        loss = subject.built()
        labelled = name == "" and "metric_learning" in subject.package
        with fires(f"the hook of {name or 'the module'}") as fired:

            def hook(
                module: nn.Module, given: Any, fired: list[str] = fired, labelled: bool = labelled
            ) -> tuple[Tensor, Tensor]:
                fired.append("")
                if not labelled:
                    return given[0], given[1].flip(0)
                z0, z1 = given[0].chunk(2)
                return torch.cat([z0, z1.flip(0)]), given[1]

            part_of(loss, name).register_forward_pre_hook(hook)
            against(subject, name, loss, turned)


@hooked()
def full_backward_pre_hook(subject: Subject) -> None:
    """Full backward pre-hooks on the module and each part, which change the gradient that comes in."""
    for name in subject.parts():
        loss = subject.built()
        with fires(f"the hook of {name or 'the module'}") as fired:

            def hook(module: nn.Module, upstream: Any, fired: list[str] = fired) -> tuple[Tensor]:
                fired.append("")
                return (2 * upstream[0],)

            part_of(loss, name).register_full_backward_pre_hook(hook)
            against(subject, name, loss, lambda call, z0, z1: (v := doubled(call, z0, z1)) - v.detach() / 2)


@hooked()
def full_backward_hook(subject: Subject) -> None:
    """Full backward hooks on the module and each part, which change the gradient that goes out."""
    for name in subject.parts():
        loss = subject.built()
        with fires(f"the hook of {name or 'the module'}") as fired:

            def hook(module: nn.Module, outgoing: Any, upstream: Any, fired: list[str] = fired) -> tuple[Any, ...]:
                fired.append("")
                return tuple(None if g is None else 2 * g for g in outgoing)

            part_of(loss, name).register_full_backward_hook(hook)

            def changed(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
                """The value and the gradients by parameters once, those by rows twice."""
                twice = (2 * z - z.detach() for z in (z0, z1))
                return call(*twice)

            against(subject, name, loss, changed)


@hooked()
def global_hooks(subject: Subject) -> None:
    """Hooks on all modules of the process see the module and each part."""
    loss = subject.built()
    expected = measured(subject, subject.built(), *subject.views())
    seen: dict[str, set[nn.Module]] = {}
    registrations = (
        of_all_modules.register_module_forward_pre_hook,
        of_all_modules.register_module_forward_hook,
        of_all_modules.register_module_full_backward_pre_hook,
        of_all_modules.register_module_full_backward_hook,
    )
    handles = []
    for register in registrations:
        met = seen.setdefault(register.__name__, set())
        handles.append(register(lambda module, *rest, met=met: met.add(module)))  # set.add returns None
    try:
        found = measured(subject, loss, *subject.views())
    finally:
        for handle in handles:
            handle.remove()
    compare(found, expected)
    for name in subject.parts():
        for kind, met in seen.items():
            if part_of(loss, name) not in met:
                raise MismatchError(f"{kind.removeprefix('register_module_')} does not see {name or 'the module'}")


# --- Other code in place of a part. ------------------------------------------------------------------------------------------


@hooked()
def subclass(subject: Subject) -> None:
    """A subclass with a forward of its own, of the module and of each part."""
    for name in subject.parts():
        loss = subject.built()
        part = part_of(loss, name)
        kind = type(part)

        class Doubled(kind):  # type: ignore[misc, valid-type]
            def forward(self, *given: Any, **named: Any) -> Tensor:
                return 2 * super().forward(*given, **named)

        part.__class__ = Doubled
        against(subject, name, loss, doubled)


@hooked()
def patched_forward(subject: Subject) -> None:
    """`forward` replaced on the instance, as accelerate does, of the module and of each part."""
    for name in subject.parts():
        loss = subject.built()
        part = part_of(loss, name)
        before = part.forward
        part.forward = lambda *given, before=before, **named: 2 * before(*given, **named)
        against(subject, name, loss, doubled)


@hooked()
def wrapped_forward(subject: Subject) -> None:
    """`forward` replaced on the class while a call runs, as tracers and mocks do."""
    for name in subject.parts():
        loss = subject.built()
        kind = type(part_of(loss, name))
        before, own = kind.forward, "forward" in vars(kind)

        def forward(self: nn.Module, *given: Any, before: Any = before, **named: Any) -> Tensor:
            return 2 * before(self, *given, **named)

        kind.forward = forward
        try:
            found = measured(subject, loss, *subject.views())
        finally:
            if own:
                kind.forward = before
            else:
                del kind.forward
        try:
            compare(found, with_part_replaced(subject, name, doubled))
        except MismatchError as error:
            raise MismatchError(f"{name or 'the module'}: {error}", error.kind) from error


class Spread(nn.Module):
    """A term that is none of ours."""

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return 0.1 * (z0 - z1).square().mean()


@hooked(applies=lambda subject: subject.is_called() and len(subject.parts()) > 1)
def replaced_part(subject: Subject) -> None:
    """A part replaced by a module of the user's."""
    for name in subject.parts()[1:]:
        loss = subject.built()
        setattr(loss, name, Spread())
        found = measured(subject, loss, *subject.views())
        expected = with_part_replaced(subject, name, lambda call, z0, z1: Spread()(z0, z1) + 0 * call(z0, z1))
        dropped = {key: expected.gradients[key] for key in found.gradients}
        try:
            compare(found, expected._replace(gradients=dropped))
        except MismatchError as error:
            raise MismatchError(f"{name}: {error}", error.kind) from error
