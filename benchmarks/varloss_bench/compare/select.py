"""`varloss-bench compare --select`: the grid on a validation split, then only what it chose on the test split."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from varloss_bench import messages
from varloss_bench.compare import sweep
from varloss_bench.config import TrialConfig
from varloss_bench.execution.cluster import Cluster
from varloss_bench.measures import METRICS
from varloss_bench.records import same_data
from varloss_bench.records.store import Store, write_atomically
from varloss_bench.report.labels import format_interval
from varloss_bench.report.selection import in_words
from varloss_bench.statistics import selection as select_cells
from varloss_bench.statistics.selection import Plan, Selection

FILE = "selection.json"


def run_select(
    plan: Plan,
    folder: Path,
    *,
    effect_points: float,
    workers: int,
    dry_run: bool,
    console: Console,
    options: str = "",
    cluster: Cluster | None = None,
) -> None:
    """Print what both phases cost, run what is missing of the first, choose, run what is missing of the second, compare.

    Trials of both phases lie in one folder and are found by key, so both resume. The choice is made anew from the
    validation records each time and kept with all that went into it; one that differs from an earlier one that test was
    read for is announced, in the table too.
    """
    validation = plan.validation_trials()
    before = _read(folder, console)
    _costs(plan, validation, folder, workers=workers, dry_run=dry_run, console=console)
    if dry_run:
        return
    console.print("\n[bold]Phase 1 of 2: the grid on the validation split[/bold]")
    sweep.run_sweep(
        validation,
        folder,
        pairs=[],
        workers=workers,
        dry_run=False,
        console=console,
        options=options,
        cluster=cluster,
        show=partial(_show_validation, metric=plan.metric),
    )
    selection = select_cells.choose(validation, Store(folder).load(validation).records, plan.metric)
    if not selection.chosen:
        console.print(Text(in_words(selection, plan.test_seeds)))
        messages.error(console, "nothing to confirm on the test split")
        raise typer.Exit(1)
    stored = select_cells.to_dict(plan, selection, validation)
    stored["earlier"] = _earlier(before, stored)
    # Written before test is read: a choice that was cut short in the middle of phase 2 has been seen all the same.
    write_atomically(folder / FILE, json.dumps(stored, indent=1, sort_keys=True, allow_nan=False) + "\n")
    preface = in_words(selection, plan.test_seeds) + _warning(stored)
    console.print("\n[bold]Phase 2 of 2: what was chosen, on the test split[/bold]")
    sweep.run_sweep(
        plan.test_trials(selection.chosen),
        folder,
        pairs=selection.pairs(),
        workers=workers,
        dry_run=False,
        console=console,
        effect_points=effect_points,
        options=options,
        cluster=cluster,
        show=partial(sweep.present, selection=stored, preface=preface, chosen_on=validation),
    )


def _costs(
    plan: Plan, validation: Sequence[TrialConfig], folder: Path, *, workers: int, dry_run: bool, console: Console
) -> None:
    """What is still to run of both phases, and for how long. Of the second only how much is known before the first is done."""
    loaded = Store(folder).load(validation)
    missing = [trial for trial in validation if not loaded.done(trial)]
    if missing:
        test, title = plan.most_test_trials(), "phase 2, test split, at most (stand-ins for what will be chosen)"
    else:
        chosen = select_cells.choose(validation, loaded.records, plan.metric).chosen
        test, title = plan.test_trials(chosen), "phase 2, test split"
        done = Store(folder).load(test)
        test = [trial for trial in test if not done.done(trial)]
    console.print(
        f"Phase 1: {len(validation)} trials on val, {len(missing)} to run. Phase 2: {'at most ' if missing else ''}{len(test)} "
        "to run.",
        highlight=False,
    )
    measured: sweep.Measured = {}
    note = "Nothing was run." if dry_run else ""
    for trials, name in ((missing, "phase 1, validation split"), (test, title)):
        if trials:
            sweep.show_cost(trials, workers, console, title=name, note=note, measured=measured)


def _show_validation(
    trials: Sequence[TrialConfig], store: Store, console: Console, *, metric: str, command: list[str], **_: Any
) -> int:
    """The validation scores, a line for each cell; returns how many trials have no result, with which phase 2 must wait."""
    records = store.load(trials).records
    if alarm := same_data.in_words(same_data.differences(trials, records), command):
        messages.say(console, "\n".join(alarm), "bold red")
    selection = select_cells.choose(trials, records, metric)
    console.print(Text(_scores(selection)))
    crashed = [row for group in selection.groups for row in group.rows if row.crashed]
    for row in crashed:
        console.print(
            f"{row.arm.label()}: no result for seeds {', '.join(map(str, row.crashed))}. Run the command again, or leave this "
            "cell out: test is not read before the choice is complete.",
            highlight=False,
        )
    return sum(len(row.crashed) for row in crashed)


def _scores(selection: Selection) -> str:
    lines = [f"{METRICS[selection.metric].title} on validation, mean over {len(selection.seeds)} seeds:"]
    for group in selection.groups:
        lines.append(group.rows[0].arm.group_label())
        chosen = group.chosen or ()
        for row in group.rows:
            score = format_interval(row.interval(selection.metric), METRICS[selection.metric])
            mark = "  <- chosen" if row.arm in chosen else ""
            lines.append(f"  {row.arm.short_label():<18} {row.failure or score}{mark}")
    return "\n".join(lines)


def _read(folder: Path, console: Console) -> list[dict[str, Any]]:
    """The choices that this folder's test split was read for, the last one last.

    Raises:
        typer.Exit: The file is there and cannot be read: what was seen before would be forgotten.
    """
    path = folder / FILE
    try:
        stored = json.loads(path.read_text())
        last = {**select_cells.what_was_chosen(stored), "validation_seeds": stored["validation_seeds"]}
        return [*stored["earlier"], last]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        messages.error(
            console,
            f"{path} cannot be read ({type(error).__name__}: {error}). It says for which choices the test split was read; "
            "move it away to go on without.",
        )
        raise typer.Exit(2) from None


def _earlier(before: Sequence[dict[str, Any]], stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of them that are not the present one."""
    now = select_cells.what_was_chosen(stored)
    return [choice for choice in before if {name: choice[name] for name in now} != now]


def _warning(stored: dict[str, Any]) -> str:
    earlier = stored["earlier"]
    if not earlier:
        return ""
    cells = "; ".join(
        f"{group}: {' and '.join(_cell(side) for side in sides.values())}"
        for group, sides in earlier[-1]["test_cells"].items()
    )
    return (
        f"\nWARNING: the test split was read before for {len(earlier)} other choice{'s' if len(earlier) > 1 else ''}, the last "
        f"made with validation seeds {', '.join(map(str, earlier[-1]['validation_seeds']))} ({cells}). More validation seeds, "
        "another grid or another metric may choose otherwise; what is shown is the present choice only, and its test is no "
        "longer the first look. Fresh test seeds (--first-seed) make it one."
    )


def _cell(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "none"
    return f"t={cell['temperature']:g}" + (f" + VRN {cell['weight']:g}" if cell["weight"] else "")
