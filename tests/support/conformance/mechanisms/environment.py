"""Precision, processes, threads and settings around a training step."""

from __future__ import annotations

import functools
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from support.conformance.grid import mechanism
from support.conformance.subject import Call, MismatchError, Result, Subject, check, close, compare, measured, restored

precise = functools.partial(mechanism, "Mixed precision")
around = functools.partial(mechanism, "Threads, processes and settings")


def cast(call: Call, z0: Tensor, z1: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=dtype):
        return call(z0, z1)


@precise()
def autocast_half(subject: Subject) -> None:
    """fp16 autocast around the loss."""
    check(subject, partial(cast, dtype=torch.float16), tolerance=4e-3)


@precise()
def autocast_bfloat16(subject: Subject) -> None:
    """bf16 autocast around the loss."""
    check(subject, partial(cast, dtype=torch.bfloat16), tolerance=3e-2)


@precise()
def autocast_model(subject: Subject) -> None:
    """bf16 autocast around model and loss: half-precision rows from a layer."""
    weight = torch.eye(subject.rows[1])

    def how(call: Call, z0: Tensor, z1: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(z0 @ weight, z1 @ weight)

    check(subject, how, tolerance=5e-2)


@precise()
def gradient_scaler(subject: Subject) -> None:
    """`GradScaler`: a step with an infinite gradient is skipped, and the loss goes on."""
    layer = nn.Linear(subject.rows[1], subject.rows[1], bias=False)
    loss = subject.built()
    parameters = [*layer.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    before = [p.detach().clone() for p in parameters]
    z0, z1 = (z.detach() for z in subject.views())
    bad = [z.clone() for z in (z0, z1)]
    for z in bad:
        z[1] = torch.inf
    scaler.scale(subject.call(loss, layer(bad[0]), layer(bad[1]))).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    if scaler.get_scale() != 2.0**7 or any(not torch.equal(p, q) for p, q in zip(parameters, before, strict=True)):
        raise MismatchError("the step was not skipped")
    value = subject.call(loss, layer(z0), layer(z1))
    scaler.scale(value).backward()
    if not value.isfinite() or not all(p.grad.isfinite().all() for p in parameters):
        raise MismatchError("the loss is not finite after the skipped step")
    if not subject.has_bank():
        expected = subject.call(subject.built(), layer(z0), layer(z1))
        close("value after the skipped step", value.detach(), expected.detach())


@precise()
def not_a_number_passes(subject: Subject) -> None:
    """A NaN row makes the value NaN, and the next call is right."""
    loss = subject.built()
    z0, z1 = (z.detach() for z in subject.views())
    if not subject.call(loss, z0.index_fill(0, torch.tensor([2]), torch.nan), z1).isnan():
        raise MismatchError("the value hides a NaN")
    compare(measured(subject, loss, *subject.views()), measured(subject, subject.built(), *subject.views()))


# --- Threads and processes. --------------------------------------------------------------------------------------------------


@around()
def threads(subject: Subject) -> None:
    """Eight threads at once, each with a module and rows of its own."""

    def run(seed: int) -> Result:
        return measured(subject, subject.make() if not subject.has_bank() else losses[seed], *subject.views(seed=seed))

    losses = [subject.built() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(8)))
    for seed, result in enumerate(found):
        compare(result, measured(subject, subject.built(), *subject.views(seed=seed)))


@around(applies=lambda subject: not subject.has_bank() and not subject.learns())
def threads_share_a_module(subject: Subject) -> None:
    """Eight threads at once, all with one module."""
    loss = subject.built()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: measured(subject, loss, *subject.views(seed=seed)), range(8)))
    for seed, result in enumerate(found):
        compare(result, measured(subject, subject.built(), *subject.views(seed=seed)))


def in_child(loss: bytes, z0: Tensor, z1: Tensor, labelled: bool) -> tuple[Tensor, list[Tensor | None]]:
    """Runs in a spawned process: a module from its pickle, and one step of it."""
    rows = [z.requires_grad_() for z in (z0, z1)]
    module = pickle.loads(loss)
    given = (torch.cat(rows), torch.arange(len(z0)).repeat(2)) if labelled else rows
    value = module(*given)
    value.backward()
    return value.detach(), [z.grad for z in rows]


@functools.cache
def child() -> ProcessPoolExecutor:
    """One process for all cells."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def stop_child() -> None:
    """A process that ends waits for its children."""
    if child.cache_info().currsize:
        child().shutdown()
        child.cache_clear()


@around(applies=Subject.is_called)
def spawned(subject: Subject) -> None:
    """The module sent to a spawned process."""
    z0, z1 = (z.detach() for z in subject.views())
    labelled = "metric" in subject.package
    value, gradients = child().submit(in_child, pickle.dumps(subject.built()), z0, z1, labelled).result(timeout=120)
    expected = measured(subject, subject.built(), *subject.views())
    close("value", value, expected.value)
    for name, gradient in zip(("z0", "z1"), gradients, strict=True):
        if gradient is not None:
            close(f"gradient by {name}", gradient, expected.gradients[name])


# --- Settings of the process. ------------------------------------------------------------------------------------------------


@around()
def deterministic(subject: Subject) -> None:
    """`torch.use_deterministic_algorithms`: the same bits twice."""
    with restored(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True):
        first, second = (measured(subject, subject.built(), *subject.views()) for _ in range(2))
    compare(first, measured(subject, subject.built(), *subject.views()))
    if not torch.equal(first.value, second.value) or not torch.equal(first.gradients["z0"], second.gradients["z0"]):
        raise MismatchError("the bits differ")


@around()
def default_dtype(subject: Subject) -> None:
    """`torch.set_default_dtype(float64)`, with fp32 rows."""
    expected, loss = measured(subject, subject.built(), *subject.views()), subject.built()
    with restored(torch.get_default_dtype, torch.set_default_dtype, torch.float64):
        found = measured(subject, loss, *subject.views())
    compare(found, expected)


@around()
def low_matmul_precision(subject: Subject) -> None:
    """`torch.set_float32_matmul_precision("medium")`."""
    expected = measured(subject, subject.built(), *subject.views())
    with restored(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"):
        compare(measured(subject, subject.built(), *subject.views()), expected, tolerance=1e-4)


@around()
def default_device(subject: Subject) -> None:
    """A default device other than the rows': `torch.set_default_device("meta")`, and CPU rows."""
    loss = subject.built()
    z0, z1 = subject.views()
    expected = measured(subject, subject.built(), *subject.views())
    value: Any = None
    with torch.device("meta"):
        value = subject.call(loss, z0, z1)
    if value.device.type != "cpu":
        raise MismatchError(f"the value is on {value.device}")
    value.backward()
    close("value", value.detach(), expected.value)
    close("gradient by z0", z0.grad, expected.gradients["z0"])
