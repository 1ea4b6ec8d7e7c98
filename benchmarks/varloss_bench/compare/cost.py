"""The cost of a sweep, estimated from a few steps that are timed before it runs."""

import warnings
from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from varloss_bench.compare.sweep import Execution
from varloss_bench.config import TrialConfig
from varloss_bench.records.store import Store
from varloss_bench.statistics.selection import Plan, choose
from varloss_bench.training import estimates
from varloss_bench.training.trial import quieten

# Seconds until the first step, per step, and of the loss in a step if known; by method, batch size, and with or without VRN.
Measured = dict[tuple[str, int, bool], tuple[float, float, float | None]]


def show_cost(
    missing: Sequence[TrialConfig],
    workers: int,
    console: Console,
    *,
    title: str = "to run",
    note: str = "Nothing was run.",
    measured: Measured | None = None,
) -> None:
    """List the trials that would run, and estimate their time from a few measured steps per method and batch size.

    If this machine lacks the trials' device, like a cluster's login node, the list has steps and no times. `measured` holds
    earlier measurements; new ones are added to it.
    """
    if any(trial.device == "cuda" for trial in missing) and not torch.cuda.is_available():
        _list_steps(missing, console, title=title, note=note)
        return
    quieten()
    torch.set_num_threads(1)
    # Names of trials are not wrapped; the other columns wrap within 80 columns.
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for heading in ("seeds", "length", "images\nper s", "loss's\nshare", "estimated\ns per run"):
        table.add_column(heading)
    measured = {} if measured is None else measured
    # A trained trial if there is one, because its backbone determines the time.
    sample = next((trial for trial in missing if trial.arm.trained), missing[0] if missing else None)
    total, evaluation = 0.0, estimates.measure_evaluation_seconds(sample) if sample else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arm in dict.fromkeys(trial.arm for trial in missing):
            of_arm = [trial for trial in missing if trial.arm == arm]
            seconds, speed, share = evaluation, "", ""
            if arm.trained:
                kind = (arm.method, arm.batch_size, bool(arm.weight))
                if kind not in measured:
                    solo = of_arm[0].framework == "solo"
                    measured[kind] = (
                        (*estimates.measure_solo(of_arm[0]), None)
                        if solo
                        else (0.0, *estimates.measure_step(of_arm[0]))
                    )
                start, step, loss = measured[kind]
                seconds += start + step * estimates.number_of_steps(of_arm[0])
                if step > 0:  # on a busy machine the long run can take less time than the short one
                    speed = f"{arm.batch_size / step:.0f}"
                    share = "not measured" if loss is None else f"{min(1.0, loss / step):.0%}"
            total += seconds * len(of_arm)
            table.add_row(arm.label(), _seeds(of_arm), _length(of_arm[0]), speed, share, f"{seconds:.1f}")
    console.print(table)
    if any(trial.ranks > 1 for trial in missing):
        console.print(
            "Timed in one process. Several processes that share a batch take less time if each has its own core or GPU."
        )
    wall = total / workers + (10 if missing else 0)
    console.print(
        f"About {wall / 60:.1f} minutes with {workers} workers on as many free cores (steps, augmentation and evaluation timed "
        f"on this machine just now, the evaluation on a few images and scaled up; start-up counted as 10 s). {note}",
        highlight=False,
    )


def show_phases(plan: Plan, where: Execution, console: Console, *, note: str = "") -> None:
    """Print the missing trials of both phases and their time; for the second an upper limit until the first is complete."""
    validation, store = plan.validation_trials(), Store(where.folder)
    loaded = store.load(validation)
    missing = [trial for trial in validation if not loaded.done(trial)]
    if missing:
        test, title = plan.most_test_trials(), "phase 2, test split, at most (stand-ins for what will be chosen)"
    else:
        chosen = choose(validation, loaded.records, plan.metric).chosen
        test, title = plan.test_trials(chosen), "phase 2, test split"
        done = store.load(test)
        test = [trial for trial in test if not done.done(trial)]
    console.print(
        f"Phase 1: {len(validation)} trials on val, {len(missing)} to run. Phase 2: {'at most ' if missing else ''}{len(test)} "
        "to run.",
        highlight=False,
    )
    measured: Measured = {}
    for trials, name in ((missing, "phase 1, validation split"), (test, title)):
        if trials:
            show_cost(trials, where.workers, console, title=name, note=note, measured=measured)


def _list_steps(missing: Sequence[TrialConfig], console: Console, *, title: str, note: str) -> None:
    """List the trials that would run, without times, because this machine lacks their device."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for heading in ("seeds", "length", "steps\nper run"):
        table.add_column(heading)
    total = 0
    for arm in dict.fromkeys(trial.arm for trial in missing):
        of_arm = [trial for trial in missing if trial.arm == arm]
        steps = estimates.number_of_steps(of_arm[0]) if arm.trained else 0
        total += steps * len(of_arm)
        table.add_row(arm.label(), _seeds(of_arm), _length(of_arm[0]), str(steps) if steps else "")
    console.print(table)
    console.print(
        f"{total} steps. How long they take cannot be measured here: this machine has no CUDA device. --dry-run on a node "
        f"that has one, with --cluster local or without --cluster, measures it. {note}",
        highlight=False,
    )


def _seeds(of_arm: Sequence[TrialConfig]) -> str:
    return ",".join(str(trial.seed) for trial in of_arm)


def _length(trial: TrialConfig) -> str:
    return f"{getattr(trial, trial.equal)} {trial.equal}" if trial.arm.trained else ""
