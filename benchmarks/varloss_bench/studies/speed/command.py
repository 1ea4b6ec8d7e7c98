"""`varloss-bench study speed`: time and memory of the losses against other packages and against a lower bound."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from varloss_bench import messages
from varloss_bench.options import items

SIZES, FULL_SIZES = "32,128,512,2048", "32,128,512,2048,4096,8192,16384,65536"


def speed(  # noqa: PLR0917  (typer calls it, by name)
    sizes: Annotated[str, typer.Option(help=f"Rows per view, comma-separated; default: {SIZES}.")] = "",
    dims: Annotated[str, typer.Option(help="Embedding dimensions, comma-separated.")] = "128",
    groups: Annotated[str, typer.Option(help="Groups of losses, comma-separated; default: all.")] = "",
    full: Annotated[bool, typer.Option("--full", help=f"Sizes {FULL_SIZES}; takes an hour.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto (cuda if available).")] = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the inputs: float32, bfloat16 or float16.")] = "float32",
    clock: Annotated[
        str, typer.Option(help="wall or thread (processor time of one thread, for a busy machine).")
    ] = "wall",
    seconds: Annotated[float, typer.Option(min=0, help="Minimum measuring time per loss and size.")] = 1.0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, each in its own process.")
    ] = True,
    before: Annotated[
        Path | None, typer.Option(help="Another checkout of varloss: time its losses against these instead.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of rows.csv (rows are appended) and of the figure.")] = Path(
        "varloss-runs/speed"
    ),
) -> None:
    """Measure forward and backward time and peak memory, after checking that the implementations agree.

    Losses take turns in short blocks, so a busy machine slows all of them alike: **trust the ratios more than the
    milliseconds**. The floor is the two matrix products and the exponentials that every method needs. Rows are appended to
    `rows.csv`; table and figure show the latest row of each loss, size and dimension.

    Examples:
    - `varloss-bench study speed`

    - `varloss-bench study speed --sizes 4096,8192 --groups "NT-Xent + VRN" --seconds 20`

    - `git worktree add ../old v0.1.0 && varloss-bench study speed --before ../old` asks whether a change made a loss slower.
      It times one thread on the CPU and takes `--sizes`, `--dims` and `--output`; the rows are in `before.csv`.
    """
    import torch

    from varloss_bench.commands import arguments
    from varloss_bench.studies.speed import before as versions
    from varloss_bench.studies.speed import report, run
    from varloss_bench.studies.speed.losses import GROUPS

    console = Console()
    try:
        if full and sizes:
            raise ValueError("give --full or --sizes, not both")
        chosen = items("--groups", groups, str, allow_empty=True) or list(GROUPS)
        if unknown := sorted(set(chosen) - set(GROUPS)):
            raise ValueError(f"unknown group {unknown[0]!r}; there are {', '.join(GROUPS)}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype must be float32, bfloat16 or float16, got {dtype!r}")
        plan = run.Plan(
            sizes=items("--sizes", sizes or (FULL_SIZES if full else SIZES), int),
            dims=items("--dims", dims, int),
            groups=chosen,
            threads=threads,
            device=arguments.resolve_device(device),
            dtype=getattr(torch, dtype),
            seconds=seconds,
            memory=memory,
            clock=clock,
        )
    except ValueError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None
    torch.set_num_threads(threads)
    try:
        if before is not None:
            versions.run(before, plan, output / "before.csv", console)
            return
        run.run(plan, output / "rows.csv", console)
    except (run.DisagreementError, ValueError) as error:
        messages.error(console, error)
        raise typer.Exit(1 if isinstance(error, run.DisagreementError) else 2) from None
    report.report(output, console)
