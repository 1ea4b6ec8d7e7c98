"""`varloss-bench compare`: contrastive methods with and without VRN over batch sizes and paired seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from varloss_bench.config import CONTRASTIVE, LR_RULES, TrialConfig, grid

_DEFAULT = TrialConfig()


def compare(  # noqa: PLR0917  (typer calls it, by name)
    method: Annotated[
        str, typer.Option(help=f"Comma-separated list of {', '.join(CONTRASTIVE)}.", rich_help_panel="What is compared")
    ] = "simclr,moco",
    batch_size: Annotated[str, typer.Option(help="Comma-separated list.", rich_help_panel="What is compared")] = "16",
    weight: Annotated[
        str,
        typer.Option(
            help="Weights of VRN, comma-separated; 0 is always among them. Of the order of 1 to 10 on a thousand images, "
            "30 on fifty thousand.",
            rich_help_panel="What is compared",
        ),
    ] = "0,3",
    temperature: Annotated[str, typer.Option(help="Comma-separated list.", rich_help_panel="What is compared")] = "0.5",
    control_temperature: Annotated[
        str,
        typer.Option(
            help="Temperatures to run at weight 0 only: part of what VRN gives, a lower temperature gives too. "
            "An empty string for none.",
            rich_help_panel="What is compared",
        ),
    ] = "0.2",
    seeds: Annotated[
        int,
        typer.Option(
            help="Paired seeds; an interval needs 2, few-label gains 4 to 10.", rich_help_panel="What is compared"
        ),
    ] = 4,
    interval: Annotated[
        bool,
        typer.Option(
            "--interval/--no-interval",
            help="Whether intervals are wanted; without, a single seed is accepted (and settles nothing).",
            rich_help_panel="What is compared",
        ),
    ] = True,
    first_seed: Annotated[
        int, typer.Option(help="Seeds are this one and those after it.", rich_help_panel="What is compared")
    ] = 0,
    data: Annotated[
        str, typer.Option(help="digits (in scikit-learn) or fashion-mnist (see --data-dir).", rich_help_panel="Data")
    ] = _DEFAULT.data,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the original .gz files, for fashion-mnist; Debian's package is found without it.",
            rich_help_panel="Data",
        ),
    ] = None,
    evaluate_on: Annotated[
        str, typer.Option(help="test, or val for choosing weight and temperature.", rich_help_panel="Data")
    ] = _DEFAULT.evaluate_on,
    backbone: Annotated[
        str,
        typer.Option(
            help="small, or any timm model (untrained, made fit for small images).", rich_help_panel="Training"
        ),
    ] = _DEFAULT.backbone,
    epochs: Annotated[int, typer.Option(help="Equal for all trials.", rich_help_panel="Training")] = _DEFAULT.epochs,
    base_lr: Annotated[
        float, typer.Option(help="Learning rate at batch size 256.", rich_help_panel="Training")
    ] = _DEFAULT.base_lr,
    lr_rule: Annotated[
        str, typer.Option(help=f"Over batch size: {', '.join(LR_RULES)}.", rich_help_panel="Training")
    ] = _DEFAULT.lr_rule,
    weight_warmup: Annotated[
        float,
        typer.Option(
            help="Fraction of the steps over which VRN's weight rises from 0; .5 helps large batches with few steps.",
            rich_help_panel="Training",
        ),
    ] = _DEFAULT.weight_warmup,
    fused: Annotated[
        bool,
        typer.Option(
            "--fused/--split", help="Both views in one forward pass, or one each.", rich_help_panel="Training"
        ),
    ] = _DEFAULT.fused,
    queue_size: Annotated[
        int,
        typer.Option(help="MoCo's queue; 0: largest power of two up to half of the data.", rich_help_panel="Training"),
    ] = _DEFAULT.queue_size,
    key_momentum: Annotated[
        float, typer.Option(help="MoCo's momentum of the key encoder.", rich_help_panel="Training")
    ] = _DEFAULT.key_momentum,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto for cuda where there is one.", rich_help_panel="Running")
    ] = "auto",
    workers: Annotated[
        int, typer.Option(help="Processes of one thread each that run trials side by side.", rich_help_panel="Running")
    ] = 2,
    name: Annotated[
        str | None,
        typer.Option(help="Results go to ./varloss-runs/NAME; by default the data set.", rich_help_panel="Running"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Results go exactly here instead.", rich_help_panel="Running")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the trials and measure how long they would take.", rich_help_panel="Running"
        ),
    ] = False,
) -> None:
    """Train with and without VRN, and say what the difference is worth.

    Without arguments: scikit-learn's digits, SimCLR and MoCo v2, batch size 16, temperature .5, VRN weight 0 and 3, a
    control at temperature .2, raw pixels and a random net, 4 paired seeds. No network needed.

    Results are kept trial by trial. **Run the same command again to resume**; add seeds, weights or batch sizes and only
    what is missing is run.

    Examples:
    - `varloss-bench compare --batch-size 16,64,256 --weight 1,3,10 --seeds 10 --name grid`

    - `varloss-bench compare --data fashion-mnist --backbone resnet18 --method simclr --dry-run`

    - `varloss-bench compare --evaluate-on val --first-seed 100` to choose a weight without touching the test split
    """
    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import checks, summary, sweep  # noqa: PLC0415

    checks.check_installed()
    console = Console()
    folder = output or Path("varloss-runs") / (name or data)
    try:
        methods = _items("--method", method, str)
        control_temperatures = _items("--control-temperature", control_temperature, float, allow_empty=True)
        checks.check_methods(methods)
        trials = grid(
            TrialConfig(
                data=data,
                data_dir=str(data_dir.resolve()) if data_dir else None,
                backbone=backbone,
                epochs=epochs,
                base_lr=base_lr,
                lr_rule=lr_rule,
                weight_warmup=weight_warmup,
                fused=fused,
                queue_size=queue_size,
                key_momentum=key_momentum,
                evaluate_on=evaluate_on,
                device=_resolve_device(device),
            ),
            methods=methods,
            batch_sizes=_items("--batch-size", batch_size, int),
            weights=_items("--weight", weight, float),
            temperatures=_items("--temperature", temperature, float),
            control_temperatures=control_temperatures,
            seeds=range(first_seed, first_seed + seeds),
        )
        checks.check_run(seeds=seeds, interval=interval, workers=workers, folder=None if dry_run else folder)
        checks.check_trials(trials)
    except ValueError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    sweep.run_sweep(
        trials,
        folder,
        pairs=summary.grid_pairs(trials, control_temperatures),
        workers=workers,
        dry_run=dry_run,
        console=console,
    )


def _items(option: str, text: str, kind: type, *, allow_empty: bool = False) -> list[Any]:
    """The values of a comma-separated option."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts and not allow_empty:
        raise ValueError(f"{option} needs at least one value, got {text!r}")
    try:
        return [kind(part) for part in parts]
    except ValueError:
        raise ValueError(f"{option} takes {kind.__name__} values separated by commas, got {text!r}") from None


def _resolve_device(device: str) -> str:
    import torch  # noqa: PLC0415

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
