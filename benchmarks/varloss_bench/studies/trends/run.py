"""The trials of `varloss-bench study trends`: nets, augmentations and schedule of `compare`, at equal steps."""

import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from varloss import metrics
from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.records.store import write_atomically
from varloss_bench.training import augment, estimates, evaluate, fit, trial

BATCH_SIZES, WEIGHTS = (16, 64, 256), (0.0, 3.0)
TEMPERATURES = (0.07, 0.2, 0.3, 0.5, 0.7, 1.0)
Row = dict[str, Any]


def trials(steps: int, seeds: list[int]) -> list[tuple[str, TrialConfig]]:
    """Pairs of trend and configuration. Every trial takes `steps` steps, rounded to epochs."""
    num_train = trial.load_source(TrialConfig()).sizes[0]

    def config(batch_size: int, temperature: float, weight: float, seed: int) -> TrialConfig:
        epochs = max(1, round(steps / (num_train // batch_size)))
        # One learning rate for all batch sizes, that of batch size 64 under the linear rule.
        return TrialConfig(
            batch_size=batch_size,
            temperature=temperature,
            weight=weight,
            seed=seed,
            epochs=epochs,
            base_lr=0.15 * 64 / 256,
            lr_rule="constant",
        )

    found = [
        ("batch size", config(batch_size, 0.5, weight, seed))
        for seed in seeds
        for batch_size in BATCH_SIZES
        for weight in WEIGHTS
    ]
    return found + [("temperature", config(64, t, 0.0, seed)) for seed in seeds for t in TEMPERATURES]


def run_one(trend: str, config: TrialConfig, folder: str) -> Row:
    """Train one net and compute the quantities of the theory from held-out projections."""
    path = Path(folder) / f"{config.file_stem()}.json"
    if path.exists():
        stored: Row = json.loads(path.read_text())
        return {**stored, "trend": trend}
    torch.set_num_threads(1)
    trial.quieten()
    source = trial.load_source(config)
    splits = loading.split(source, config.seed)
    module, loader, _ = fit.build(config, splits.train, source)
    fit.make_trainer(config, lambda _: None).fit(module, train_dataloaders=loader)
    held_out = splits.test
    views = augment.two_views(
        held_out.images, augment.build_augmentation(source), augment.epoch_seed(config.seed, 9999)
    )
    z0, z1 = (evaluate.encode(module, view) for view in views)
    statistics = metrics.similarity_statistics(z0, z1)
    clean = evaluate.encode(module, held_out.images)
    row: Row = {
        "config": dataclasses.asdict(config),
        "steps": estimates.number_of_steps(config),
        "epochs": config.epochs,
        **{name: float(value) for name, value in statistics._asdict().items()},
        "uniformity": -float(metrics.uniformity(clean)),
        "tolerance": float(metrics.tolerance(clean, held_out.labels)),
        "penalty_entropy": float(
            metrics.relative_penalty_entropy(z0[:64], z1[:64], temperature=config.temperature, negatives="both")
        ),
        "linear_probe": evaluate.feature_metrics(
            evaluate.encode(module.backbone, splits.train.images),
            evaluate.encode(module.backbone, held_out.images),
            splits.train,
            held_out,
            config.seed,
        )["linear_probe"],
    }
    write_atomically(path, json.dumps(row, indent=1, sort_keys=True) + "\n")
    return {**row, "trend": trend}


def run(steps: int, seeds: list[int], workers: int, folder: Path, console: Console) -> list[Row]:
    """All rows, in the order of the trials; finished ones are read from `folder`."""
    asked = trials(steps, seeds)
    rows: dict[int, Row] = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run_one, trend, config, str(folder)): at for at, (trend, config) in enumerate(asked)}
        for done in as_completed(waiting):
            at = waiting[done]
            rows[at] = done.result()
            console.print(
                f"{len(rows)}/{len(asked)} {asked[at][1].arm.label()} seed {asked[at][1].seed}", highlight=False
            )
    return [rows[at] for at in range(len(asked))]
