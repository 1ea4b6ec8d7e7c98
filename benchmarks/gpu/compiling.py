"""Compile the kernels for all shapes, in several processes at once: they fill Triton's cache on disk, and nothing is launched."""

# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-call,unused-ignore"

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from gpu import shapes
from gpu.steps import Visit, complain

MOST_PROCESSES = 14
# The card that a rehearsal compiles for.
REHEARSED_CAPABILITY = 90


def all_at_once(visit: Visit, wave: str, seconds: float) -> str:
    """Compile for one type of rows; returns a sentence on how far it came."""
    processes = 2 if visit.rehearse else max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 2))
    command = [sys.executable, str(Path(__file__).parent), "--work", "tune", "--out", str(visit.folder), "--wave", wave]
    command += ["--seconds", f"{seconds:.1f}", *(["--rehearse"] if visit.rehearse else [])]
    # Kernels that are interpreted are not compiled.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    started = time.monotonic()
    running = [
        subprocess.Popen(
            [*command, "--part", f"{part}/{processes}"], stdout=subprocess.PIPE, text=True, env=environment
        )
        for part in range(processes)
    ]
    done, died = 0, 0
    for process in running:
        try:
            printed, _ = process.communicate(timeout=max(0.1, started + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
        done += printed.count("compiled")
        died += process.returncode != 0
    took = time.monotonic() - started
    return f"{done} compiled by {processes} processes in {took:.1f} s" + (f", {died} died or were late" if died else "")


def work(visit: Visit, wave: str, part: int, parts: int) -> int:
    """One of these processes: every so-manieth shape of a type."""
    if visit.rehearse:
        _pretend_to_have_a_card()
    pairs = [
        (case, shape)
        for case in shapes.cases(wave, visit.rehearse)
        for shape in shapes.candidates(case, visit.rehearse)
    ]
    for case, shape in pairs[part::parts]:
        _compile(case, shape)
    return 0


def _compile(case: shapes.Case, shape: shapes.Shape) -> None:
    """As a launch does."""
    try:
        shapes.jitted(case).warmup(*shapes.mock_arguments(case), grid=(1,), **shapes.options(case, shape))
    except Exception as error:
        # Timing it will say the same, as a row.
        complain(f"{case}, {shape}: {type(error).__name__}: {error}")
    else:
        print(f"compiled {case}, {shape}", flush=True)


def _pretend_to_have_a_card() -> None:
    """Compiling asks the driver for no more than this."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.runtime import driver  # noqa: PLC0415

    pretended = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", REHEARSED_CAPABILITY, 32),
    )
    driver.set_active(pretended)
