"""The outcomes of all cells as they were measured, for the documentation: ``tests/conformance/cells.csv``."""

from __future__ import annotations

import csv
import datetime
import functools
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from support.conformance import mechanisms, subjects
from support.conformance.grid import MECHANISMS, Mechanism, outcome
from support.conformance.mechanisms.environment import stop_child
from support.conformance.subject import Subject

RECORD = Path(__file__).parents[2] / "conformance" / "cells.csv"
PACKAGES = ("torch", "lightly", "pytorch-metric-learning")
Cells = dict[tuple[str, str], str]

assert mechanisms.__all__  # imported for the rows that it registers


@functools.cache
def all_subjects() -> dict[str, Subject]:
    found = [*subjects.own(), *subjects.of_adapters(), *subjects.neighbours()]
    return {subject.name: subject for subject in found}


def all_cells() -> list[tuple[Mechanism, Subject]]:
    """Those where the mechanism can be applied to the subject."""
    return [(m, s) for m in MECHANISMS.values() for s in all_subjects().values() if m.applies(s)]


def versions() -> str:
    """What the outcomes depend on; a local build of torch counts as its version."""
    return ", ".join(f"{package} {version(package).split('+')[0]}" for package in PACKAGES)


def of_subject(name: str, only: list[str]) -> Cells:
    """The cells of one subject, or those of ``only`` these mechanisms and subjects."""
    chosen = [m for m, s in all_cells() if s.name == name and (not only or {m.name, name} & {*only})]
    cells = {(m.name, name): str(outcome(m, all_subjects()[name])) for m in chosen}
    stop_child()
    return cells


def measured(only: list[str]) -> Cells:
    """The grid, or the record with some mechanisms and subjects measured anew. Subjects run in parallel."""
    wanted = {(mechanism.name, subject.name) for mechanism, subject in all_cells()}
    cells = {cell: found for cell, found in read()[1].items() if cell in wanted} if only else {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for found in pool.map(functools.partial(of_subject, only=only), all_subjects()):
            cells |= found
    return cells


def write(cells: Cells) -> None:
    names = list(all_subjects())
    where = f"Python {platform.python_version()} on {platform.system()}, CPU"
    with RECORD.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([f"{versions()}; {where}; {datetime.date.today()}"])
        lines.writerow(["mechanism", *names])
        for mechanism in MECHANISMS:
            lines.writerow([mechanism, *(cells.get((mechanism, name), "") for name in names)])


def read() -> tuple[str, Cells]:
    """Versions and date, and the outcome of each cell."""
    with RECORD.open(newline="", encoding="utf-8") as file:
        (header,), (_, *names), *lines = csv.reader(file)
    return header, {
        (mechanism, name): found
        for mechanism, *outcomes in lines
        for name, found in zip(names, outcomes, strict=True)
        if found
    }
