"""`varloss-bench tune`: the weight of VRN and the temperature for a data set, found on validation seeds."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varloss_bench.commands import arguments, options
from varloss_bench.config import TrialConfig
from varloss_bench.measures import SELECTABLE
from varloss_bench.methods import trained_methods

if TYPE_CHECKING:
    from rich.console import Console

    from varloss_bench.tune.run import Task
    from varloss_bench.tune.search import Candidate, Outcome

_DEFAULT = TrialConfig()
# Rungs look at features only.
_METRICS = tuple(metric for metric in SELECTABLE if metric != "projection_knn")
# What a grid on the same seeds would train, for the cost to be seen against: 4 weights x 4 temperatures, as usual.
GRID_ARMS = 16
_SEARCH = "Search"


# Options that are fields of a trial are read from the context, all at once: `arguments.base_config`.
def tune(  # noqa: PLR0917  (typer calls it, by name)
    context: typer.Context,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(trained_methods())}.")] = "simclr",
    batch_size: Annotated[int, typer.Option(help="One; another batch size is another search.")] = 16,
    weight_range: Annotated[
        str, typer.Option(help="Lowest and highest weight of VRN.", rich_help_panel=_SEARCH)
    ] = "0.3,30",
    temperature_range: Annotated[
        str, typer.Option(help="Lowest and highest temperature.", rich_help_panel=_SEARCH)
    ] = "0.05,1",
    budget: Annotated[
        int,
        typer.Option(
            help="Epochs of each of the two searches, in full trainings: both may spend as much, or the comparison is one of "
            "budgets.",
            rich_help_panel=_SEARCH,
        ),
    ] = 12,
    seeds: Annotated[
        int, typer.Option(help="Validation seeds a candidate's score is the mean of.", rich_help_panel=_SEARCH)
    ] = 2,
    first_seed: Annotated[
        int, typer.Option(help="Validation seeds are this one and those after it.", rich_help_panel=_SEARCH)
    ] = 100,
    rungs: Annotated[
        str,
        typer.Option(
            help="Epochs after which the worse half stops, comma-separated; by default a quarter and half of --epochs.",
            rich_help_panel=_SEARCH,
        ),
    ] = "",
    metric: Annotated[
        str, typer.Option(help=f"What is maximised: {', '.join(_METRICS)}.", rich_help_panel=_SEARCH)
    ] = "few_label_probe",
    search_seed: Annotated[int, typer.Option(help="Of the proposals.", rich_help_panel=_SEARCH)] = 0,
    data: options.Data = _DEFAULT.data,
    data_dir: options.DataDir = None,
    num_train: options.NumTrain = None,
    num_val: options.NumVal = None,
    num_test: options.NumTest = None,
    official_test: options.OfficialTest = _DEFAULT.official_test,
    image_size: options.ImageSize = None,
    backbone: Annotated[
        str, typer.Option(help="small, or any timm model (untrained).", rich_help_panel="Training")
    ] = _DEFAULT.backbone,
    epochs: Annotated[
        int, typer.Option(help="Of a full training; the schedule is this long.", rich_help_panel="Training")
    ] = _DEFAULT.epochs,
    base_lr: options.BaseLr = _DEFAULT.base_lr,
    lr_rule: options.LrRule = _DEFAULT.lr_rule,
    warmup: options.Warmup = _DEFAULT.warmup,
    weight_decay: options.WeightDecay = _DEFAULT.weight_decay,
    hidden_dim: options.HiddenDim = _DEFAULT.hidden_dim,
    output_dim: options.OutputDim = _DEFAULT.output_dim,
    weight_warmup: options.WeightWarmup = _DEFAULT.weight_warmup,
    negatives: options.Negatives = None,
    head_batch_norm: options.HeadBatchNorm = None,
    fused: Annotated[
        bool, typer.Option("--fused/--split", help="Both views in one pass, or one each.", rich_help_panel="Training")
    ] = _DEFAULT.fused,
    queue_size: options.QueueSize = _DEFAULT.queue_size,
    key_momentum: options.KeyMomentum = _DEFAULT.key_momentum,
    vrn_against: options.VrnAgainst = _DEFAULT.vrn_against,
    precision: options.Precision = _DEFAULT.precision,
    device: options.Device = "auto",
    workers: Annotated[
        int, typer.Option(help="2: both searches side by side; 1: one after the other.", rich_help_panel="Running")
    ] = 2,
    name: Annotated[
        str | None,
        typer.Option(help="Results go to ./varloss-runs/NAME; by default DATA-tune.", rich_help_panel="Running"),
    ] = None,
    output: options.Output = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cost and stop.", rich_help_panel="Running")
    ] = False,
    config: options.Config = None,
) -> None:
    """Find VRN's weight and a temperature on the validation split, and the best temperature without VRN beside them.

    Two searches of equal budget, one with VRN and one without: a tuned method against an untuned one would show the tuning.
    Optuna proposes candidates (TPE, on logarithmic scales), asynchronous successive halving stops the worse half at each
    rung, and a second seed is trained only for those that climbed all rungs of the first. The test split is not touched.

    The cost is printed first. **Run the same command again to resume**: nothing trained is trained twice, and the result is
    that of an undisturbed run. With more `--budget` the same search goes on.

    It ends with the `varloss-bench compare` command that tests the choice on fresh seeds. Exit status: 0, 1 when no
    candidate finished or a search crashed, 2 for bad input, 130 after Ctrl-C.
    """
    from rich.console import Console  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.commands import checks  # noqa: PLC0415
    from varloss_bench.records import provenance  # noqa: PLC0415
    from varloss_bench.tune import report as tune_report  # noqa: PLC0415

    checks.check_installed("optuna")
    console = Console()
    folder = output or Path("varloss-runs") / (name or f"{arguments.folder_name(data)}-tune")
    try:
        base = arguments.base_config(
            context.params, method=method, batch_size=batch_size, seed=first_seed, evaluate_on="val"
        )
        checks.check_methods([method])
        checks.check_choices(base, [method])
        # At least one, so that a bad option is named before a bad number of seeds.
        checks.check_trials([dataclasses.replace(base, seed=first_seed + n) for n in range(max(1, seeds))])
        checks.check_run(seeds=seeds, interval=False, workers=workers, folder=None if dry_run else folder)
        tasks = make_tasks(
            base,
            seeds=seeds,
            rungs=arguments.items("--rungs", rungs, int, allow_empty=True),
            metric=metric,
            weights=_range("--weight-range", weight_range),
            temperatures=_range("--temperature-range", temperature_range),
            budget=budget,
            search_seed=search_seed,
        )
    except ValueError as error:
        messages.error(console, error)
        raise typer.Exit(2) from None
    _print_cost(tasks[tune_report.WITH_VRN], workers, console)
    if dry_run:
        console.print("Nothing was run.")
        return
    command = provenance.command_line()
    started = time.monotonic()
    try:
        found = _run(tasks, folder, command, workers, console)
        _present(found, tasks[tune_report.WITH_VRN], folder, command, console, seconds=time.monotonic() - started)
    except OSError as error:  # disk full, or the folder is gone
        messages.could_not_write(console, error, f"What was trained until now is in {folder}.")
        raise typer.Exit(1) from None


def make_tasks(
    base: TrialConfig,
    *,
    seeds: int,
    rungs: list[int],
    metric: str,
    weights: tuple[float, float],
    temperatures: tuple[float, float],
    budget: int,
    search_seed: int,
) -> dict[str, Task]:
    """Both searches, alike in everything but VRN.

    Raises:
        ValueError: Rungs, metric or budget make no search.
    """
    from varloss_bench.tune.report import BASELINE, WITH_VRN  # noqa: PLC0415
    from varloss_bench.tune.run import Task  # noqa: PLC0415
    from varloss_bench.tune.search import Candidate, Space  # noqa: PLC0415
    from varloss_bench.tune.train import Plan  # noqa: PLC0415

    rungs = rungs or sorted({epochs for epochs in (base.epochs // 4, base.epochs // 2) if epochs >= 1})
    if rungs != sorted(set(rungs)) or not all(1 <= rung < base.epochs for rung in rungs):
        raise ValueError(f"--rungs must rise and lie from 1 to below the {base.epochs} epochs, got {rungs}")
    if metric not in _METRICS:
        raise ValueError(f"--metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    if budget < seeds:
        raise ValueError(f"--budget must be at least the {seeds} full trainings of one candidate, got {budget}")
    plan = Plan(base, seeds, tuple(rungs), metric)

    def first(*candidates: Candidate) -> tuple[Candidate, ...]:
        return tuple(
            c
            for c in candidates
            if temperatures[0] <= c.temperature <= temperatures[1]
            and (not c.weight or weights[0] <= c.weight <= weights[1])
        )

    # What small studies found good, first: a search that ends early has then tried it.
    with_vrn = Space(weights, temperatures, first(Candidate(3.0, 0.5), Candidate(3.0, 0.2)))
    without = Space(None, temperatures, first(Candidate(0.0, 0.5), Candidate(0.0, 0.2)))
    epochs = budget * base.epochs
    return {
        WITH_VRN: Task(with_vrn, plan, epochs, search_seed),
        BASELINE: Task(without, plan, epochs, search_seed),
    }


def _range(option: str, text: str) -> tuple[float, float]:
    values = arguments.items(option, text, float)
    if len(values) != 2 or not 0 < values[0] < values[1] < float("inf"):
        raise ValueError(f"{option} must be two rising numbers greater than 0, got {text!r}")
    return values[0], values[1]


def _print_cost(task: Task, workers: int, console: Console) -> None:
    """Epochs, candidates, and minutes from steps and an evaluation timed just now."""
    import torch  # noqa: PLC0415

    from varloss_bench.training import estimates, trial  # noqa: PLC0415

    trial.quieten()
    torch.set_num_threads(1)
    plan, costs = task.plan, task.plan.costs
    fewest, most = task.budget // costs[-1], task.budget // costs[0]
    grid_epochs = GRID_ARMS * costs[-1]
    console.print(
        f"Two searches of {task.budget} epochs each at most, {fewest} to {most} candidates each, scored after "
        f"{', '.join(map(str, costs))} epochs over {plan.seeds} seed{'s' if plan.seeds > 1 else ''}: {2 * task.budget} epochs. "
        f"A grid of {GRID_ARMS} arms on the same seeds: {grid_epochs}.",
        highlight=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluation = estimates.measure_evaluation_seconds(plan.base)
        steps = [estimates.measure_step(dataclasses.replace(plan.base, weight=weight))[0] for weight in (0.0, 3.0)]
    per_epoch = estimates.number_of_steps(plan.base) / plan.base.epochs
    seconds = sum(task.budget * per_epoch * step + task.budget / costs[0] * evaluation for step in steps)
    console.print(
        f"About {(seconds / min(workers, 2) + 10) / 60:.1f} minutes with {min(workers, 2)} worker(s) on as many free cores "
        "(steps and evaluation timed just now, start-up counted as 10 s); less where results are there already.",
        highlight=False,
    )


def _run(
    tasks: dict[str, Task], folder: Path, command: list[str], workers: int, console: Console
) -> dict[str, list[Outcome]]:
    """Both searches with a bar each, or a line per candidate where there is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.tune.run import SearchCrashedError, run_all  # noqa: PLC0415

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
            for event in run_all(tasks, folder, command, workers):
                if event.outcome is not None:
                    found[event.search].append(event.outcome)
                    spent = sum(outcome.epochs for outcome in found[event.search])
                    bar.update(rows[event.search], completed=spent, candidates=len(found[event.search]))
                    if not console.is_terminal:
                        messages.say(console, f"{event.search}: {_line(event.outcome)}")
                else:
                    bar.advance(rows[event.search], event.epochs)
    except KeyboardInterrupt:
        messages.say(console, f"Interrupted; what was trained is in {folder}. The same command resumes.")
        raise typer.Exit(130) from None
    except SearchCrashedError as error:
        messages.error(console, f"{error}\nWhat was trained is in {folder}; the same command resumes.")
        raise typer.Exit(1) from None
    return found


