"""Copies of a module, where it is made, and what is built on the meta device."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from support.conformance.grid import mechanism
from support.conformance.subject import MismatchError, Subject, close, compare, measured

copied = functools.partial(mechanism, "Copies and states of the module", applies=Subject.has_module)


def goes_on(subject: Subject, copying: Callable[[nn.Module], nn.Module], start: Callable[[], nn.Module]) -> None:
    """A copy after one step goes on as the original does."""
    loss = start()
    measured(subject, loss, *subject.views())
    twin = copying(loss)
    found = measured(subject, twin, *subject.views(seed=1))
    compare(found, measured(subject, loss, *subject.views(seed=1)))


def saved(thing: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, **options)


def loaded(subject: Subject, state: dict[str, Tensor]) -> nn.Module:
    fresh: nn.Module = subject.built()
    fresh.load_state_dict(state)
    return fresh


@copied()
def deepcopy(subject: Subject) -> None:
    """`copy.deepcopy`."""
    goes_on(subject, copy.deepcopy, subject.built)


@copied()
def pickled(subject: Subject) -> None:
    """`pickle`."""
    goes_on(subject, lambda loss: pickle.loads(pickle.dumps(loss)), subject.built)


@copied()
def saved_whole(subject: Subject) -> None:
    """`torch.save` and `torch.load` of the module."""
    goes_on(subject, lambda loss: saved(loss, weights_only=False), subject.built)


@copied()
def state_dict(subject: Subject) -> None:
    """`state_dict` through a file, with `weights_only`."""
    goes_on(subject, lambda loss: loaded(subject, saved(loss.state_dict(), weights_only=True)), subject.built)


@copied()
def moving_average(subject: Subject) -> None:
    """`torch.optim.swa_utils.AveragedModel` of a model and its loss, updated and called."""

    def averaged(loss: nn.Module) -> nn.Module:
        parts = nn.ModuleDict({"model": nn.Linear(2, 2), "loss": loss})
        model = torch.optim.swa_utils.AveragedModel(parts)
        for _ in range(2):
            model.update_parameters(parts)
        return model.module["loss"]

    goes_on(subject, averaged, subject.built)


@copied()
def shared_memory(subject: Subject) -> None:
    """`share_memory`."""
    goes_on(subject, lambda loss: copy.deepcopy(loss).share_memory(), subject.built)


@copied()
def made_in_inference_mode(subject: Subject) -> None:
    """Built under `torch.inference_mode`, trained outside."""
    with torch.inference_mode():
        loss = subject.built()
    trained(subject, loss)


@copied()
def loaded_in_inference_mode(subject: Subject) -> None:
    """A `state_dict` loaded under `torch.inference_mode`, with and without `assign`."""
    for assign in (False, True):
        loss, state = subject.built(), subject.built().state_dict()
        with torch.inference_mode():
            loss.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=assign)
        trained(subject, loss)


@copied()
def copied_in_inference_mode(subject: Subject) -> None:
    """`copy.deepcopy` under `torch.inference_mode`, trained outside."""
    loss = subject.built()
    with torch.inference_mode():
        twin = copy.deepcopy(loss)
    trained(subject, twin)


def trained(subject: Subject, loss: nn.Module) -> None:
    plain = subject.built()
    for seed in (0, 1):
        expected = measured(subject, plain, *subject.views(seed=seed))
        compare(measured(subject, loss, *subject.views(seed=seed)), expected)


@copied()
def moved(subject: Subject) -> None:
    """The module in float64: `module.double()`."""
    loss = subject.built().double()
    found = measured(subject, loss, *subject.views(dtype=torch.float64))
    compare(found, measured(subject, subject.built(), *subject.views()), tolerance=2e-5)


@copied()
def in_half_precision(subject: Subject) -> None:
    """The module in bf16: `module.bfloat16()`."""
    found = measured(subject, subject.built().bfloat16(), *subject.views(dtype=torch.bfloat16))
    rows = [z.detach().float().requires_grad_() for z in subject.views(dtype=torch.bfloat16)]
    compare(found, measured(subject, subject.built(), *rows), tolerance=5e-2)


@copied(applies=Subject.learns)
def frozen_parameters(subject: Subject) -> None:
    """`requires_grad_(False)` on learned numbers."""
    found = measured(subject, subject.built().requires_grad_(False), *subject.views())
    expected = measured(subject, subject.built(), *subject.views())
    compare(found, expected._replace(gradients={name: expected.gradients[name] for name in ("z0", "z1")}))


class Bounded(nn.Module):
    """A bound that is not met."""

    def forward(self, number: Tensor) -> Tensor:
        return number.clamp(-50, 50)


@copied(applies=Subject.learns)
def parametrization(subject: Subject) -> None:
    """`torch.nn.utils.parametrize` on learned numbers, as a bound."""
    loss = subject.built()
    for name, _ in list(loss.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        torch.nn.utils.parametrize.register_parametrization(loss.get_submodule(owner), attribute, Bounded())
    found = measured(subject, loss, *subject.views())
    expected = measured(subject, subject.built(), *subject.views())
    for (_, x), (_, y) in zip(sorted(found.gradients.items()), sorted(expected.gradients.items()), strict=True):
        if x.shape == y.shape:
            continue
        raise MismatchError("a learned number has another shape")
    close("value", found.value, expected.value)
    for name in ("z0", "z1"):
        close(f"gradient by {name}", found.gradients[name], expected.gradients[name])


@copied()
def evaluation_mode(subject: Subject) -> None:
    """`module.eval()`, printed, and `module.train()`."""
    loss, plain = subject.built(), subject.built()
    loss.eval()
    text = repr(loss)
    if type(loss).__name__ not in text:
        raise MismatchError(f"print shows {text}")
    compare(measured(subject, loss, *subject.views()), measured(subject, plain, *subject.views()))
    compare(measured(subject, loss.train(), *subject.views()), measured(subject, plain, *subject.views()))


def numbers(loss: Any) -> list[tuple[nn.Module, str, float]]:
    """Every number of the module and of its parts that a user may set: owner, name and value."""
    found = []
    for module in loss.modules() if isinstance(loss, nn.Module) else ():
        names = [
            *vars(module),
            *(name for name in dir(type(module)) if isinstance(getattr(type(module), name), property)),
        ]
        for name in dict.fromkeys(names):
            value = getattr(module, name)
            if not name.startswith("_") and isinstance(value, float) and name != "delta":
                found.append((module, name, value))
    return found


@copied(applies=lambda subject: subject.is_ours and bool(numbers(subject.example)))
def parameter_for_a_number(subject: Subject) -> None:
    """An `nn.Parameter` assigned to a number: a TypeError that names it, or it is learned."""
    for index, (owner, name, value) in enumerate(numbers(subject.built())):
        loss = subject.built()
        parameter = nn.Parameter(torch.tensor(value))
        try:
            setattr(numbers(loss)[index][0], name, parameter)
        except TypeError as error:
            if name not in str(error):
                raise
            continue
        where = f"{type(owner).__name__}.{name}"
        if name in ("temperature", "weight", "scale"):
            raise MismatchError(f"{where} takes a parameter")
        subject.call(loss, *subject.views()).backward()
        if parameter.grad is None:
            raise MismatchError(f"{where} takes a parameter and gives it no gradient")


@copied(applies=lambda subject: bool(numbers(subject.example)))
def number_from_a_tensor(subject: Subject) -> None:
    """A NumPy number assigned to a number."""
    import numpy as np

    loss = subject.built()
    for module, name, value in numbers(loss):
        setattr(module, name, np.float64(value))
    compare(measured(subject, loss, *subject.views()), measured(subject, subject.built(), *subject.views()))


# --- The meta device. --------------------------------------------------------------------------------------------------------

on_meta = functools.partial(mechanism, "Meta device and fake tensors")


@on_meta(applies=Subject.has_module)
def built_on_meta(subject: Subject) -> None:
    """Built on the meta device, printed, `to_empty`, `reset_parameters`: as a new one."""
    with torch.device("meta"):
        loss = subject.make()
    repr(loss)
    loss.to_empty(device="cpu")
    for tensor in [*loss.parameters(), *loss.buffers()]:
        tensor.detach().fill_(77)  # whatever the memory held
    for module in loss.modules():
        if any(True for _ in [*module.parameters(recurse=False), *module.buffers(recurse=False)]):
            if not hasattr(module, "reset_parameters"):
                raise MismatchError(f"{type(module).__name__} has no reset_parameters")
            module.reset_parameters()
    repr(loss)
    if not subject.has_bank():
        compare(measured(subject, loss, *subject.views()), measured(subject, subject.built(), *subject.views()))
        return
    # The bank is empty, where a new one may be random: after as many keys as it has slots both hold these.
    plain = subject.built()
    for module in (loss, plain):
        for seed in range(2):
            measured(subject, module, *subject.views(seed=seed))
    for name, buffer in plain.named_buffers():
        if buffer.ndim == 2:
            close("buffer's keys", loss.get_buffer(name).norm(dim=1), buffer.norm(dim=1))


@on_meta(applies=Subject.has_module)
def assigned_to_meta(subject: Subject) -> None:
    """Built on the meta device, then `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        loss = subject.make()
    loss.load_state_dict(subject.built().state_dict(), assign=True)
    compare(measured(subject, loss, *subject.views()), measured(subject, subject.built(), *subject.views()))


@on_meta()
def meta_rows(subject: Subject) -> None:
    """Rows on the meta device: a scalar there, and gradients of the rows' shape."""
    loss = subject.built()
    if isinstance(loss, nn.Module):
        loss = loss.to("meta")
    z0, z1 = (z.detach().to("meta").requires_grad_() for z in subject.views())
    shapes(subject.call(loss, z0, z1), z0, z1, "meta")


@on_meta()
def fake_tensors(subject: Subject) -> None:
    """Fake tensors, which have shapes and no data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        loss = subject.make()
        z0, z1 = (torch.empty(subject.rows).requires_grad_() for _ in range(2))
        shapes(subject.call(loss, z0, z1), z0, z1, "cpu")


def shapes(value: Tensor, z0: Tensor, z1: Tensor, device: str) -> None:
    if value.shape != () or value.dtype != torch.float32 or value.device.type != device:
        raise MismatchError(f"the value is {value.dtype} of shape {tuple(value.shape)} on {value.device}")
    value.backward()
    for z in (z0, z1):
        if z.grad is not None and (z.grad.shape, z.grad.dtype, z.grad.device) != (z.shape, z.dtype, z.device):
            raise MismatchError(f"a gradient is {z.grad.dtype} of shape {tuple(z.grad.shape)} on {z.grad.device}")
    if z0.grad is None:
        raise MismatchError("no gradient by z0")
