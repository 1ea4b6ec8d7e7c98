"""Run the missing trials of a sweep."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from varloss_bench import messages
from varloss_bench.config import TrialConfig
from varloss_bench.execution import workers
from varloss_bench.execution.progress import SweepProgress
from varloss_bench.records import planned
from varloss_bench.records.store import Store, write_atomically
from varloss_bench.statistics.summary import EFFECT_POINTS, Pair

if TYPE_CHECKING:
    from varloss_bench.execution.cluster import Cluster  # an extra


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How trials run, and the folder of their results.

    Attributes:
        folder: Folder of the results.
        command: The command that reproduces the results, for the records.
        workers: Number of parallel processes, or of jobs on the cluster.
        cluster: The queue for jobs; None for worker processes.
        options: Content of `config.yaml`.
    """

    folder: Path
    command: list[str]
    workers: int = 2
    cluster: "Cluster | None" = None
    options: str = ""


class Ran(NamedTuple):
    """Number of trials that ran, and their time."""

    number: int
    seconds: float


def missing_of(trials: Sequence[TrialConfig], folder: Path, console: Console) -> list[TrialConfig]:
    """Trials without a result; corrupt results are printed."""
    loaded = Store(folder).load(trials)
    for path, reason in loaded.corrupt.items():
        messages.announce(console, "corrupt result, will be run again:", f"{path}: {reason}", "yellow")
    missing = [trial for trial in trials if not loaded.done(trial)]
    messages.say(
        console,
        f"{messages.counted(len(trials), 'trial')}, {len(trials) - len(missing)} of them already in {folder}; {len(missing)} to run.",
    )
    return missing


def run_missing(
    trials: Sequence[TrialConfig],
    where: Execution,
    console: Console,
    *,
    pairs: Sequence[Pair] = (),
    effect_points: float = EFFECT_POINTS,
) -> Ran:
    """Run the trials that have no result yet.

    The pairs to compare are written to `plan.json` before anything runs, because an interrupted sweep has already seen results.
    After Ctrl-C it prints how to continue and raises `KeyboardInterrupt` again.
    """
    missing = missing_of(trials, where.folder, console)
    started = time.monotonic()
    try:
        if where.options:
            write_atomically(where.folder / "config.yaml", where.options)
        if pairs:
            planned.write(where.folder, trials, pairs, effect_points)
        if missing:
            run = where.cluster.run if where.cluster else workers.run_trials
            with SweepProgress(console, missing) as progress:
                for event in run(missing, where.folder, where.command, where.workers):
                    progress.update(event)
    except KeyboardInterrupt:
        messages.say(console, f"Interrupted; every finished trial is in {where.folder}. The same command resumes.")
        if where.cluster and (pending := where.cluster.pending(missing, where.folder)):
            messages.say(
                console,
                f"{messages.counted(len(pending), 'job')} still queued or running; the same command waits for the rest, "
                f"and this cancels it: scancel {' '.join(pending)}",
            )
        raise
    return Ran(len(missing), time.monotonic() - started)
