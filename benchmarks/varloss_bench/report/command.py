"""`varloss-bench report`: the records of a folder as tables and as one page that opens anywhere."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages
from varloss_bench.records import provenance
from varloss_bench.records.store import write_atomically
from varloss_bench.report import groups, page
from varloss_bench.report.groups import Found
from varloss_bench.report.rows import tables
from varloss_bench.report.sections import Section, sections

FILES = ("report.html", "report.md", "rows.csv", "rows.parquet")


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `compare` wrote; its records are in DIR/trials.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder of the report's files; default: DIR.")] = None,
) -> None:
    """Write the results of a folder as report.html, report.md, rows.csv and rows.parquet.

    The page shows question, verdict and figures first and details after them. It is one file and loads nothing.
    A folder may hold several sweeps. Trials are compared with each other only if they differ in nothing but method, batch
    size, temperature, VRN weight and seed; each such set has its own section. Corrupt records are named and left out.

    Exit status: 0; 1 when no trial has a result; 2 when the folder has no records or the report cannot be written.
    """
    console = Console()
    try:
        found = groups.read(folder)
    except ValueError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None
    for name, reason in found.left_out.items():
        messages.say(console, f"left out: {name}: {reason}", "yellow")
    target = output or folder
    try:
        write(found, folder, target, provenance.command_line())
    except OSError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None
    results = sum(trial.record["status"] != "crashed" for trial in found.trials)
    trials, files = messages.counted(len(found.trials), "trial"), messages.counted(len(found.left_out), "file")
    messages.say(console, f"{trials}, {files} left out: {', '.join(FILES)} in {target}/")
    if not results:
        reason = (
            "all of them crashed. The report gives the reasons."
            if found.trials
            else "there is no readable record. The reasons are above."
        )
        messages.say(console, f"No trial has a result: {reason}", "red")
        raise typer.Exit(1)


def write(found: Found, folder: Path, target: Path, command: list[str]) -> list[Section]:
    """Make all files, then write them: an error while they are made leaves the earlier files as they are."""
    words = shlex.join(command)
    parts = sections(found)
    csv, parquet = tables(found.trials)
    contents: tuple[str | bytes, ...] = (
        page.html(found, parts, folder, words),
        page.markdown(found, parts, folder, words),
        csv,
        parquet,
    )
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(target / name, content)
    return parts
