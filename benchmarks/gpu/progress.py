"""Which cells of which step are settled: one CSV file for all steps, a line as soon as something is known.

A cell is the smallest piece of a step: a test, a loss at one size, a shape of a kernel's tiles.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from varloss_bench.studies.speed.rows import append

FIELDS = ("step", "cell", "state", "seconds", "note")
BEGAN, DONE, FAILED = "began", "done", "failed"
# Whoever worked at the cell is gone, or it failed and is to be tried again.
OPEN = "open"
# The name of the cell whose end is the end of its step.
WHOLE = "*"


class Entry(NamedTuple):
    """The last that is known of a cell."""

    state: str
    seconds: float
    note: str


class Progress:
    """The progress of one step."""

    def __init__(self, folder: Path, step: str) -> None:
        """The file is made with the first entry."""
        self.path, self.step = folder / "progress.csv", step
        self._since = time.monotonic()

    def began(self, cell: str) -> None:
        """The cell is being worked at: if the process dies now, this cell is why."""
        self._since = time.monotonic()
        self._write(cell, BEGAN, 0.0, "")

    def settle(self, cell: str, state: str, note: str = "") -> None:
        """The cell is DONE or FAILED."""
        self._write(cell, state, time.monotonic() - self._since, note)

    def entries(self) -> dict[str, Entry]:
        """The latest entry of each cell, in the order of these."""
        found: dict[str, Entry] = {}
        for row in read(self.path):
            if row["step"] == self.step:
                found.pop(row["cell"], None)
                found[row["cell"]] = Entry(row["state"], float(row["seconds"]), row["note"])
        return found

    def settled(self) -> set[str]:
        """The cells that are not worked at again."""
        return {cell for cell, entry in self.entries().items() if entry.state in (DONE, FAILED)}

    def reopen(self, *states: str) -> int:
        """Cells in one of these states become open; returns how many."""
        cells = [cell for cell, entry in self.entries().items() if entry.state in states]
        for cell in cells:
            self._write(cell, OPEN, 0.0, "")
        return len(cells)

    def running(self) -> str | None:
        """The cell that began last and has no end."""
        began = [cell for cell, entry in self.entries().items() if entry.state == BEGAN]
        return began[-1] if began else None

    def _write(self, cell: str, state: str, seconds: float, note: str) -> None:
        line = (self.step, cell, state, f"{seconds:.3f}", " ".join(note.split())[:500])
        append(self.path, dict(zip(FIELDS, line, strict=True)))


def read(path: Path) -> list[dict[str, str]]:
    """The whole rows of a file; none where there is no file. A torn last line is no row."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in csv.DictReader(lines) if None not in row.values() and None not in row]


def repair(path: Path, settled: set[str] | None = None) -> None:
    """Cut off a torn last line and, where ``settled`` is given, rows of other cells: these are worked at again."""
    if not path.exists():
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if not whole:
        path.unlink()
        return
    rows = read(path)
    kept = rows if settled is None else [row for row in rows if row["cell"] in settled]
    if len(whole) == len(text) and len(kept) == len(rows):
        return
    beside = path.with_suffix(".part")
    if len(kept) == len(rows):
        beside.write_bytes(whole)
    else:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(kept)
    beside.replace(path)


def unsettled(cells: Sequence[str], progress: Progress) -> list[str]:
    """The cells that remain, in their order."""
    settled = progress.settled()
    return [cell for cell in cells if cell not in settled]
