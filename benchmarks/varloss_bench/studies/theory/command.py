"""`varloss-bench study theory`: the theory's predictions against free unit vectors optimised with the package's own losses."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from varloss_bench import messages

GROUP_KEYS = ("full-batch", "fixed-batches", "reshuffled-batches", "rank-floor", "separation", "vrn", "temperature")


def theory(
    only: Annotated[str, typer.Option(help=f"Comma-separated list of {', '.join(GROUP_KEYS)}; default: all.")] = "",
    output: Annotated[Path, typer.Option(help="Folder of the figures and of rows.json.")] = Path("varloss-runs/theory"),
    failures_only: Annotated[
        bool, typer.Option("--failures-only", help="Print only the rows that miss their tolerance.")
    ] = False,
) -> None:
    """Check the theory's predictions against unit vectors optimised with the real loss.

    Needs no network access and no data, and takes under two minutes on two cores. Writes one figure per group and
    `rows.json`. **Exits with 1 when a row misses its tolerance.**
    """
    from varloss_bench.records import provenance
    from varloss_bench.records.store import write_atomically
    from varloss_bench.studies.theory import figures, optima, pairs

    groups = dict(zip(GROUP_KEYS, (*optima.GROUPS, *pairs.GROUPS), strict=True))
    wanted = [key.strip() for key in only.split(",") if key.strip()] or list(GROUP_KEYS)
    unknown = sorted(set(wanted) - set(GROUP_KEYS))
    if unknown:
        raise typer.BadParameter(
            f"unknown {', '.join(unknown)}; known are {', '.join(GROUP_KEYS)}", param_hint="--only"
        )

    console = Console()
    output.mkdir(parents=True, exist_ok=True)
    started, missed, total, content = time.monotonic(), 0, 0, []
    for key in wanted:
        group = groups[key]()
        table = Table(title=group.title, title_justify="left", title_style="bold")
        for heading in ("", "prediction", "measured", "off by", "allowed", ""):
            table.add_column(heading, justify="left" if heading == "" else "right")
        for row in group.rows:
            total += 1
            missed += not row.ok
            if row.ok and failures_only:
                continue
            mark = "[green]ok[/green]" if row.ok else "[bold red]MISSED[/bold red]"
            bound = "" if row.relation == "=" else f"{row.relation} "
            table.add_row(
                row.name,
                f"{bound}{row.predicted:.6g}",
                f"{row.measured:.6g}",
                f"{abs(row.measured - row.predicted):.1e}" if row.relation == "=" else "",
                f"{row.tolerance:.1g}",
                mark,
            )
        if table.row_count:
            console.print(table, highlight=False)
        write_atomically(output / f"{key}.png", figures.draw(group))
        rows = [{**asdict(row), "ok": row.ok} for row in group.rows]
        content.append({"group": key, "title": group.title, "rows": rows})
    seconds = time.monotonic() - started
    record = {"environment": provenance.environment(), "seconds": round(seconds, 1), "groups": content}
    write_atomically(output / "rows.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    verdict = "all within tolerance" if not missed else f"{missed} MISSED"
    messages.say(console, f"{total} predictions, {verdict}, {seconds:.0f} s. Figures and rows in {output}.")
    if missed:
        raise typer.Exit(1)
