"""`varloss-bench compare`: contrastive methods with and without VRN over batch sizes and paired seeds."""

from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages
from varloss_bench.commands import shell
from varloss_bench.commands.parameters import Config, DryRun, Without, from_fields
from varloss_bench.commands.running import Running
from varloss_bench.compare.options import Grid, Selection
from varloss_bench.config import ARM_AND_SEED, TrialConfig

_Select = Annotated[
    bool,
    typer.Option(
        "--select",
        help="Choose temperature and weight first: run the grid on the validation split with separate seeds, then only the "
        "best baseline and the best VRN of each method and batch size on the test split.",
        rich_help_panel="Choosing on validation",
        show_default=False,
    ),
]
_DumpConfig = Annotated[
    bool,
    typer.Option(
        "--dump-config",
        help="Print the options in effect as a file for --config, and run nothing.",
        rich_help_panel="Running",
        show_default=False,
    ),
]


@from_fields
def compare(
    *,
    grid: Grid,
    select: _Select = False,
    selection: Selection,
    trial: Annotated[TrialConfig, Without(ARM_AND_SEED)],
    running: Running,
    dry_run: DryRun = False,
    config: Config = None,
    dump_config: _DumpConfig = False,
) -> None:
    """Train with and without VRN and test whether the difference is significant.

    Without arguments: scikit-learn's digits, SimCLR and MoCo v2, batch size 16, temperature 0.5, VRN weights 0 and 3, a
    control at temperature 0.2, raw pixels and a random net, 4 paired seeds. No network access is needed.

    Each trial's result is kept. **Run the same command again to resume.** After adding seeds, weights or batch sizes, only the
    missing trials run.

    Exit status: 0; 1 when a trial has no result; 2 for bad input; 130 after Ctrl-C.

    Examples:
    - `varloss-bench compare --batch-size 16,64,256 --weight 1,3,10 --seeds 10 --name grid`

    - `varloss-bench compare --data fashion-mnist --backbone resnet18 --method simclr --dry-run`

    - `varloss-bench compare --select --temperature 0.1,0.2,0.5,1 --weight 1,3,10 --seeds 10` to choose on the validation
      split and confirm on the test split

    - `varloss-bench compare --batch-size 16,64,256 --steps 620` for equal steps instead of equal epochs

    - `varloss-bench compare --framework solo --method simclr --epochs 5` to train with an unmodified solo-learn

    - `varloss-bench compare --config study.yaml --seeds 10`: the command line wins over the file
    """
    from varloss_bench.compare import run
    from varloss_bench.compare.select import NothingChosenError
    from varloss_bench.records import provenance

    console = Console()
    with shell.bad_input(console):
        prepared = run.prepare(
            trial,
            grid,
            selection if select else None,
            running,
            command=provenance.command_line(),
            writes=not (dry_run or dump_config),
        )
    if dump_config:
        typer.echo(prepared.where.options, nl=False)
        return
    if dry_run:
        run.show_cost(prepared, console)
        return
    try:
        with shell.interrupted(console, f"Every trial finished until now is in {prepared.where.folder}."):
            found = run.run(prepared, console)
    except NothingChosenError as error:
        messages.error(console, error)
        raise typer.Exit(1) from None
    if found.crashed:
        raise typer.Exit(1)
