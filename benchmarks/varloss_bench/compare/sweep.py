"""Run what is missing of a sweep, then show and store the whole of it."""

import json
import shlex
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from varloss_bench import messages
from varloss_bench.config import TrialConfig
from varloss_bench.execution import workers as runner
from varloss_bench.execution.cluster import Cluster
from varloss_bench.execution.progress import SweepProgress
from varloss_bench.records import planned, provenance, same_data
from varloss_bench.records.store import Loaded, Store, write_atomically
from varloss_bench.report import groups
from varloss_bench.report.command import write
from varloss_bench.report.figures.sweep import sweep_png
from varloss_bench.report.text import plain_text, render
from varloss_bench.statistics import summary
from varloss_bench.training import timing

# Seconds to the first step, of a step, and of the loss in it where that can be told; by method, batch size, with or without VRN.
Measured = dict[tuple[str, int, bool], tuple[float, float, float | None]]


# The page takes about 1.5 s of a processor for 32 trials and 5 s for 210; with more than this it is made on request.
_REPORTED_AT_ONCE = 100


def run_sweep(
    trials: Sequence[TrialConfig],
    folder: Path,
    *,
    pairs: Sequence[summary.Pair],
    workers: int,
    dry_run: bool,
    console: Console,
    effect_points: float = summary.EFFECT_POINTS,
    options: str = "",
    cluster: Cluster | None = None,
    show: Callable[..., int] | None = None,
) -> None:
    """Run what is missing of these trials, then show and store table, verdict and figure of all of them.

    What is compared is kept beside them as `plan.json`, before anything is run: a sweep that is cut short has seen results
    all the same. `options` is kept as `config.yaml`. With `cluster` they run as its jobs.
    `show` takes the place of `present`, with its arguments.
    """
    store = Store(folder)
    loaded = store.load(trials)
    for path, reason in loaded.corrupt.items():
        messages.announce(console, "corrupt result, will be run again:", f"{path}: {reason}", "yellow")
    missing = [trial for trial in trials if not loaded.done(trial)]
    messages.say(
        console,
        f"{messages.counted(len(trials), 'trial')}, {len(trials) - len(missing)} of them already in {folder}; {len(missing)} to run.",
    )
    if dry_run:
        show_cost(missing, workers, console)
        return
    command = provenance.command_line()
    started = time.monotonic()
    try:
        if options:
            write_atomically(folder / "config.yaml", options)
        if pairs:
            planned.write(folder, trials, pairs, effect_points)
        if missing:
            with SweepProgress(console, missing) as progress:
                run = cluster.run if cluster else runner.run_trials
                for event in run(missing, folder, command, workers):
                    progress.update(event)
        crashed = (show or present)(
            trials,
            store,
            console,
            pairs=pairs,
            command=command,
            ran=len(missing),
            seconds=time.monotonic() - started,
            effect_points=effect_points,
        )
    except KeyboardInterrupt:
        messages.say(console, f"Interrupted; every finished trial is in {folder}. The same command resumes.")
        if cluster and (pending := cluster.pending(missing, folder)):
            messages.say(
                console,
                f"{messages.counted(len(pending), 'job')} still queued or running; the same command waits for what is left, "
                f"and this ends it: scancel {' '.join(pending)}",
            )
        raise typer.Exit(130) from None
    except OSError as error:  # disk full, or the folder is gone
        messages.could_not_write(console, error, f"Every trial finished until now is in {folder}.")
        raise typer.Exit(1) from None
    if crashed:
        raise typer.Exit(1)


