"""The tables of a visit, from its rows: printed at the end and kept as summary.txt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gpu.progress import BEGAN, DONE, FAILED, OPEN, WHOLE, Entry, Progress, read
from gpu.steps import STEPS

BEST = 5
Row = dict[str, str]
# Groups by what is multiplied: both views with both, or one with the other. VRN alone takes D x D matrices instead.
_BOTH, _CROSS = ("NT-Xent + VRN", "NT-Xent", "DCL"), ("InfoNCE", "sigmoid")


def write(folder: Path, trouble: Sequence[str]) -> int:
    """Write summary.txt; returns how many cells failed."""
    entries = {step.name: Progress(folder, step.name).entries() for step in STEPS}
    failed = sum(entry.state == FAILED for found in entries.values() for entry in found.values())
    with (folder / "summary.txt").open("w", encoding="utf-8") as file:
        console = Console(file=file, width=150)
        console.print(_steps(entries))
        unprinted = []
        for make in (_ceilings, _launches, _speed, _best, _worth):
            try:
                table = make(folder)
            except (KeyError, ValueError) as error:
                unprinted.append(f"no table {make.__name__.strip('_')}: its rows cannot be read: {error!r}")
                continue
            if table.row_count:
                console.print(table)
        sentences = [*trouble, *unprinted, *_failures(entries), *_notes(entries)]
        console.print("What failed or was left out:" if sentences else "Nothing failed.", markup=False)
        for sentence in sentences:
            console.print(f"- {sentence}", markup=False, soft_wrap=True, highlight=False)
    return failed


def _table(title: str, columns: Iterable[str], left: int = 1) -> Table:
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", overflow="fold")
    return table


def _steps(entries: dict[str, dict[str, Entry]]) -> Table:
    table = _table("Steps", ("step", "done", "failed", "unfinished", "seconds", "complete"))
    for step, found in entries.items():
        cells = [entry for cell, entry in found.items() if cell != WHOLE]
        counts = [str(sum(entry.state in states for entry in cells)) for states in ((DONE,), (FAILED,), (BEGAN, OPEN))]
        whole = found.get(WHOLE)
        complete = "yes" if whole is not None and whole.state == DONE else "no"
        table.add_row(step, *counts, f"{sum(entry.seconds for entry in cells):.1f}", complete)
    return table


def _ceilings(folder: Path) -> Table:
    table = _table("Machine and ceilings", ("name", "value", "unit"), left=3)
    for row in latest(folder / "ceilings.csv", ("name",)):
        table.add_row(row["name"], row["value"], row["unit"])
    return table


def _launches(folder: Path) -> Table:
    rows = latest(folder / "launches.csv", ("cell",))
    counted = rows[0]["counts"] if rows else ""
    columns = ("loss", "dtype", "N", counted, "copies", "waits", "operators", "host us", "step us", "kernels us")
    table = _table("One forward and backward pass; host: to issue it, step: to finish it", columns, left=2)
    keys = ("loss", "dtype", "n", "launches", "copies", "waits", "operators", "host_us", "step_us", "kernel_us")
    for row in rows:
        table.add_row(*(row[key] for key in keys))
    return table


def _speed(folder: Path) -> Table:
    columns = ("group", "loss", "dtype", "d", "N", "median ms", "times varloss", "times bound", "peak MiB")
    title = "Speed; the bound is the products at the measured matrix rate, or reading and writing the rows"
    table = _table(title, columns, left=3)
    rates = {row["name"]: float(row["value"]) for row in read(folder / "ceilings.csv") if row["unit"]}
    rows = latest(folder / "speed.csv", ("group", "loss", "dtype", "d", "n"))
    rows.sort(key=lambda row: (row["group"], row["dtype"], int(row["d"]), int(row["n"])))
    for row in rows:
        least = bound(row, rates)
        times = f"{float(row['median_s']) / least:.2f}" if least else ""
        median = f"{float(row['median_s']) * 1e3:.4g}"
        keys = (row[key] for key in ("group", "loss", "dtype", "d", "n"))
        table.add_row(*keys, median, row["over_varloss"], times, row["peak_extra_mib"])
    return table


def bound(row: Row, rates: dict[str, float]) -> float | None:
    """Seconds that no implementation of the row's loss can undercut, or None where that is not known."""
    half = row["dtype"] != "float32"
    rate, copy = rates.get("bf16" if half else "fp32"), rates.get("copy")
    if not rate or not copy or row["group"] not in (*_BOTH, *_CROSS):
        return None
    n, d = int(row["n"]), int(row["d"])
    # Similarities once and, for the gradient, weights times rows: 2 n m d each. Symmetry halves the similarities at best.
    flop = (4 + 8) * n * n * d if row["group"] in _BOTH else (2 + 4) * n * n * d
    moved = 2 * 2 * n * d * (2 if half else 4)
    return max(flop / (rate * 1e12), moved / (copy * 1e9))


def _tuned(folder: Path) -> Iterator[tuple[str, str, list[Row]]]:
    """Each case, its N, and its rows that have a time, the fastest first."""
    keys = ("kernel", "dim", "dtype", "vrn", "n")
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in latest(folder / "tune.csv", ("cell",)):
        if row["us"]:
            found[tuple(row[key] for key in keys)].append(row)
    for (kernel, dim, dtype, vrn, n), rows in sorted(found.items(), key=lambda item: (*item[0][:1], int(item[0][1]))):
        yield f"{kernel}, D = {dim}, {dtype}, VRN {vrn or 'none'}", n, sorted(rows, key=lambda row: float(row["us"]))


def _best(folder: Path) -> Table:
    title = f"Shapes of tiles: the best {BEST} of each case in us, * the default"
    table = _table(title, ("case", "N", *map(str, range(1, BEST + 1))), left=BEST + 2)
    for case, n, rows in _tuned(folder):
        table.add_row(case, n, *(f"{_shape(row)} {float(row['us']):.0f}" for row in rows[:BEST]))
    return table


def _worth(folder: Path) -> Table:
    columns = ("case", "N", "default us", "best us", "default / best", "best shape")
    table = _table("Default against best", columns)
    for case, n, rows in _tuned(folder):
        for ours in (row for row in rows if row["default"] == "1"):
            ratio = float(ours["us"]) / float(rows[0]["us"])
            table.add_row(case, n, ours["us"], rows[0]["us"], f"{ratio:.2f}", _shape(rows[0]))
    return table


def _shape(row: Row) -> str:
    star = "*" if row["default"] == "1" else ""
    return f"{row['rows']}x{row['columns']} w{row['warps']} s{row['stages']}{star}"


def latest(path: Path, keys: Sequence[str]) -> list[Row]:
    """The last row of each key, in the order of the first."""
    return list({tuple(row[key] for key in keys): row for row in read(path)}.values())


def _failures(entries: dict[str, dict[str, Entry]]) -> list[str]:
    return [
        f"{step}: {cell}: {entry.note or 'failed'}"
        for step, found in entries.items()
        for cell, entry in found.items()
        if entry.state == FAILED
    ]


def _notes(entries: dict[str, dict[str, Entry]]) -> list[str]:
    """Notes of cells that are done, each once, with how many cells have it."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for step, found in entries.items():
        for entry in found.values():
            if entry.state == DONE and entry.note:
                counts[step, entry.note] += 1
    return [f"{step}: {note} ({number} cells)" for (step, note), number in counts.items()]
