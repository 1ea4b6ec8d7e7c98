"""`varloss-bench study trends`: two trends of the papers on real embeddings of digits."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages


def trends(
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of every trial, at every batch size.")] = 620,
    seeds: Annotated[int, typer.Option(min=1, help="Number of paired seeds.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of rows.json, table.txt and the figures.")] = Path(
        "varloss-runs/trends"
    ),
) -> None:
    """Train small nets on scikit-learn's digits and show whether two trends appear.

    The first is the variance of held-out negatives against the batch size at equal steps (t = 0.5, with and without VRN).
    The second is uniformity, tolerance and penalty entropy against the temperature (batch size 64). This takes long and
    needs no network access. Finished trials are kept; the same command resumes.
    """
    from varloss_bench.commands import checks
    from varloss_bench.records import provenance
    from varloss_bench.records.store import write_atomically
    from varloss_bench.studies.trends import report, run

    checks.check_installed()
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    rows = run.run(steps, list(range(seeds)), workers, output / "trials", console)
    text = report.table(rows)
    messages.say(console, text)
    command = provenance.command_line()
    record = {"command": command, "environment": provenance.environment(), "rows": rows}
    write_atomically(output / "rows.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_atomically(output / "table.txt", f"$ {' '.join(command)}\n\n{text}\n")
    for name, content in report.figures(rows).items():
        write_atomically(output / f"{name}.png", content)
    messages.say(console, f"Rows, table and figures are in {output}.")
