"""`varloss-bench report`: the records of a folder as tables and as one page that opens anywhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages


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
    from varloss_bench.records import provenance
    from varloss_bench.report import files, groups

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
        files.write(found, folder, target, provenance.command_line())
    except OSError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None
    results = sum(trial.record["status"] != "crashed" for trial in found.trials)
    trials, left_out = messages.counted(len(found.trials), "trial"), messages.counted(len(found.left_out), "file")
    messages.say(console, f"{trials}, {left_out} left out: {', '.join(files.FILES)} in {target}/")
    if not results:
        reason = (
            "all of them crashed. The report gives the reasons."
            if found.trials
            else "there is no readable record. The reasons are above."
        )
        messages.say(console, f"No trial has a result: {reason}", "red")
        raise typer.Exit(1)
