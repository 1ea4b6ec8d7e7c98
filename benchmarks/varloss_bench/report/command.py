"""`varloss-bench report`: the records of a folder as tables and as one page that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from varloss_bench.report.groups import Found

FILES = ("report.html", "report.md", "rows.csv", "rows.parquet")


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `compare` wrote: its records are in DIR/trials.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder for the report's files; by default DIR itself.")] = None,
) -> None:
    """Write what a folder of trials shows: report.html, report.md, rows.csv and rows.parquet.

    The page has the question, the verdict and the figures first, details after; it is one file and loads nothing.
    Several sweeps may lie in one folder. Trials that differ in data, split, length, backbone or any other option are never
    compared with each other: each such set has a section of its own. Corrupt records are named and left out.

    Exit status: 0, 1 when no trial has a result, 2 when there are no records.
    """
    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.records import provenance  # noqa: PLC0415
    from varloss_bench.report import groups as report_records  # noqa: PLC0415

    console = Console()
    try:
        found = report_records.read(folder)
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
            "all of them crashed. The report gives their reasons."
            if found.trials
            else "there is no readable record. Why the files were left out is above."
        )
        messages.say(console, f"No trial has a result: {reason}", "red")
        raise typer.Exit(1)


def write(found: Found, folder: Path, target: Path, command: list[str]) -> None:
    """Make all files, then write them: an error on the way leaves those of before."""
    import shlex  # noqa: PLC0415

    from varloss_bench.records import store  # noqa: PLC0415
    from varloss_bench.report import groups as report_records  # noqa: PLC0415
    from varloss_bench.report import page as report_page  # noqa: PLC0415

    words = shlex.join(command)
    csv, parquet = report_records.tables(found)
    parts = report_page.sections(found)
    page, text = (make(found, parts, folder, words) for make in (report_page.html, report_page.markdown))
    contents: tuple[str | bytes, ...] = (page, text, csv, parquet)
    for name, content in zip(FILES, contents, strict=True):
        store.write_atomically(target / name, content)
