"""Make a comparison from its options: check it, estimate its cost, run it."""

from dataclasses import dataclass
from importlib import import_module

from rich.console import Console

from varloss_bench.commands import arguments, checks, config_file
from varloss_bench.commands.running import Running
from varloss_bench.compare import select
from varloss_bench.compare.options import Grid, Selection
from varloss_bench.compare.present import present
from varloss_bench.compare.result import Comparison
from varloss_bench.compare.sweep import Execution, missing_of, run_missing
from varloss_bench.config import ARM_AND_SEED, TrialConfig
from varloss_bench.options import as_typed, check
from varloss_bench.records.store import Store
from varloss_bench.statistics import summary
from varloss_bench.statistics.selection import Plan


@dataclass(frozen=True)
class Prepared:
    """A comparison whose options are checked.

    Attributes:
        trials: The grid on the test split.
        plan: The plan of the selection, if there is one; it determines which trials run.
        grid: The requested grid.
        where: Workers and folder.
    """

    trials: list[TrialConfig]
    plan: Plan | None
    grid: Grid
    where: Execution


def prepare(
    trial: TrialConfig,
    grid: Grid,
    selection: Selection | None,
    running: Running,
    *,
    command: list[str] | None = None,
    writes: bool = True,
) -> Prepared:
    """Check everything that can fail before a trial runs.

    Args:
        trial: As in `compare`, like the next three.
        grid: As in `compare`.
        selection: As in `compare`.
        running: As in `compare`.
        command: The user's command line; by default the equivalent command.
        writes: Whether to make the folder of the results.

    Raises:
        ValueError: An option is out of range or conflicts with another; the message names the option.
    """
    checks.check_installed()
    trial, grid, running = as_typed(trial), as_typed(grid), as_typed(running)
    selection = selection and as_typed(selection)
    checks.check_unused(trial, ARM_AND_SEED, "set it in the grid")
    for asked in (grid, trial, running, *([selection] if selection else [])):
        check(asked)
    base = arguments.resolve(trial, elsewhere=running.cluster == "slurm")
    checks.check_choices(base, grid.methods)
    cluster = checks.check_cluster(running.cluster, running.slurm, base)
    trials = grid.trials(base)
    plan = _plan(base, grid, selection) if selection else None
    folder = running.folder(arguments.folder_name(trial.data))
    checks.check_seeds(grid.seeds, interval=grid.interval)
    if writes:
        checks.check_folder(folder)
    checks.check_trials(trials + plan.validation_trials() if plan else trials)
    if writes and not running.resume:
        checks.check_fresh(folder)
    chosen = [selection] if selection else []
    words = ["varloss-bench", "compare", *config_file.command_words(grid, *chosen, base, running)]
    where = Execution(
        folder=folder,
        command=command or words + (["--select"] if selection else []),
        workers=running.workers,
        cluster=cluster,
        options=config_file.dump(grid, *chosen, base, running) + ("select: true\n" if selection else ""),
    )
    return Prepared(trials, plan, grid, where)


def _plan(base: TrialConfig, grid: Grid, selection: Selection) -> Plan:
    return Plan(
        base,
        grid.axes,
        metric=selection.by,
        validation_seeds=range(selection.first_seed, selection.first_seed + selection.seeds),
        test_seeds=grid.test_seeds,
    )


def show_cost(prepared: Prepared, console: Console, *, note: str = "Nothing was run.") -> None:
    """Print the trials that would run and their estimated time."""
    # Imported here: a measurement needs Lightning, and the process of a sweep needs it for nothing else.
    cost = import_module("varloss_bench.compare.cost")
    where = prepared.where
    if prepared.plan:
        select.earlier_choices(where.folder)
        cost.show_phases(prepared.plan, where, console, note=note)
    else:
        cost.show_cost(missing_of(prepared.trials, where.folder, console), where.workers, console, note=note)


def run(prepared: Prepared, console: Console) -> Comparison:
    """Run the missing trials; print and store table, verdict and figure. With a selection, print its cost first.

    Raises:
        NothingChosenError: Nothing was chosen on the validation split.
    """
    grid, where, trials = prepared.grid, prepared.where, prepared.trials
    if prepared.plan:
        show_cost(prepared, console, note="")
        return select.run_select(prepared.plan, where, console, effect_points=grid.effect)
    pairs = summary.grid_pairs(trials, grid.control_temperatures)
    ran = run_missing(trials, where, console, pairs=pairs, effect_points=grid.effect)
    return present(
        trials,
        Store(where.folder),
        console,
        pairs=pairs,
        command=where.command,
        ran=ran.number,
        seconds=ran.seconds,
        effect_points=grid.effect,
    )
