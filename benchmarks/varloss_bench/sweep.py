"""Run what is missing of a sweep, then show and store the whole of it."""

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table

from varloss_bench import figure, provenance, report_text, runner, summary
from varloss_bench.config import TrialConfig
from varloss_bench.progress import SweepProgress
from varloss_bench.store import Loaded, Store, write_atomically


def run_sweep(
    trials: Sequence[TrialConfig],
    folder: Path,
    *,
    pairs: Sequence[summary.Pair],
    workers: int,
    dry_run: bool,
    console: Console,
) -> None:
    """Run what is missing of these trials, then show and store table, verdict and figure of all of them."""
    store = Store(folder)
    loaded = store.load(trials)
    for path, reason in loaded.corrupt.items():
        console.print(f"[yellow]corrupt result, will be run again:[/yellow] {path}: {reason}", highlight=False)
    missing = [trial for trial in trials if not loaded.done(trial)]
    console.print(
        f"{len(trials)} trials, {len(trials) - len(missing)} of them already in {folder}; {len(missing)} to run.",
        highlight=False,
    )
    if dry_run:
        _dry_run(missing, workers, console)
        return
    command = provenance.command_line()
    started = time.monotonic()
    if missing:
        try:
            with SweepProgress(console, missing) as progress:
                for event in runner.run_trials(missing, folder, command, workers):
                    progress.update(event)
        except KeyboardInterrupt:
            console.print(
                f"Interrupted; every finished trial is in {folder}. The same command resumes.", highlight=False
            )
            raise typer.Exit(130) from None
    crashed = _present(
        trials,
        store,
        console,
        pairs=pairs,
        command=command,
        ran=len(missing),
        seconds=time.monotonic() - started,
    )
    if crashed:
        raise typer.Exit(1)


def _present(
    trials: Sequence[TrialConfig],
    store: Store,
    console: Console,
    *,
    pairs: Sequence[summary.Pair],
    command: list[str],
    ran: int,
    seconds: float,
) -> int:
    """Print and store the summary; returns how many trials have no result."""
    loaded = store.load(trials)
    trained = next(trial for trial in trials if trial.arm.trained)
    result = summary.summarise(trials, loaded.records, pairs)
    content = {
        "command": command,
        "environment": next((record["environment"] for record in loaded.records.values()), None),
        "confounds": provenance.confounds(trained),
        "environments_differ": _environments_differ(loaded),
        "trials_run": ran,
        "seconds": round(seconds, 1),
        **summary.to_dict(result),
    }
    write_atomically(store.folder / "summary.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    text = report_text.plain_text(result, trained)
    write_atomically(store.folder / "table.txt", f"$ {' '.join(command)}\n\n{text}")
    write_atomically(store.folder / "figure.png", figure.draw(result, trained))
    console.print(report_text.render(result, trained))
    if content["environments_differ"]:
        console.print(
            "[yellow]These rows were not all made by the same versions on the same machine[/yellow] (see each trial's "
            "record); another --name makes them anew."
        )
    console.print(
        f"{ran} trials run in {seconds:.0f} s. Table, figure and records: {store.folder}/",
        highlight=False,
        soft_wrap=True,
    )
    return sum(len(row.crashed) for row in result.rows)


def _environments_differ(loaded: Loaded) -> bool:
    """Whether the records come from different versions, losses or machines; commits differ for lesser reasons.

    What an older record does not tell is unknown: the same as in other such records, not the same as in newer ones.
    """
    parts = ("versions", "varloss_source", "machine")
    seen = {
        json.dumps([record["environment"].get(part, "unknown") for part in parts], sort_keys=True)
        for record in loaded.records.values()
    }
    return len(seen) > 1


def _dry_run(missing: Sequence[TrialConfig], workers: int, console: Console) -> None:
    """List what would run and estimate its time from a few measured steps per method and batch size."""
    from varloss_bench import train  # noqa: PLC0415  (lightning, which this process otherwise never needs)

    train.quieten()
    torch.set_num_threads(1)
    table = Table("trial", "seeds", "epochs", "estimated s/run", title="to run")
    measured: dict[tuple[str, int, bool], float] = {}
    # Of a trained trial where there is one: it has the backbone that matters.
    sample = next((trial for trial in missing if trial.arm.trained), missing[0] if missing else None)
    total, evaluation = 0.0, train.measure_evaluation_seconds(sample) if sample else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arm in dict.fromkeys(trial.arm for trial in missing):
            of_arm = [trial for trial in missing if trial.arm == arm]
            seconds = evaluation
            if arm.trained:
                kind = (arm.method, arm.batch_size, bool(arm.weight))
                if kind not in measured:
                    measured[kind] = train.measure_step_seconds(of_arm[0])
                seconds += measured[kind] * train.number_of_steps(of_arm[0])
            total += seconds * len(of_arm)
            seeds = ",".join(str(trial.seed) for trial in of_arm)
            table.add_row(arm.label(), seeds, str(of_arm[0].epochs), f"{seconds:.1f}")
    console.print(table)
    wall = total / workers + (10 if missing else 0)
    console.print(
        f"About {wall / 60:.1f} minutes with {workers} workers on as many free cores (steps and evaluation timed on "
        "this machine just now, start-up counted as 10 s). Nothing was run.",
        highlight=False,
    )
