"""What the card can do at most: what every other figure is divided by."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from gpu.progress import read, repair
from gpu.steps import NO_DEVICE, OTHER_CARD, Visit, run_cells
from varloss._core.numerics import full_precision
from varloss_bench.studies.speed.rows import append

STEP = "ceilings"
# At most what issuing a call takes, and about a GPU's clock.
ISSUE_SECONDS, CYCLES_A_SECOND = 40e-6, 1.8e9
MOST_CALLS = 50
VERSIONS = ("torch", "triton", "lightly", "pytorch-metric-learning", "memeff", "inf-cl", "siglip-kernel", "numpy")


def card(visit: Visit) -> str:
    """What computes, as rows name it."""
    return torch.cuda.get_device_name() if visit.device == "cuda" else "CPU"


def unfit(visit: Visit) -> int:
    """The exit code where there is no device, or where the folder has rows of another card; else 0."""
    if visit.device == "cuda" and not torch.cuda.is_available():
        return NO_DEVICE
    known = [row["value"] for row in read(visit.folder / "ceilings.csv") if row["name"] == "card"]
    return OTHER_CARD if known and known[-1] != card(visit) else 0


def seconds_of(action: Callable[[], object], device: str, *, seconds: float = 0.1, groups: int = 5) -> float:
    """Median time of a call, over groups of calls that take so long together; on a GPU by its own clock."""
    action()
    took = _timed(action, 1, device)
    calls = max(1, min(MOST_CALLS, round(seconds / groups / max(took, 1e-7))))
    return sorted(_timed(action, calls, device) for _ in range(groups))[groups // 2]


def _timed(action: Callable[[], object], calls: int, device: str) -> float:
    """Seconds a call."""
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(calls):
            action()
        return (time.perf_counter() - started) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    # The GPU waits until all calls are issued: they follow one another without a gap, however slow the host is.
    torch.cuda._sleep(round(calls * ISSUE_SECONDS * CYCLES_A_SECOND))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(calls):
        action()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / calls


def work(visit: Visit) -> int:
    """Run the step."""
    if code := unfit(visit):
        return code
    path = visit.folder / "ceilings.csv"
    repair(path)

    def row(cell: str, name: str, value: Any, unit: str = "") -> None:
        append(path, {"cell": cell, "name": name, "value": value, "unit": unit})

    def origin() -> str:
        found = {"card": card(visit), "python": platform.python_version(), **_card_facts(visit)}
        found |= {name: _version(name) for name in VERSIONS}
        found |= {"gcc": shutil.which("gcc") or shutil.which("cc") or "missing", "commit": _commit()}
        for name, value in found.items():
            row("origin", name, value)
        return ""

    def copy() -> str:
        bytes_ = 2**20 if visit.rehearse else 2**30
        source = torch.zeros(bytes_ // 4, device=visit.device)
        target = torch.empty_like(source)
        took = seconds_of(lambda: target.copy_(source), visit.device)
        row("copy", "copy", f"{2 * bytes_ / took / 1e9:.4g}", "GB/s")
        return ""

    def products(name: str, dtype: torch.dtype, largest: int) -> Callable[[], str]:
        def run() -> str:
            n = 64 if visit.rehearse else largest
            a, b = (torch.randn(n, n, device=visit.device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            with full_precision(visit.device):
                took = seconds_of(lambda: torch.mm(a, b, out=out), visit.device, seconds=0.3)
            row(name, name, f"{2 * n**3 / took / 1e12:.4g}", "TFLOP/s")
            return ""

        return run

    def exponentials() -> str:
        x = torch.zeros(2**12 if visit.rehearse else 2**24, device=visit.device)
        row("exp", "exp", f"{x.numel() / seconds_of(x.exp_, visit.device) / 1e9:.4g}", "G/s")
        return ""

    def launch() -> str:
        x = torch.zeros(8, device=visit.device)
        calls = 2000
        x.add_(1)
        _synchronize(visit)
        started = time.perf_counter()
        for _ in range(calls):
            x.add_(1)
        took = time.perf_counter() - started
        _synchronize(visit)
        row("launch", "launch of a small kernel", f"{took / calls * 1e6:.3g}", "us")
        return ""

    cells = {
        "origin": origin,
        "copy": copy,
        "bf16": products("bf16", torch.bfloat16, 8192),
        "fp32": products("fp32", torch.float32, 4096),
        "exp": exponentials,
        "launch": launch,
    }
    return run_cells(visit, STEP, cells)


def _synchronize(visit: Visit) -> None:
    if visit.device == "cuda":
        torch.cuda.synchronize()


def _card_facts(visit: Visit) -> dict[str, Any]:
    if visit.device == "cpu":
        return {}
    found = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        answer = "unknown"
    return {
        "capability": f"{found.major}.{found.minor}",
        "memory": f"{found.total_memory / 2**30:.1f} GiB",
        "multiprocessors": found.multi_processor_count,
        "driver, power limit, clock": answer,
        "cuda": torch.version.cuda,
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    from varloss_bench.records import provenance  # noqa: PLC0415  (a slow import, for one row)

    # A copy of the checkout may have no git: the digest of the sources says which they are.
    return f"{provenance.commit() or 'no git'} {provenance.environment()['varloss_source']}"
