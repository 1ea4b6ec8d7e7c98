"""Make a pair of searches from its options: check it, estimate its cost, run it."""

import dataclasses
import io
import json
import shlex
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from varloss_bench import messages
from varloss_bench.commands import arguments, checks, config_file
from varloss_bench.commands.running import Running
from varloss_bench.config import TrialConfig
from varloss_bench.options import as_text, as_typed, check
from varloss_bench.records import provenance, store
from varloss_bench.training import estimates
from varloss_bench.training.trial import quieten
from varloss_bench.tune import processes, report
from varloss_bench.tune.options import NOT_TUNED, Search
from varloss_bench.tune.report import BASELINE, WITH_VRN
from varloss_bench.tune.result import Tuning
from varloss_bench.tune.search import Candidate, Outcome, Space
from varloss_bench.tune.train import Plan

# Number of arms of a usual grid, 4 weights x 4 temperatures; the printed cost is compared with it.
GRID_ARMS = 16


@dataclass(frozen=True)
class Prepared:
    """A pair of searches whose options are checked."""

    tasks: dict[str, processes.Task]
    folder: Path
    command: list[str]
    workers: int

    @property
    def task(self) -> processes.Task:
        """The search with VRN; the search without VRN has the same plan and budget."""
        return self.tasks[WITH_VRN]


def prepare(
    trial: TrialConfig, search: Search, running: Running, *, command: list[str] | None = None, writes: bool = True
) -> Prepared:
    """Check everything that can fail before a net is trained.

    Args:
        trial: As in `tune`, like the next two.
        search: As in `tune`.
        running: As in `tune`.
        command: The user's command line; by default the equivalent command.
        writes: Whether to make the folder of the results.

    Raises:
        ValueError: An option is out of range or conflicts with another; the message names the option.
    """
    checks.check_installed("optuna")
    trial, search, running = as_typed(trial), as_typed(search), as_typed(running)
    checks.check_unused(trial, NOT_TUNED, "tune does not accept them")
    base = dataclasses.replace(arguments.resolve(trial), seed=search.first_seed, evaluate_on="val")
    for asked in (base, search, running):
        check(asked)
    checks.check_choices(base, [base.method])
    checks.check_trials([dataclasses.replace(base, seed=base.seed + number) for number in range(search.seeds)])
    folder = running.folder(f"{arguments.folder_name(trial.data)}-tune")
    if writes:
        checks.check_folder(folder)
    words = ["varloss-bench", "tune", *config_file.command_words(search, trial, running)]
    return Prepared(make_tasks(base, search), folder, command or words, running.workers)