def present(
    trials: Sequence[TrialConfig],
    store: Store,
    console: Console,
    *,
    pairs: Sequence[summary.Pair],
    command: list[str],
    ran: int,
    seconds: float,
    effect_points: float = summary.EFFECT_POINTS,
    selection: Mapping[str, Any] | None = None,
    preface: str = "",
    chosen_on: Sequence[TrialConfig] = (),
) -> int:
    """Print and store the summary; returns how many trials have no result.

    `selection` says how the arms were chosen, where they were, and goes into `summary.json`; `preface` says the same in
    words, above the table. `chosen_on` are the trials that they were chosen by, which must have read the same images.
    """
    loaded = store.load(trials)
    trained = next(trial for trial in trials if trial.arm.trained)
    result = summary.summarise(trials, loaded.records, pairs, effect_points=effect_points)
    looked_at = [*trials, *chosen_on]
    content = {
        "command": command,
        "environment": next((record["environment"] for record in loaded.records.values()), None),
        "confounds": provenance.confounds_by_method(trials),
        "environments_differ": _environments_differ(loaded),
        "data_differ": (data_differ := same_data.differences(looked_at, store.load(looked_at).records)),
        "trials_run": ran,
        "seconds": round(seconds, 1),
        **({"selection": selection} if selection else {}),
        **summary.to_dict(result),
    }
    write_atomically(store.folder / "summary.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    speed = "\n".join(timing.in_words(trials, loaded.records))
    text = plain_text(result, trained) + (f"\n{speed}\n" if speed else "")
    alarm = same_data.in_words(data_differ, command)
    lines = [*alarm, *([""] if alarm else []), *([*preface.splitlines(), ""] if preface else [])]
    above = [textwrap.fill(line, 100, subsequent_indent="    ", break_on_hyphens=False) for line in lines]
    write_atomically(store.folder / "table.txt", "\n".join([f"$ {shlex.join(command)}\n", *above, text]))
    write_atomically(store.folder / "figure.png", sweep_png(result, trained))
    if alarm:
        messages.say(console, "\n".join(alarm), "bold red")
    if preface:
        console.print(Text(preface))
    console.print(render(result, trained))
    if speed:
        messages.say(console, speed, "dim")
    if content["environments_differ"]:
        console.print(
            "[yellow]These rows were not all made by the same versions on the same machine[/yellow] (see each trial's "
            "record); another --name makes them anew."
        )
    messages.say(
        console, f"{messages.counted(ran, 'trial')} run in {seconds:.0f} s. Table, figure and records: {store.folder}/"
    )
    messages.say(console, _report(store, command))
    return sum(len(row.crashed) for row in result.rows)


def _report(store: Store, command: list[str]) -> str:
    """Write the page about the whole folder, or name the command that does: many trials take more than three seconds."""
    number = sum(1 for _ in store.trials.glob("*.json"))
    if not 0 < number <= _REPORTED_AT_ONCE:
        return f"One page with every figure: varloss-bench report {shlex.quote(str(store.folder))}"
    write(groups.read(store.folder), store.folder, store.folder, command)
    return f"One page with every figure: {store.folder}/report.html"


def _environments_differ(loaded: Loaded) -> bool:
    """Whether the records come from different versions, source or machines; commits differ for lesser reasons.

    What an older record does not tell is unknown: the same as in other such records, not the same as in newer ones.
    """
    parts = ("versions", "varloss_source", "varloss_bench_source", "machine")
    seen = {
        json.dumps([record["environment"].get(part, "unknown") for part in parts], sort_keys=True)
        for record in loaded.records.values()
    }
    # Of trials that solo-learn trains only, so that the rows beside them lack it.
    of_solo = {record["environment"].get("varloss_solo_source") for record in loaded.records.values()} - {None}
    return len(seen) > 1 or len(of_solo) > 1


def show_cost(
    missing: Sequence[TrialConfig],
    workers: int,
    console: Console,
    *,
    title: str = "to run",
    note: str = "Nothing was run.",
    measured: Measured | None = None,
) -> None:
    """List what would run and estimate its time from a few measured steps per method and batch size.

    Where this machine lacks the trials' device, as a cluster's login node does, steps are listed and no time.
    `measured` is what was measured before, and is added to.
    """
    from varloss_bench.training import estimates, trial  # noqa: PLC0415  (lightning, which this process otherwise never needs)

    if any(trial.device == "cuda" for trial in missing) and not torch.cuda.is_available():
        _list_steps(missing, console, title=title, note=note)
        return
    trial.quieten()
    torch.set_num_threads(1)
    # Names of trials whole, within 80 columns: the others wrap.
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for heading in ("seeds", "length", "images\nper s", "loss's\nshare", "estimated\ns per run"):
        table.add_column(heading)
    measured = {} if measured is None else measured
    # Of a trained trial where there is one: it has the backbone that matters.
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
                if step > 0:  # a busy machine can time the long run shorter than the short one
                    speed = f"{arm.batch_size / step:.0f}"
                    share = "not measured" if loss is None else f"{min(1.0, loss / step):.0%}"
            total += seconds * len(of_arm)
            table.add_row(arm.label(), _seeds(of_arm), _length(of_arm[0]), speed, share, f"{seconds:.1f}")
    console.print(table)
    if any(trial.ranks > 1 for trial in missing):
        console.print(
            "Timed in one process; several that share a batch take less where each has a core or GPU of its own."
        )
    wall = total / workers + (10 if missing else 0)
    console.print(
        f"About {wall / 60:.1f} minutes with {workers} workers on as many free cores (steps, augmentation and evaluation timed "
        f"on this machine just now, the evaluation on a few images and scaled up; start-up counted as 10 s). {note}",
        highlight=False,
    )


def _list_steps(missing: Sequence[TrialConfig], console: Console, *, title: str, note: str) -> None:
    """What would run, with everything that is known of it where the device that runs it is not at hand."""
    from varloss_bench.training import estimates  # noqa: PLC0415  (as above)

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
