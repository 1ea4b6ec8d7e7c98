"""`varloss-bench compare`: contrastive methods with and without VRN over batch sizes and paired seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from varloss_bench.commands import arguments, options
from varloss_bench.commands.config_file import dump, given_on_the_command_line
from varloss_bench.config import TrialConfig, grid

_DEFAULT = TrialConfig()


# Options that are fields of a trial are read from the context, all at once: `arguments.base_config`.
def compare(  # noqa: PLR0917  (typer calls it, by name)
    context: typer.Context,
    method: options.Method = "simclr,moco",
    batch_size: options.BatchSize = "16",
    weight: options.Weight = "0,3",
    temperature: options.Temperature = "0.5",
    control_temperature: options.ControlTemperature = "0.2",
    seeds: options.Seeds = 4,
    interval: options.Interval = True,
    first_seed: options.FirstSeed = 0,
    effect: options.Effect = 0.5,
    select: options.Select = False,
    select_by: options.SelectBy = "few_label_probe",
    select_seeds: options.SelectSeeds = 3,
    select_first_seed: options.SelectFirstSeed = 10000,
    data: options.Data = _DEFAULT.data,
    data_dir: options.DataDir = None,
    num_train: options.NumTrain = None,
    num_val: options.NumVal = None,
    num_test: options.NumTest = None,
    official_test: options.OfficialTest = _DEFAULT.official_test,
    image_size: options.ImageSize = None,
    evaluate_on: options.EvaluateOn = _DEFAULT.evaluate_on,
    framework: options.Framework = _DEFAULT.framework,
    backbone: options.Backbone = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    base_lr: options.BaseLr = _DEFAULT.base_lr,
    lr_rule: options.LrRule = _DEFAULT.lr_rule,
    warmup: options.Warmup = _DEFAULT.warmup,
    weight_decay: options.WeightDecay = _DEFAULT.weight_decay,
    hidden_dim: options.HiddenDim = _DEFAULT.hidden_dim,
    output_dim: options.OutputDim = _DEFAULT.output_dim,
    weight_warmup: options.WeightWarmup = _DEFAULT.weight_warmup,
    negatives: options.Negatives = None,
    head_batch_norm: options.HeadBatchNorm = None,
    fused: options.Fused = None,
    queue_size: options.QueueSize = _DEFAULT.queue_size,
    key_momentum: options.KeyMomentum = _DEFAULT.key_momentum,
    vrn_against: options.VrnAgainst = _DEFAULT.vrn_against,
    precision: options.Precision = _DEFAULT.precision,
    device: options.Device = "auto",
    devices: options.Devices = _DEFAULT.devices,
    nodes: options.Nodes = _DEFAULT.nodes,
    strategy: options.Strategy = _DEFAULT.strategy,
    workers: options.Workers = 2,
    cluster: options.Cluster = None,
    slurm: options.Slurm = "",
    name: options.Name = None,
    output: options.Output = None,
    resume: options.Resume = True,
    dry_run: options.DryRun = False,
    config: options.Config = None,
    dump_config: options.DumpConfig = False,
) -> None:
    """Train with and without VRN, and say what the difference is worth.

    Without arguments: scikit-learn's digits, SimCLR and MoCo v2, batch size 16, temperature .5, VRN weight 0 and 3, a
    control at temperature .2, raw pixels and a random net, 4 paired seeds. No network needed.

    Results are kept trial by trial. **Run the same command again to resume**; add seeds, weights or batch sizes and only
    what is missing is run.

    Examples:
    - `varloss-bench compare --batch-size 16,64,256 --weight 1,3,10 --seeds 10 --name grid`

    - `varloss-bench compare --data fashion-mnist --backbone resnet18 --method simclr --dry-run`

    - `varloss-bench compare --select --temperature .1,.2,.5,1 --weight 1,3,10 --seeds 10` to choose on the validation split
      and confirm on the test split

    - `varloss-bench compare --batch-size 16,64,256 --steps 620` for equal steps instead of equal epochs

    - `varloss-bench compare --framework solo --method simclr --epochs 5` trained by an unmodified solo-learn

    - `varloss-bench compare --config study.yaml --seeds 10`, the command line winning over the file
    """
    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.commands import checks  # noqa: PLC0415
    from varloss_bench.compare import select as select_run  # noqa: PLC0415
    from varloss_bench.compare import sweep  # noqa: PLC0415
    from varloss_bench.statistics import summary  # noqa: PLC0415
    from varloss_bench.statistics.selection import Plan  # noqa: PLC0415

    checks.check_installed()
    console = Console()
    folder = output or Path("varloss-runs") / (name or arguments.folder_name(data))
    try:
        epochs, steps = _length(context, epochs, steps)
        methods = arguments.items("--method", method, str)
        control_temperatures = arguments.items("--control-temperature", control_temperature, float, allow_empty=True)
        base = arguments.base_config(context.params, elsewhere=cluster == "slurm", epochs=epochs or 0, steps=steps or 0)
        checks.check_methods(methods)
        checks.check_choices(base, methods)
        jobs = checks.check_cluster(cluster, slurm, base)
        arms: dict[str, Any] = {
            "methods": methods,
            "batch_sizes": arguments.items("--batch-size", batch_size, int),
            "weights": arguments.items("--weight", weight, float),
            "temperatures": arguments.items("--temperature", temperature, float),
            "control_temperatures": control_temperatures,
        }
        test_seeds = range(first_seed, first_seed + seeds)
        trials = grid(base, **arms, seeds=test_seeds)
        plan = None
        if select:
            validation_seeds = range(select_first_seed, select_first_seed + select_seeds)
            plan = Plan(base, **arms, metric=select_by, validation_seeds=validation_seeds, test_seeds=test_seeds)
        checks.check_run(
            seeds=seeds, interval=interval, workers=workers, folder=None if dry_run or dump_config else folder
        )
        if not effect > 0:
            raise ValueError(f"--effect must be greater than 0, got {effect:g}")
        checks.check_trials(trials + plan.validation_trials() if plan else trials)
        effective = dump(
            context, epochs=epochs, steps=steps, device=base.device, data=base.data, data_dir=base.data_dir
        )
        if dump_config:
            typer.echo(effective, nl=False)
            return
        if not resume:
            checks.check_fresh(folder)
    except ValueError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None
    how: dict[str, Any] = {
        "workers": workers,
        "dry_run": dry_run,
        "console": console,
        "options": effective,
        "cluster": jobs,
    }
    if plan:
        select_run.run_select(plan, folder, effect_points=effect, **how)
        return
    sweep.run_sweep(
        trials,
        folder,
        pairs=summary.grid_pairs(trials, control_temperatures),
        effect_points=effect,
        **how,
    )


def _length(context: typer.Context, epochs: int | None, steps: int | None) -> tuple[int | None, int | None]:
    """Epochs or steps, one of them None; 20 epochs where neither is given.

    What was typed wins over what a file says, and here the two exclude each other.
    """
    if epochs is not None and steps is not None:
        typed = [given_on_the_command_line(context, name) for name in ("epochs", "steps")]
        if typed[0] == typed[1]:
            raise ValueError(f"--epochs and --steps exclude each other, got {epochs} and {steps}")
        epochs, steps = (epochs, None) if typed[0] else (None, steps)
    for option, value in (("--epochs", epochs), ("--steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    return (_DEFAULT.epochs, None) if epochs is None and steps is None else (epochs, steps)
