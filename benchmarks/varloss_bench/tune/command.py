"""`varloss-bench tune`: find a VRN weight and a temperature for a data set on validation seeds."""

from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages
from varloss_bench.commands import shell
from varloss_bench.commands.parameters import Config, DryRun, Without, from_fields
from varloss_bench.commands.running import Running
from varloss_bench.config import TrialConfig
from varloss_bench.tune.options import NOT_TUNED, Search


@from_fields
def tune(
    *,
    trial: Annotated[TrialConfig, Without(NOT_TUNED)],
    search: Search,
    running: Annotated[Running, Without({"cluster", "slurm", "resume"})],
    dry_run: DryRun = False,
    config: Config = None,
) -> None:
    """Find a VRN weight and a temperature on the validation split, and the best temperature without VRN.

    Two searches have the same budget, one with VRN and one without, because comparing a tuned method with an untuned one would
    measure the tuning. Optuna proposes candidates (TPE, on logarithmic scales). Asynchronous successive halving stops the worse
    half at each rung. A second seed is trained only for candidates that passed all rungs of the first. The test split is
    not used.

    The cost is printed first. **Run the same command again to resume**: nothing is trained twice, and the result is the same
    as without the interruption. With a larger `--budget` the same search continues.

    It ends with the `varloss-bench compare` command that tests the choice on fresh seeds. Exit status: 0; 1 when no
    candidate finished or a search crashed; 2 for bad input; 130 after Ctrl-C.
    """
    from varloss_bench.records import provenance
    from varloss_bench.tune import run
    from varloss_bench.tune.processes import SearchCrashedError

    console = Console()
    with shell.bad_input(console):
        prepared = run.prepare(trial, search, running, command=provenance.command_line(), writes=not dry_run)
    if dry_run:
        run.show_cost(prepared, console)
        console.print("Nothing was run.")
        return
    try:
        with shell.interrupted(console, f"Finished trainings are in {prepared.folder}."):
            found = run.run(prepared, console)
    except SearchCrashedError as error:
        messages.error(console, f"{error}\nFinished trainings are in {prepared.folder}; the same command resumes.")
        raise typer.Exit(1) from None
    if found.test_with is None:
        raise typer.Exit(1)
