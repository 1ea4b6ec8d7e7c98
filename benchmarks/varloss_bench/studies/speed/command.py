"""`varloss-bench study speed`: time and memory of the losses against other packages' and against what any method needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SIZES, FULL_SIZES = "32,128,512,2048", "32,128,512,2048,4096,8192,16384,65536"


def speed(  # noqa: PLR0917  (typer calls it, by name)
    sizes: Annotated[str, typer.Option(help=f"Rows per view, comma-separated; by default {SIZES}.")] = "",
    dims: Annotated[str, typer.Option(help="Embedding dimensions, comma-separated.")] = "128",
    groups: Annotated[str, typer.Option(help="Losses, comma-separated; by default all.")] = "",
    full: Annotated[bool, typer.Option("--full", help=f"Sizes {FULL_SIZES}: an hour.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for cuda where there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 inputs.")] = "float32",
    clock: Annotated[
        str, typer.Option(help="wall, or thread: time on a processor, for one thread on a busy machine.")
    ] = "wall",
    seconds: Annotated[float, typer.Option(help="Time for each loss at each size, at least.")] = 1.0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether to measure memory, in a process for each figure.")
    ] = True,
    output: Annotated[Path, typer.Option(help="Folder of rows.csv (appended to) and of the picture.")] = Path(
        "varloss-runs/speed"
    ),
) -> None:
    """Measure forward+backward time and peak memory, after checking that all agree on value and gradient.

    Losses take turns in short blocks, so that a machine that is busy with other things slows all of them alike: **trust the
    ratios more than the milliseconds**. The floor is the two matrix products and the exponentials that any method needs.
    Rows are appended to `rows.csv`; the table and the picture show the latest of each.

    Examples:
    - `varloss-bench study speed`

    - `varloss-bench study speed --sizes 4096,8192 --groups "NT-Xent + VRN" --seconds 20`
    """
    import torch  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.commands import arguments  # noqa: PLC0415
    from varloss_bench.studies.speed import report as speed_report  # noqa: PLC0415
    from varloss_bench.studies.speed import run as speed_run  # noqa: PLC0415
    from varloss_bench.studies.speed.losses import GROUPS  # noqa: PLC0415

    console = Console()
    try:
        if full and sizes:
            raise ValueError("give --full or --sizes, not both")
        chosen = arguments.items("--groups", groups, str, allow_empty=True) or list(GROUPS)
        if unknown := sorted(set(chosen) - set(GROUPS)):
            raise ValueError(f"unknown group {unknown[0]!r}; there are {', '.join(GROUPS)}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype must be float32, bfloat16 or float16, got {dtype!r}")
        plan = speed_run.Plan(
            sizes=arguments.items("--sizes", sizes or (FULL_SIZES if full else SIZES), int),
            dims=arguments.items("--dims", dims, int),
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
        speed_run.run(plan, output / "rows.csv", console)
    except speed_run.DisagreementError as error:
        messages.error(console, error)
        raise typer.Exit(1) from None
    speed_report.report(output, console)
