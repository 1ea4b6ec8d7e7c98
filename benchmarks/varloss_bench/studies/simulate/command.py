"""`varloss-bench study simulate`: the false-positive rate and the power of the verdicts, on sweeps whose truth is known."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages


def simulate(
    sweeps: Annotated[
        int, typer.Option(min=1, help="Simulated sweeps per false-positive rate; a quarter as many per power.")
    ] = 2000,
    embedding_sweeps: Annotated[
        int,
        typer.Option(
            min=0, help="Sweeps of synthetic embeddings through the real evaluation (half a second each); 0 for none."
        ),
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same rates.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes for the embeddings, one thread each.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of rates.csv, table.txt, summary.json and figure.png.")] = Path(
        "varloss-runs/simulate"
    ),
) -> None:
    """Estimate the false-positive rate and the power of `compare`.

    **Tables** simulate accuracies as counts on one test set that all arms share; the metrics of one net are correlated,
    and their means and standard deviations are those of digits. **Embeddings** simulate classes at a known distance and
    use the real probes, kNN and similarities. Both use the pairing, the correction and the verdicts of real sweeps.
    Nothing is trained, and no network access is needed.

    Exit status 1 when a false-positive rate is above 6%.

    Examples:
    - `varloss-bench study simulate`

    - `varloss-bench study simulate --sweeps 200 --embedding-sweeps 0` for a first look
    """
    from varloss_bench.commands import checks
    from varloss_bench.records import provenance
    from varloss_bench.records.store import write_atomically
    from varloss_bench.studies.simulate import report, run

    checks.check_installed()
    console = Console()

    def report_progress(text: str) -> None:
        messages.say(console, text, "dim")

    results = list(run.run_tables(sweeps, seed, report_progress))
    if embedding_sweeps:
        results += run.run_embeddings(embedding_sweeps, workers, report_progress)
    command = provenance.command_line()
    content = {
        "command": command,
        "environment": provenance.environment(),
        "rates": [result.to_dict() for result in results],
    }
    write_atomically(output / "summary.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    write_atomically(output / "rates.csv", report.to_csv(results))
    write_atomically(output / "table.txt", f"$ {shlex.join(command)}\n\n{report.plain_text(results)}")
    write_atomically(output / "figure.png", report.draw(results))
    console.print(report.render(results))
    messages.say(console, f"Table, rates and figure: {output}/")
    if report.too_many(results):
        raise typer.Exit(1)
