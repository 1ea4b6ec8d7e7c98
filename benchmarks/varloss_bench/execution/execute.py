"""Run one trial in this process and store its record, in a worker process or a job. This imports what trains."""

import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from varloss_bench.config import TrialConfig
from varloss_bench.execution.workers import send
from varloss_bench.records import provenance
from varloss_bench.records.claims import ELSEWHERE, claim
from varloss_bench.records.store import Store
from varloss_bench.training import ranks, trial
from varloss_bench.training.errors import TrainingDivergedError


def execute(
    config: TrialConfig,
    folder: Path,
    command: list[str],
    report: Callable[[float], None] = lambda _: None,
    *,
    wait_for_others: bool = False,
    rendezvous: tuple[str, int] | None = None,
) -> tuple[str, str | None]:
    """Run one trial in this process and store its record, also for a failure. Returns status and reason.

    This is the only function that executors call. A trial that another process is running is not run again: the status is
    then `ELSEWHERE` or, with `wait_for_others`, the status from the other process.

    Args:
        config: What to run.
        folder: Folder of the results.
        command: The user's command line, for the record.
        report: Called with the fraction done.
        wait_for_others: Return only when there is a record.
        rendezvous: Address and port of rank 0, if several nodes share the trial and this is the first node.
    """
    kept = Store(folder)
    try:
        with claim(kept.path(config), wait=wait_for_others) as ours:
            if not ours:
                return ELSEWHERE, None
            loaded = kept.load([config])
            if loaded.done(config):  # another process has finished it
                record = loaded.records[config.key()]
                return record["status"], record["reason"]
            record = _run(config, kept, command, report, rendezvous)
            kept.write(config, record)
            return record["status"], record["reason"]
    except (OSError, ValueError) as error:  # disk full, or a metric that is NaN
        return "crashed", f"the result could not be stored: {type(error).__name__}: {error}"


def _run(
    config: TrialConfig,
    kept: Store,
    command: list[str],
    report: Callable[[float], None],
    rendezvous: tuple[str, int] | None,
) -> dict[str, Any]:
    """Run a trial and return its record; it runs in this process or, if several ranks share it, in new processes."""
    outcome: dict[str, Any] = {}
    try:
        if config.ranks > 1:
            address, port = rendezvous or (ranks.LOCALHOST, None)
            outcome = ranks.run_trial(config, report, address=address, port=port)
        else:
            outcome = trial.run_trial(config, report, log=kept.path(config).with_suffix(".log"))
        status, reason = "finished", None
    except TrainingDivergedError as error:
        status, reason = "diverged", str(error)
    except Exception as error:
        status, reason = "crashed", f"{type(error).__name__}: {error}"
        outcome = {"traceback": traceback.format_exc()}
    return {**provenance.record_of(config, command), "status": status, "reason": reason, **outcome}


def work(connection: Connection, folder: Path, command: list[str]) -> None:
    """Body of a worker process."""
    trial.quieten()
    tell = partial(send, connection)
    while True:
        try:
            config: TrialConfig = connection.recv()
        except (EOFError, OSError):
            return
        tell(execute(config, folder, command, tell))
