"""Run the measurements of `varloss-bench study speed` and store each as a row with its origin."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from varloss_bench.messages import say
from varloss_bench.records import provenance
from varloss_bench.studies.speed import measure
from varloss_bench.studies.speed.losses import Contender, Loss, contenders, disagreement
from varloss_bench.studies.speed.rows import append

# Batch size at which the implementations are compared before they are timed.
CHECKED_ROWS = 48
FLOOR = "floor"

Built = tuple[Contender, Loss]
# Takes who is left out, and where and why.
LeaveOut = Callable[[str, str], None]


class DisagreementError(Exception):
    """Two implementations of one loss differ, so their times are not comparable."""


class LostContextError(Exception):
    """An implementation ended the CUDA context of this process: nothing else can be timed in it."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how."""

    sizes: list[int]
    dims: list[int]
    groups: list[str]
    threads: int
    device: str
    dtype: torch.dtype
    seconds: float
    memory: bool
    clock: str = "wall"

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        for name, values, least in (
            ("--sizes", self.sizes, 2),
            ("--dims", self.dims, 1),
            ("--threads", [self.threads], 1),
        ):
            if min(values) < least:
                raise ValueError(f"{name} takes numbers of at least {least}, got {min(values)}")
        if self.clock not in ("wall", "thread"):
            raise ValueError(f"--clock must be wall or thread, got {self.clock!r}")
        if self.clock == "thread" and (self.device != "cpu" or self.threads != 1):
            raise ValueError(f"--clock thread is for one thread on the CPU, got {self.threads} on {self.device}")


def run(plan: Plan, path: Path, console: Console, *, strict: bool = True, without: Collection[str] = ()) -> list[str]:
    """Measure, and append each row to ``path`` as soon as it is known. Returns which contenders were left out and why.

    ``without`` names contenders that are not asked.

    Raises:
        DisagreementError: Two implementations differ; where not ``strict``, the other one is left out instead.
        LostContextError: Names the contender after which CUDA does not work any more.
    """
    origin = source(plan)
    left_out: list[str] = []

    def leave_out(who: str, reason: str) -> None:
        left_out.append(f"{who} is left out at {reason}")
        say(console, left_out[-1], "yellow")

    for d in plan.dims:
        for group in plan.groups:
            built = {c.name: (c, c.build()) for c in contenders(group, plan.device) if c.name not in without}
            worst = _check(group, built, d, plan.device, leave_out=leave_out, strict=strict)
            if not worst:
                console.print(f"{group}: no other implementation available on {plan.device}", style="dim")
            for n in plan.sizes:
                console.print(f"{group}, N = {n}, d = {d} ...", style="dim")
                for row in _measure(plan, group, built, n, d, leave_out=leave_out):
                    append(path, {**origin, **row, "largest_difference": worst.get(str(row["loss"]), "")})
    return left_out


def _check(
    group: str, built: dict[str, Built], d: int, device: str, *, leave_out: LeaveOut, strict: bool
) -> dict[str, float]:
    """Differences from ours. Implementations that cannot run here are removed from ``built``, with the reason."""
    (_, (_, ours)), *others = built.items()
    worst: dict[str, float] = {}
    for name, (who, theirs) in others:
        if who.is_reference:
            continue
        try:
            worst[name] = disagreement(ours, theirs, CHECKED_ROWS, d, device)
        except Exception as error:
            # Any error of another package: its kernels may not support this device or size.
            if who.needs is None:
                raise
            _require_context(name, device, error)
            leave_out(f"{group}: {name}", f"d = {d}: {type(error).__name__}: {error}")
            del built[name]
            continue
        if not worst[name] <= who.tolerance:
            if strict:
                message = f"{group}: {name} differs from varloss by {worst[name]:.1e}, relative, at d = {d}"
                raise DisagreementError(message)
            leave_out(f"{group}: {name}", f"d = {d}: it differs from varloss by {worst[name]:.1e}, relative")
            del built[name]
    return worst


def _measure(
    plan: Plan, group: str, built: dict[str, Built], n: int, d: int, *, leave_out: LeaveOut
) -> list[dict[str, Any]]:
    inputs = measure.views(n, d, plan.device, plan.dtype)
    actions: dict[str, Callable[[], None]] = {
        name: partial(measure.step, loss, *inputs)
        for name, (who, loss) in built.items()
        if who.takes(n, plan.device) and _runs(f"{group}: {name}", who, loss, inputs, leave_out=leave_out)
    }
    actions[FLOOR] = measure.floor(n, d, plan.device)
    found = measure.interleaved(list(actions.values()), plan.seconds, plan.device, of_thread=plan.clock == "thread")
    times = dict(zip(actions, found, strict=True))
    medians = {name: measure.quartiles(seconds) for name, seconds in times.items()}
    rows = []
    for name, (low, middle, high) in medians.items():
        peak: float | None = None
        if plan.memory and name != FLOOR:
            if plan.device == "cuda":
                peak = measure.peak_memory_cuda(built[name][1], *inputs)
            else:
                peak = measure.peak_memory(group, name, n, d, plan.threads)
        rows.append(
            {
                "group": group,
                "loss": name,
                "n": n,
                "d": d,
                "dtype": str(plan.dtype).removeprefix("torch."),
                "calls": len(times[name]),
                "median_s": f"{middle:.4g}",
                "lower_quartile_s": f"{low:.4g}",
                "upper_quartile_s": f"{high:.4g}",
                "over_varloss": f"{middle / medians['varloss'][1]:.3f}",
                "over_floor": f"{middle / medians[FLOOR][1]:.3f}",
                "peak_extra_mib": "" if peak is None else f"{peak:.1f}",
            }
        )
    return rows


def _runs(name: str, who: Contender, loss: Loss, inputs: tuple[Tensor, Tensor], *, leave_out: LeaveOut) -> bool:
    """Whether one step works at this size on a GPU: one that runs out of memory there must not take the others along."""
    if not inputs[0].is_cuda or who.name == "varloss":
        return True
    reason = ""
    try:
        measure.step(loss, *inputs)
        torch.cuda.synchronize()
    except Exception as error:
        _require_context(who.name, "cuda", error)
        n, d = inputs[0].shape
        reason = f"N = {n}, d = {d}: {type(error).__name__}: {str(error)[:200]}"
    inputs[0].grad = inputs[1].grad = None
    torch.cuda.empty_cache()
    if reason:
        leave_out(name, reason)
    return not reason


def _require_context(name: str, device: str, error: Exception) -> None:
    """Raises LostContextError if CUDA does not work after an error of this contender."""
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except Exception:
        raise LostContextError(f"{name}: CUDA error: {error}") from error


def source(plan: Plan) -> dict[str, Any]:
    """The part of every row that says where it comes from."""
    environment = provenance.environment()
    machine = environment["machine"]
    gpu = machine["gpu"] if plan.device == "cuda" else None
    names = ("varloss", "torch", "lightly", "pytorch-metric-learning", "inf-cl", "memeff", "siglip-kernel")
    versions = {"python": environment["versions"]["python"]}
    versions |= {name: _version(name) for name in names}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": gpu or machine["cpu"],
        "threads": plan.threads,
        "versions": " ".join(f"{name}={version}" for name, version in versions.items() if version),
        "commit": provenance.commit(),
        "command": " ".join(provenance.command_line()),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
