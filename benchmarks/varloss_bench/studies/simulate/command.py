"""`varloss-bench study simulate`: are the verdicts right? Sweeps whose truth is known, judged by the code that judges real ones."""

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    sweeps: Annotated[
        int, typer.Option(help="Simulated sweeps for each false-positive rate; a quarter of them for each power.")
    ] = 2000,
    embedding_sweeps: Annotated[
        int,
        typer.Option(
            help="Sweeps of synthetic embeddings through the real evaluation, half a second each; 0 for none."
        ),
    ] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal rates.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes of one thread each, for the embeddings.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of rates.csv, table.txt, summary.json and figure.png.")] = Path(
        "varloss-runs/simulate"
    ),
) -> None:
    """Count how often `compare` would call something settled that is not there, and how often it finds what is.

    **Tables**: accuracies as counts of one test set that all arms share, metrics of one net that move together, levels and
    spreads of digits. **Embeddings**: classes with a known distance, through the real probes, kNN and similarities. Both go
    through the pairing, the correction and the verdicts of real sweeps. Nothing is trained; no network needed.

    Exit status 1 when a false-positive rate is above 6%.

    Examples:
    - `varloss-bench study simulate`

    - `varloss-bench study simulate --sweeps 200 --embedding-sweeps 0` for a first look
    """
    import json  # noqa: PLC0415
    import shlex  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.commands import checks  # noqa: PLC0415
    from varloss_bench.records import provenance  # noqa: PLC0415
    from varloss_bench.records.store import write_atomically  # noqa: PLC0415
    from varloss_bench.studies.simulate import report as simulate_report  # noqa: PLC0415
    from varloss_bench.studies.simulate import run as simulate_run  # noqa: PLC0415

    checks.check_installed()
    console = Console()
    for option, value, least in (
        ("--sweeps", sweeps, 1),
        ("--embedding-sweeps", embedding_sweeps, 0),
        ("--seed", seed, 0),
        ("--workers", workers, 1),
    ):
        if value < least:
            messages.error(console, f"{option} must be at least {least}, got {value}")
            raise typer.Exit(2)

    def tell(text: str) -> None:
        messages.say(console, text, "dim")

    results = list(simulate_run.run_tables(sweeps, seed, tell))
    if embedding_sweeps:
        results += simulate_run.run_embeddings(embedding_sweeps, workers, tell)
    command = provenance.command_line()
    content = {
        "command": command,
        "environment": provenance.environment(),
        "rates": [result.to_dict() for result in results],
    }
    write_atomically(output / "summary.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    write_atomically(output / "rates.csv", simulate_report.to_csv(results))
    write_atomically(output / "table.txt", f"$ {shlex.join(command)}\n\n{simulate_report.plain_text(results)}")
    write_atomically(output / "figure.png", simulate_report.draw(results))
    console.print(simulate_report.render(results))
    messages.say(console, f"Table, rates and figure: {output}/")
    if simulate_report.too_many(results):
        raise typer.Exit(1)
