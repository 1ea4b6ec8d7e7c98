"""Kernel launches and host time of one forward and backward pass: what a training step at a small batch waits for.

On a CPU operators are counted instead, so that the step can be rehearsed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import varloss
from gpu.measure_ceilings import card, unfit
from gpu.progress import Progress, repair
from gpu.steps import Visit, run_cells
from varloss_bench.studies.speed import losses, measure
from varloss_bench.studies.speed.losses import NUM_SAMPLES, TEMPERATURE, WEIGHT, Loss
from varloss_bench.studies.speed.rows import append

STEP = "launches"
SIZES, DIM = (32, 128, 512), 128
DTYPES = (torch.float32, torch.bfloat16)
# Calls of the runtime and the driver that put work on the GPU, and those that wait for it.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync", "cudaMemcpy", "cudaMemset")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
# Operators that compute nothing.
_VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "t",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "expand",
    ),
    *("slice", "select", "narrow", "split", "split_with_sizes", "unbind", "diagonal", "as_strided", "alias", "detach"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("is_same_size", "lift_fresh", "promote_types"),
}


def _group(group: str, name: str) -> Callable[[], Loss]:
    return next(who.build for who in losses.GROUPS[group] if who.name == name)


def _learned() -> Loss:
    base = varloss.NTXentLoss(temperature=TEMPERATURE, learnable_temperature=True)
    return varloss.WithVRN(base, weight=WEIGHT, num_samples=NUM_SAMPLES)


def _static(formula: Loss) -> Callable[[], Loss]:
    """Compiled for one size, as in training; these compile for seconds, so they come last."""

    def build() -> Loss:
        made: Loss = torch.compile(formula, dynamic=False)
        return made

    return build


# Name -> package it needs, how to make it.
CASES: dict[str, tuple[str | None, Callable[[], Loss]]] = {
    "NTXentLoss": (None, _group("NT-Xent", "varloss")),
    "WithVRN(NTXentLoss)": (None, _group("NT-Xent + VRN", "varloss")),
    "learned temperature + VRN": (None, _learned),
    "lightly + mask VRN": ("lightly", _group("NT-Xent + VRN", "lightly + mask VRN")),
    "compiled formula + VRN": (None, _static(losses.plain_formula_with_vrn)),
    "compiled formula": (None, _static(losses.plain_formula)),
}


def work(visit: Visit) -> int:
    """Run the step."""
    if code := unfit(visit):
        return code
    path = visit.folder / "launches.csv"
    repair(path, Progress(visit.folder, STEP).settled())
    sizes = (8,) if visit.rehearse else SIZES
    cells = {}
    for name, (needs, build) in CASES.items():
        if needs is not None and find_spec(needs) is None:
            continue
        for n in sizes:
            for dtype in DTYPES:
                cell = f"{name}, N = {n}, {str(dtype).removeprefix('torch.')}"
                cells[cell] = partial(_cell, visit, cell, name, build, n, dtype)
    return run_cells(visit, STEP, cells)


def _cell(visit: Visit, cell: str, name: str, build: Callable[[], Loss], n: int, dtype: torch.dtype) -> str:  # noqa: PLR0917
    torch.manual_seed(0)
    dim = 16 if visit.rehearse else DIM
    loss = build()
    if isinstance(loss, torch.nn.Module):
        loss.to(visit.device)
    z0, z1 = measure.views(n, dim, visit.device, dtype)
    for _ in range(3):
        measure.step(loss, z0, z1)
    counted = _launches(loss, z0, z1) if visit.device == "cuda" else {"counts": "operators"}
    host, whole = _seconds(loss, z0, z1, calls=3 if visit.rehearse else 200)
    row = {
        "cell": cell,
        "device": card(visit),
        "loss": name,
        "n": n,
        "d": dim,
        "dtype": str(dtype).removeprefix("torch."),
        "counts": counted["counts"],
        "launches": counted.get("launches", ""),
        "copies": counted.get("copies", ""),
        "waits": counted.get("waits", ""),
        "kernel_us": counted.get("kernel_us", ""),
        # A compiled formula has no operators to be seen, and being watched would be compiled anew.
        "operators": "" if name.startswith("compiled") and visit.device == "cuda" else _operators(loss, z0, z1),
        "host_us": f"{host * 1e6:.4g}",
        "step_us": f"{whole * 1e6:.4g}",
        "kernels": counted.get("kernels", ""),
    }
    append(visit.folder / "launches.csv", row)
    return ""


def _launches(loss: Loss, z0: Tensor, z1: Tensor) -> dict[str, Any]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        measure.step(loss, z0, z1)
        torch.cuda.synchronize()
    calls, kernels, busy = Counter[str](), Counter[str](), 0.0
    for event in seen.events() or []:
        if event.device_type.name == "CUDA":
            kernels[event.name.split("<")[0].split("(")[0][:60]] += 1
            busy += event.time_range.elapsed_us()
        else:
            calls[event.name] += 1
    return {
        "counts": "CUDA launches",
        "launches": sum(calls[name] for name in LAUNCHES),
        "copies": sum(calls[name] for name in COPIES),
        "waits": sum(calls[name] for name in WAITS),
        "kernel_us": f"{busy:.4g}",
        "kernels": "; ".join(f"{number} {name}" for name, number in kernels.most_common(12)),
    }


def _seconds(loss: Loss, z0: Tensor, z1: Tensor, calls: int) -> tuple[float, float]:
    """Median time to issue a step, the GPU idle before, and to issue and finish it."""
    issued, finished = [], []
    for _ in range(calls):
        _wait(z0)
        started = time.perf_counter()
        measure.step(loss, z0, z1)
        issued.append(time.perf_counter() - started)
        _wait(z0)
        finished.append(time.perf_counter() - started)
    return sorted(issued)[calls // 2], sorted(finished)[calls // 2]


def _wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize()


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Counts operators that compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func._schema.name.removeprefix("aten::") not in _VIEWS
        return func(*args, **(kwargs or {}))


def _operators(loss: Loss, z0: Tensor, z1: Tensor) -> int:
    with _Count() as count:
        measure.step(loss, z0, z1)
    return int(count.number)
