"""`varloss-bench compare --select`: run the grid on a validation split, then only the chosen arms on the test split."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from varloss_bench import messages
from varloss_bench.compare.present import present
from varloss_bench.compare.result import Comparison
from varloss_bench.compare.sweep import Execution, run_missing
from varloss_bench.measures import METRICS
from varloss_bench.records import same_data
from varloss_bench.records.store import Store, write_atomically
from varloss_bench.report.labels import format_interval
from varloss_bench.report.selection import in_words
from varloss_bench.statistics import selection as select_cells
from varloss_bench.statistics.selection import Plan, Selection

FILE = "selection.json"


class NothingChosenError(RuntimeError):
    """Nothing was chosen on the validation split, so the test split is not read."""


def run_select(plan: Plan, where: Execution, console: Console, *, effect_points: float) -> Comparison:
    """Run the missing trials of the first phase, choose, run those of the second, compare.

    The trials of both phases are in one folder and are found by key, so both phases resume. Each call chooses again from the
    validation records and stores the choice with its inputs. If the test split was read before for another choice, a warning
    is printed and written to the table.

    Raises:
        NothingChosenError: A validation trial has no result, or every candidate failed.
        ValueError: As in `earlier_choices`.
    """
    before = earlier_choices(where.folder)
    validation = plan.validation_trials()
    console.print("\n[bold]Phase 1 of 2: the grid on the validation split[/bold]")
    run_missing(validation, where, console)
    records = Store(where.folder).load(validation).records
    selection = select_cells.choose(validation, records, plan.metric)
    _show_validation(selection, same_data.in_words(same_data.differences(validation, records), where.command), console)
    if any(row.crashed for group in selection.groups for row in group.rows):
        raise NothingChosenError("validation trials without a result; test is not read before the choice is complete")
    if not selection.chosen:
        console.print(Text(in_words(selection, plan.test_seeds)))
        raise NothingChosenError("nothing to confirm on the test split")
    stored = select_cells.to_dict(plan, selection, validation)
    stored["earlier"] = _others(before, stored)
    # Written before test is read, so that a choice whose phase 2 is interrupted is known to have seen results.
    write_atomically(where.folder / FILE, json.dumps(stored, indent=1, sort_keys=True, allow_nan=False) + "\n")
    console.print("\n[bold]Phase 2 of 2: what was chosen, on the test split[/bold]")
    trials, pairs = plan.test_trials(selection.chosen), selection.pairs()
    ran = run_missing(trials, where, console, pairs=pairs, effect_points=effect_points)
    return present(
        trials,
        Store(where.folder),
        console,
        pairs=pairs,
        command=where.command,
        ran=ran.number,
        seconds=ran.seconds,
        effect_points=effect_points,
        selection=stored,
        preface=in_words(selection, plan.test_seeds) + _warning(stored),
        chosen_on=validation,
    )


def _show_validation(selection: Selection, alarm: Sequence[str], console: Console) -> None:
    """Print the validation scores with a line for each cell, and the cells without a result."""
    if alarm:
        messages.say(console, "\n".join(alarm), "bold red")
    console.print(Text(_scores(selection)))
    for group in selection.groups:
        for row in group.rows:
            if row.crashed:
                console.print(
                    f"{row.arm.label()}: no result for seeds {', '.join(map(str, row.crashed))}. Run the command again, or "
                    "remove this cell from the grid: test is not read before the choice is complete.",
                    highlight=False,
                )


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


def earlier_choices(folder: Path) -> list[dict[str, Any]]:
    """The choices for which this folder's test split was read, in order.

    Raises:
        ValueError: The file exists and cannot be read, so earlier choices are unknown.
    """
    path = folder / FILE
    try:
        stored = json.loads(path.read_text())
        last = {**select_cells.what_was_chosen(stored), "validation_seeds": stored["validation_seeds"]}
        return [*stored["earlier"], last]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). It lists the choices for which the test split was read; "
            "move it away to continue without it."
        ) from None


def _others(before: Sequence[dict[str, Any]], stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier choices that differ from the current one."""
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
        "another grid or another metric can change the choice. Only the current choice is shown, and its test is not the first "
        "look at the test split. New test seeds (--first-seed) give a first look."
    )


def _cell(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "none"
    return f"t={cell['temperature']:g}" + (f" + VRN {cell['weight']:g}" if cell["weight"] else "")
