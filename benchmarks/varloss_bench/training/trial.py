"""One trial: build, train, evaluate, record."""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor

from varloss_bench.config import COLLAPSE_MEAN, TrialConfig
from varloss_bench.data import loading
from varloss_bench.data.types import Source, Split
from varloss_bench.training import evaluate, fit, untrained
from varloss_bench.training.errors import TrainingDivergedError
from varloss_bench.training.solo import run as solo_run
from varloss_bench.training.trained import Trained

_load = lru_cache(maxsize=1)(loading.load)


def quieten() -> None:
    """Silence Lightning's messages about devices and loaders, which would hide the progress. Errors are still shown."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


def load_source(config: TrialConfig) -> Source:
    """The data set of a trial; the last one is cached."""
    return _load(config.data, config.data_dir, **loading.options_of(config))


def run_trial(
    config: TrialConfig,
    report: Callable[[float], None] = lambda _: None,
    rank: int = 0,
    log: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run a trial and return plain values for its record; the result is empty on ranks other than 0.

    Args:
        config: What to run.
        report: Called with the fraction done.
        rank: Index of this process, below `config.ranks` (`ranks.run_trial` starts the processes).
        log: File for solo-learn's output, if solo-learn trains.
        callbacks: Callbacks of Lightning's training; an exception in one ends the trial.

    Raises:
        solo_run.SoloLearnError: solo-learn failed.
        TrainingDivergedError: The loss, or an output of the trained net, is NaN or infinite.
    """
    torch.use_deterministic_algorithms(config.device == "cpu")
    source = load_source(config)
    splits = loading.split(source, config.seed)
    held_out = splits.named(config.evaluate_on)
    metrics: dict[str, float] = {}
    drawn: dict[str, Any] = {}
    started = time.perf_counter()
    if not config.arm.trained:
        trained, ended = None, started
        features = untrained.features(config, source, splits.train, held_out)
    else:
        if config.framework == "solo":
            trained = solo_run.train(config, splits.train, source, report, log)
        else:
            trained = fit.train(config, splits.train, source, report, rank=rank, callbacks=callbacks)
            if rank:
                return {}
        ended = time.perf_counter()
        there = held_out.to(config.device_of(rank))
        features = _features(trained, there)
        metrics, drawn = evaluate.projection_metrics(trained.encoder, source, trained.split, there, config.seed)
    iterations: dict[str, list[int]] = {}
    metrics |= evaluate.feature_metrics(*features, splits.train, held_out, config.seed, iterations=iterations)
    outcome = {
        "num_train": len(splits.train),
        "num_evaluated": len(held_out),
        "data_digest": source.digest,
        **(trained.record if trained else {}),
        **({"drawn": drawn} if drawn else {}),
        "probe_iterations": {name: max(fits) for name, fits in iterations.items()},
        "metrics": metrics,
        "collapsed": bool(metrics.get("negative_mean", 0.0) > COLLAPSE_MEAN),
        "seconds": {"train": ended - started, "evaluate": time.perf_counter() - ended},
    }
    if trained and trained.speed:
        # Last, and with separate random numbers, so that it cannot affect the trial.
        outcome["timing"] = trained.speed()
    return outcome


def _features(trained: Trained, held_out: Split) -> tuple[Tensor, Tensor]:
    """Features of the training and held-out images on the CPU.

    No loss is computed after the last step. Without this check, NaN from that step would count as a crash and run again.

    Raises:
        TrainingDivergedError: A feature or a projection is not finite.
    """
    backbone, head = trained.encoder.backbone, trained.encoder.head
    train, other = (evaluate.encode(backbone, split.images) for split in (trained.split, held_out))
    for features in (train, other):
        for name, outputs in (("features", features), ("projections", evaluate.encode(head, features))):
            if not outputs.isfinite().all():
                raise TrainingDivergedError(f"{name} after the last step are not finite")
    return train.cpu(), other.cpu()
