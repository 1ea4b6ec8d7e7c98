"""`varloss-bench compare`: contrastive methods with and without VRN over batch sizes and paired seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varloss_bench.config import CONTRASTIVE, LR_RULES, TrialConfig, grid

if TYPE_CHECKING:
    from rich.console import Console

    from varloss_bench.store import Loaded, Store

_DEFAULT = TrialConfig()


def compare(
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

    from varloss_bench import checks  # noqa: PLC0415

    checks.check_installed()
    console = Console()
    folder = output or Path("varloss-runs") / (name or data)
    try:
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
            methods=_items("--method", method, str),
            batch_sizes=_items("--batch-size", batch_size, int),
            weights=_items("--weight", weight, float),
            temperatures=_items("--temperature", temperature, float),
            control_temperatures=_items("--control-temperature", control_temperature, float, allow_empty=True),
            seeds=range(first_seed, first_seed + seeds),
        )
        checks.check_run(seeds=seeds, interval=interval, workers=workers, folder=folder)
        checks.check_trials(trials)
    except ValueError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(2) from None
    run_compare(trials, folder, workers=workers, dry_run=dry_run, console=console)


def run_compare(trials: Sequence[TrialConfig], folder: Path, *, workers: int, dry_run: bool, console: Console) -> None:
    """Run what is missing of these trials, then show and store table, verdict and figure of all of them."""
    from varloss_bench import provenance, runner  # noqa: PLC0415
    from varloss_bench.progress import SweepProgress  # noqa: PLC0415
    from varloss_bench.store import Store  # noqa: PLC0415

    store = Store(folder)
    loaded = store.load(trials)
    for path, reason in loaded.corrupt.items():
        console.print(f"[yellow]corrupt result, will be run again:[/yellow] {path}: {reason}", highlight=False)
    missing = [trial for trial in trials if not loaded.done(trial)]
    console.print(
        f"{len(trials)} trials, {len(trials) - len(missing)} of them already in {folder}; {len(missing)} to run.",
        highlight=False,
    )
    if dry_run:
        _dry_run(missing, workers, console)
        return
    command = provenance.command_line()
    started = time.monotonic()
    if missing:
        try:
            with SweepProgress(console, missing) as progress:
                for event in runner.run_trials(missing, folder, command, workers):
                    progress.update(event)
        except KeyboardInterrupt:
            console.print(
                f"Interrupted; every finished trial is in {folder}. The same command resumes.", highlight=False
            )
            raise typer.Exit(130) from None
    crashed = _present(trials, store, console, command=command, ran=len(missing), seconds=time.monotonic() - started)
    if crashed:
        raise typer.Exit(1)


def _present(
    trials: Sequence[TrialConfig], store: Store, console: Console, *, command: list[str], ran: int, seconds: float
) -> int:
    """Print and store the summary; returns how many trials have no result."""
    from varloss_bench import figure, provenance, report_text, summary  # noqa: PLC0415
    from varloss_bench.store import write_atomically  # noqa: PLC0415

    loaded = store.load(trials)
    trained = next(trial for trial in trials if trial.arm.trained)
    result = summary.summarise(trials, loaded.records)
    content = {
        "command": command,
        "environment": provenance.environment(),
        "confounds": provenance.confounds(trained),
        "environments_differ": _environments_differ(loaded),
        "trials_run": ran,
        "seconds": round(seconds, 1),
        **summary.to_dict(result),
    }
    write_atomically(store.folder / "summary.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    text = report_text.plain_text(result, trained)
    write_atomically(store.folder / "table.txt", f"$ {' '.join(command)}\n\n{text}")
    write_atomically(store.folder / "figure.png", figure.draw(result, trained))
    console.print(report_text.render(result, trained))
    if content["environments_differ"]:
        console.print(
            "[yellow]These rows were not all made by the same versions on the same machine[/yellow] (see each trial's "
            "record); an empty --name makes them anew."
        )
    console.print(
        f"{ran} trials run in {seconds:.0f} s. Table, figure and records: {store.folder}/",
        highlight=False,
        soft_wrap=True,
    )
    return sum(len(row.crashed) for row in result.rows)


def _environments_differ(loaded: Loaded) -> bool:
    """Whether the records come from different versions or machines; commits are left out, they differ all the time."""
    seen = {
        json.dumps([record["environment"][part] for part in ("versions", "machine")], sort_keys=True)
        for record in loaded.records.values()
    }
    return len(seen) > 1


def _dry_run(missing: Sequence[TrialConfig], workers: int, console: Console) -> None:
    """List what would run and estimate its time from a few measured steps per method and batch size."""
    import logging  # noqa: PLC0415
    import warnings  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from varloss_bench import train  # noqa: PLC0415

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table("trial", "seeds", "epochs", "estimated s/run", title="to run")
    measured: dict[tuple[str, int, bool], float] = {}
    total = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arm in dict.fromkeys(trial.arm for trial in missing):
            of_arm = [trial for trial in missing if trial.arm == arm]
            seconds = train.EVALUATION_SECONDS
            if arm.trained:
                kind = (arm.method, arm.batch_size, bool(arm.weight))
                if kind not in measured:
                    measured[kind] = train.measure_step_seconds(of_arm[0])
                seconds += measured[kind] * train.number_of_steps(of_arm[0])
            total += seconds * len(of_arm)
            seeds = ",".join(str(trial.seed) for trial in of_arm)
            table.add_row(arm.label(), seeds, str(of_arm[0].epochs), f"{seconds:.1f}")
    console.print(table)
    wall = total / workers + (10 if missing else 0)
    console.print(
        f"About {wall / 60:.1f} minutes with {workers} workers on as many free cores (steps timed one after another on "
        "this machine just now, start-up counted as 10 s). Nothing was run.",
        highlight=False,
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
