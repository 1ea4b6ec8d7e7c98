"""The steps of a visit, most valuable first, and how a step works through its cells in a process of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu.progress import DONE, FAILED, Progress, repair, unsettled

# Exit codes of a step's process. BROKEN: its CUDA context is lost, another process can go on.
BROKEN, NO_DEVICE, OTHER_CARD = 3, 4, 5


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: As in files and options.
        share: Its part of the visit's time; what a step leaves over goes to those after it.
        cell_seconds: A cell that takes longer hangs.
        about: What it does, in a few words.
    """

    name: str
    share: float
    cell_seconds: float
    about: str


STEPS = (
    Step("ceilings", 4, 30, "card, versions, copy bandwidth, matrix rates"),
    Step("tests", 20, 60, "the tests that need a CUDA device"),
    Step("launches", 10, 60, "kernel launches and host time of a training step of the loss"),
    Step("speed", 36, 45, "time and memory against other packages, as `varloss-bench study speed` measures"),
    Step("tune", 30, 40, "tile sizes, warps and stages of both Triton kernels"),
)
BY_NAME = {step.name: step for step in STEPS}


@dataclass(frozen=True)
class Visit:
    """What a step's process has to know.

    Attributes:
        folder: Where rows go.
        rehearse: Whether to take tiny sizes, on the CPU.
        until: When the step has to end, by ``time.monotonic()``.
    """

    folder: Path
    rehearse: bool
    until: float

    @property
    def device(self) -> str:
        """Where losses are computed."""
        return "cpu" if self.rehearse else "cuda"

    def seconds_left(self) -> float:
        """Time to the end of the step."""
        return self.until - time.monotonic()


def run_cells(visit: Visit, step: str, cells: Mapping[str, Callable[[], str]]) -> int:
    """Work through the cells that are not settled; returns an exit code.

    A cell returns a note for the summary, which may be empty. A cell that raises is settled as failed.
    """
    progress = Progress(visit.folder, step)
    repair(progress.path)
    for name in unsettled(list(cells), progress):
        progress.began(name)
        try:
            note = cells[name]()
        except Exception as error:
            progress.settle(name, FAILED, f"{type(error).__name__}: {error}")
            traceback.print_exc()
            if is_lost(error):
                return BROKEN
        else:
            progress.settle(name, DONE, note)
    return 0


def is_lost(error: Exception) -> bool:
    """Whether no CUDA call of this process can work after this error."""
    words = str(error).lower()
    return "out of memory" not in words and any(
        sign in words for sign in ("cuda error", "illegal memory", "device-side assert", "unspecified launch failure")
    )


def end_with_parent() -> None:
    """Make this process end soon after the one that started it, however that one ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def complain(text: str) -> None:
    """Say something in the log."""
    print(text, file=sys.stderr, flush=True)