def make_tasks(base: TrialConfig, search: Search) -> dict[str, processes.Task]:
    """Both searches, which differ only in VRN.

    Raises:
        ValueError: Rungs, ranges or budget are invalid.
    """
    rungs = list(search.rungs) or sorted({epochs for epochs in (base.epochs // 4, base.epochs // 2) if epochs >= 1})
    if rungs != sorted(set(rungs)) or not all(1 <= rung < base.epochs for rung in rungs):
        raise ValueError(f"--rungs must increase and lie from 1 to below the {base.epochs} epochs, got {rungs}")
    if search.budget < search.seeds:
        raise ValueError(
            f"--budget must be at least the {search.seeds} full trainings of one candidate, got {search.budget}"
        )
    weights = _range("--weight-range", search.weight_range)
    temperatures = _range("--temperature-range", search.temperature_range)
    plan = Plan(base, search.seeds, tuple(rungs), search.metric)

    def first(*candidates: Candidate) -> tuple[Candidate, ...]:
        return tuple(
            c
            for c in candidates
            if temperatures[0] <= c.temperature <= temperatures[1]
            and (not c.weight or weights[0] <= c.weight <= weights[1])
        )

    # Good values from small studies come first, so that a search that ends early has tried them.
    with_vrn = Space(weights, temperatures, first(Candidate(3.0, 0.5), Candidate(3.0, 0.2)))
    without = Space(None, temperatures, first(Candidate(0.0, 0.5), Candidate(0.0, 0.2)))
    epochs = search.budget * base.epochs
    return {
        WITH_VRN: processes.Task(with_vrn, plan, epochs, search.search_seed),
        BASELINE: processes.Task(without, plan, epochs, search.search_seed),
    }


def _range(option: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not 0 < values[0] < values[1] < float("inf"):
        raise ValueError(f"{option} must be two increasing numbers greater than 0, got {as_text(values)!r}")
    return values[0], values[1]


def show_cost(prepared: Prepared, console: Console) -> None:
    """Print epochs, candidates, and an estimate of the minutes from steps and an evaluation that are timed now."""
    quieten()
    torch.set_num_threads(1)
    task, side_by_side = prepared.task, min(prepared.workers, 2)
    plan, costs = task.plan, task.plan.costs
    fewest, most = task.budget // costs[-1], task.budget // costs[0]
    console.print(
        f"Two searches of {task.budget} epochs each at most, {fewest} to {most} candidates each, scored after "
        f"{', '.join(map(str, costs))} epochs over {messages.counted(plan.seeds, 'seed')}: {2 * task.budget} epochs. "
        f"A grid of {GRID_ARMS} arms on the same seeds: {GRID_ARMS * costs[-1]}.",
        highlight=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluation = estimates.measure_evaluation_seconds(plan.base)
        steps = [estimates.measure_step(dataclasses.replace(plan.base, weight=weight))[0] for weight in (0.0, 3.0)]
    per_epoch = estimates.number_of_steps(plan.base) / plan.base.epochs
    seconds = sum(task.budget * per_epoch * step + task.budget / costs[0] * evaluation for step in steps)
    console.print(
        f"About {(seconds / side_by_side + 10) / 60:.1f} minutes with {side_by_side} worker(s) on as many free cores "
        "(steps and evaluation timed just now, start-up counted as 10 s); less if some results exist already.",
        highlight=False,
    )


def run(prepared: Prepared, console: Console) -> Tuning:
    """Print the cost, search, print and store the result.

    Raises:
        SearchCrashedError: A search failed.
    """
    show_cost(prepared, console)
    started = time.monotonic()
    outcomes = _search(prepared, console)
    task = prepared.task
    found = Tuning(prepared.folder, outcomes, task.plan, task.budget)
    _present(found, prepared.command, console, seconds=time.monotonic() - started)
    return found


def _search(prepared: Prepared, console: Console) -> dict[str, list[Outcome]]:
    """Run both searches with a progress bar each, or with a line per candidate outside a terminal."""
    tasks = prepared.tasks
    found: dict[str, list[Outcome]] = {search: [] for search in tasks}
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} epochs, {task.fields[candidates]} candidates"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    rows = {search: bar.add_task(search, total=task.budget, candidates=0) for search, task in tasks.items()}
    try:
        with bar:
            for event in processes.run_all(tasks, prepared.folder, prepared.command, prepared.workers):
                if event.outcome is None:
                    bar.advance(rows[event.search], event.epochs)
                    continue
                found[event.search].append(event.outcome)
                spent = sum(outcome.epochs for outcome in found[event.search])
                bar.update(rows[event.search], completed=spent, candidates=len(found[event.search]))
                if not console.is_terminal:
                    messages.say(console, f"{event.search}: {_line(event.outcome)}")
    except KeyboardInterrupt:
        messages.say(console, f"Interrupted; finished trainings are in {prepared.folder}. The same command resumes.")
        raise
    return found


def _line(outcome: Outcome) -> str:
    scores = ", ".join(f"{score:.2f}" for score in outcome.scores)
    candidate = outcome.candidate
    weight = f"weight {candidate.weight:g}, " if candidate.weight else ""
    return f"{weight}t {candidate.temperature:g}: {scores or '-'} ({outcome.state}{': ' if outcome.reason else ''}{outcome.reason})"


def _present(found: Tuning, command: list[str], console: Console, *, seconds: float) -> None:
    """Write tables, verdict and the next command to the terminal, tune.txt and tune.json."""
    text = io.StringIO()
    for target in (console, Console(width=100, color_system=None, file=text, force_terminal=False)):
        for search, outcomes in found.outcomes.items():
            target.print(report.table(search, outcomes, found.plan.costs))
        target.print(Text(found.verdict))
        if found.test_with:
            target.print("Test this choice on fresh seeds:")
            messages.say(target, f"  {found.test_with}")
    store.write_atomically(found.folder / "tune.txt", f"$ {shlex.join(command)}\n\n{text.getvalue()}")
    content = report.to_dict(found.outcomes, found.plan, found.budget) | {
        "command": command,
        "config": found.plan.base.to_dict(),
        "environment": provenance.environment(),
        "seconds": round(seconds, 1),
    }
    store.write_atomically(found.folder / "tune.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    messages.say(console, f"{seconds:.0f} s. Trials, tune.txt and tune.json: {found.folder}/")
