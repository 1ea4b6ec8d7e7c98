"""`varloss-bench study trends`: the two papers' trends on real embeddings of digits. Long; no verdict, no exit code."""

from pathlib import Path
from typing import Annotated

import typer


def trends(
    steps: Annotated[int, typer.Option(help="Optimiser steps of every trial, whatever its batch size.")] = 620,
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    workers: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of rows.json, table.txt and the figures.")] = Path(
        "varloss-runs/trends"
    ),
) -> None:
    """Train small nets on scikit-learn's digits and show two trends, whether they appear or not.

    Variance of held-out negatives against batch size at equal STEPS (t = 0.5, with and without VRN), and uniformity,
    tolerance and penalty entropy against temperature (batch size 64). No network needed. Finished trials are kept: the
    same command resumes.
    """
    import json  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.commands import checks  # noqa: PLC0415
    from varloss_bench.records import provenance  # noqa: PLC0415
    from varloss_bench.records.store import write_atomically  # noqa: PLC0415
    from varloss_bench.studies.trends import report as trends_report  # noqa: PLC0415
    from varloss_bench.studies.trends import run as trends_run  # noqa: PLC0415

    checks.check_installed()
    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    rows = trends_run.run(steps, list(range(seeds)), workers, output / "trials", console)
    text = trends_report.table(rows)
    messages.say(console, text)
    command = provenance.command_line()
    record = {"command": command, "environment": provenance.environment(), "rows": rows}
    write_atomically(output / "rows.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_atomically(output / "table.txt", f"$ {' '.join(command)}\n\n{text}\n")
    for name, content in trends_report.figures(rows).items():
        write_atomically(output / f"{name}.png", content)
    messages.say(console, f"Rows, table and figures are in {output}.")
