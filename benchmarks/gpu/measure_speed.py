"""Rows of `varloss-bench study speed`, by its own functions, in the order of what users feel first."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from rich.console import Console

from gpu.measure_ceilings import unfit
from gpu.progress import FAILED, Progress, repair
from gpu.steps import Visit, complain, run_cells
from varloss_bench.studies.speed import run
from varloss_bench.studies.speed.losses import GROUPS

STEP = "speed"
SMALL, MIDDLE, LARGE = (32, 128, 512, 16, 64, 256, 1024), (4096, 16384), (2048, 8192, 32768, 65536)
DIMS = (128, 512, 768, 64)
DTYPES = ("bfloat16", "float32")
# Groups with a peer that users of a GPU have.
MAIN = ("NT-Xent + VRN", "NT-Xent", "InfoNCE", "sigmoid")
SECONDS = 0.1
MOST_ENDS = 2


class Cell(NamedTuple):
    """What is measured together: one group at one size."""

    group: str
    n: int
    d: int
    dtype: str


def cells(rehearse: bool) -> Iterator[Cell]:
    """Small batches first, then 4096 and 16384, then the rest; d = 128 first, each time."""
    if rehearse:
        yield from (
            Cell(group, n, 8, dtype) for n in (8, 12) for group, dtype in (("VRN", DTYPES[0]), (MAIN[0], DTYPES[1]))
        )
        return
    first, *others = DIMS
    yield from (Cell(group, n, first, dtype) for group in MAIN for dtype in DTYPES for n in SMALL)
    yield from (Cell(MAIN[0], n, d, dtype) for d in others for dtype in DTYPES for n in SMALL[:3])
    yield from (Cell(group, n, d, dtype) for d in DIMS for dtype in DTYPES for group in MAIN for n in MIDDLE)
    yield from (Cell(group, n, first, dtype) for dtype in DTYPES for group in MAIN for n in LARGE)
    yield from (Cell(group, n, first, dtype) for dtype in DTYPES for group in GROUPS for n in (*SMALL, *MIDDLE))
    yield from (
        Cell(group, n, d, dtype) for d in others for dtype in DTYPES for group in MAIN for n in (*SMALL, *LARGE)
    )


def work(visit: Visit) -> int:
    """Run the step."""
    if code := unfit(visit):
        return code
    path = visit.folder / "speed.csv"
    repair(path)
    without, ended = _culprits(Progress(visit.folder, STEP))
    console = Console(width=160)

    def measured(cell: Cell) -> str:
        plan = run.Plan(
            sizes=[cell.n],
            dims=[cell.d],
            groups=[cell.group],
            threads=torch.get_num_threads(),
            device=visit.device,
            dtype=getattr(torch, cell.dtype),
            seconds=0.001 if visit.rehearse else SECONDS,
            memory=visit.device == "cuda",
        )
        # Rows say which command measures the same.
        with mock.patch.object(sys, "argv", ["varloss-bench", *_words(plan, cell)]):
            return "; ".join(run.run(plan, path, console, strict=False, without=without))

    named = {
        f"{c.group}, N = {c.n}, d = {c.d}, {c.dtype}": partial(measured, c)
        for c in cells(visit.rehearse)
        if c.group not in ended
    }
    return run_cells(visit, STEP, named)


def _culprits(progress: Progress) -> tuple[set[str], set[str]]:
    """Who ended a CUDA context before and is not asked again; groups that cost MOST_ENDS processes and are given up."""
    without, ends = set(), Counter[str]()
    for cell, entry in progress.entries().items():
        if entry.state == FAILED and entry.note.startswith("LostContextError: "):
            without.add(entry.note.split(": ")[1])
        elif entry.state == FAILED and entry.note.startswith(("it hung", "its process died")):
            ends[cell.split(", N = ")[0]] += 1
    for group, number in ends.items():
        if number >= MOST_ENDS:
            complain(f"{group} is given up: it hung or died {number} times")
    return without, {group for group, number in ends.items() if number >= MOST_ENDS}


def _words(plan: run.Plan, cell: Cell) -> list[str]:
    words = ["study", "speed", "--sizes", str(cell.n), "--dims", str(cell.d), "--groups", cell.group]
    return [*words, "--dtype", cell.dtype, "--seconds", f"{plan.seconds:g}", "--device", plan.device]