def _line(outcome: Outcome) -> str:
    scores = ", ".join(f"{score:.2f}" for score in outcome.scores)
    candidate = outcome.candidate
    weight = f"weight {candidate.weight:g}, " if candidate.weight else ""
    return f"{weight}t {candidate.temperature:g}: {scores or '-'} ({outcome.state}{': ' if outcome.reason else ''}{outcome.reason})"


def _present(
    found: dict[str, list[Outcome]], task: Task, folder: Path, command: list[str], console: Console, *, seconds: float
) -> None:
    """Tables, words and the next command, on the terminal and as tune.txt and tune.json."""
    import io  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from varloss_bench import messages  # noqa: PLC0415
    from varloss_bench.records import provenance, store  # noqa: PLC0415
    from varloss_bench.tune import report as tune_report  # noqa: PLC0415

    plan = task.plan
    content = tune_report.to_dict(found, plan, task.budget)
    words = tune_report.words(found, plan, task.budget)
    paper = Console(width=100, color_system=None, file=io.StringIO(), force_terminal=False)
    for target in (console, paper):
        for search, outcomes in found.items():
            target.print(tune_report.table(search, outcomes, plan.costs))
        for line in words:
            target.print(Text(line))
        if content["test_with"]:
            target.print("Test this choice on fresh seeds:")
            messages.say(target, f"  {content['test_with']}")
    assert isinstance(paper.file, io.StringIO)
    store.write_atomically(folder / "tune.txt", f"$ {shlex.join(command)}\n\n{paper.file.getvalue()}")
    content |= {
        "command": command,
        "config": plan.base.to_dict(),
        "environment": provenance.environment(),
        "seconds": round(seconds, 1),
    }
    store.write_atomically(folder / "tune.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    messages.say(console, f"{seconds:.0f} s. Trials, tune.txt and tune.json: {folder}/")
    if not content["test_with"]:
        raise typer.Exit(1)
