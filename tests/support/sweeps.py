"""Sweeps with made-up numbers: as records in memory, and as folders that `compare` could have written."""

import io
import re
from pathlib import Path

import numpy as np
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.compare import present as compare_present
from varloss_bench.config import Arm, TrialConfig
from varloss_bench.grid import grid
from varloss_bench.measures import HISTOGRAM_BINS
from varloss_bench.records import planned
from varloss_bench.records.store import Store
from varloss_bench.statistics import summary
from varloss_bench.statistics.summary import Pair

BASE = {"few_label_probe": 95.0, "linear_probe": 98.0, "knn": 97.0, "projection_knn": 96.0,
        "negative_variance": 0.18, "negative_mean": 0.01, "positive_mean": 0.7}  # fmt: skip
ENVIRONMENT = {"versions": {"torch": "2.9"}, "varloss_source": "abc", "machine": {"cpu": "a"}, "git": None}
CONTROLS = (0.2,)
VRN, PLAIN = Arm("simclr", 16, 0.5, 3.0), Arm("simclr", 16, 0.5, 0.0)

# The axes of folders: one arm with VRN and one without; two weights and two temperatures; what a selection compares there.
SMALL = {"methods": ["simclr"], "batch_sizes": [16], "weights": [3.0], "temperatures": [0.5], "control_temperatures": [],
         "seeds": [0, 1]}  # fmt: skip
GRID = {"methods": ["simclr"], "batch_sizes": [16], "weights": [1.0, 3.0], "temperatures": [0.2, 0.5],
        "control_temperatures": [], "seeds": range(4)}  # fmt: skip
TUNED = [Pair(VRN, Arm("simclr", 16, 0.2, 0.0), "tuned baseline"), Pair(VRN, PLAIN, "same temperature")]


def in_memory(*, batch_sizes=(16,), seeds=4, effect=None, weights=(3.0,), temperatures=(0.5,), epochs=20, steps=0):
    """Trials and records in which VRN moves each metric by `effect`, with a little independent noise."""
    trials = grid(
        TrialConfig(epochs=epochs, steps=steps),
        methods=["simclr", "moco"],
        batch_sizes=batch_sizes,
        weights=weights,
        temperatures=temperatures,
        control_temperatures=CONTROLS,
        seeds=range(seeds),
    )
    rng = np.random.default_rng(0)
    records = {}
    for trial in trials:
        level = BASE if trial.arm.trained else dict.fromkeys(("few_label_probe", "linear_probe", "knn"), 90.0)
        metrics = {name: value + 0.002 * rng.normal() for name, value in level.items()}
        if trial.weight:
            metrics = {name: value + (effect or {}).get(name, 0.0) for name, value in metrics.items()}
        records[trial.key()] = {
            "status": "finished", "reason": None, "collapsed": False, "metrics": metrics,
            "seconds": {"train": 2.0, "evaluate": 0.1},
        }  # fmt: skip
    return trials, records


def change(trials, records, arm, seed, **changes):
    """Changes the record of an arm and seed."""
    config = next(trial for trial in trials if trial.arm == arm and trial.seed == seed)
    records[config.key()] = {**records[config.key()], **changes}


def summarise(trials, records, **options):
    """The summary of a grid with its controls."""
    return summary.summarise(trials, records, summary.grid_pairs(trials, CONTROLS), **options)


def record_of(config, rng, **changes):
    """A complete record of a trial; weight 3 is two points better."""
    metrics = {name: value + 0.1 * rng.normal() for name, value in BASE.items()}
    metrics["few_label_probe"] += 2.0 * (config.weight == 3)
    trained = config.arm.trained
    drawn = {
        "similarity_histograms": {"positives": [1] * HISTOGRAM_BINS, "negatives": [2] * HISTOGRAM_BINS},
        "principal_components": {"points": [[0.1, 0.2], [-0.3, 0.4]], "labels": [0, 1]},
    }
    record = {
        "key": config.key(), "config": config.to_dict(), "environment": ENVIRONMENT, "status": "finished",
        "reason": None, "collapsed": False, "metrics": metrics, "seconds": {"train": 2.0, "evaluate": 0.1},
        "command": ["varloss-bench", "compare"], "finished_at": "2026-01-01T00:00:00+00:00",
        "confounds": {"equal": config.equal} if trained else None,
    }  # fmt: skip
    if trained:
        record |= {"drawn": drawn, "epoch_losses": [3.0, 2.0, 1.5]}
    return record | changes


def write_sweep(into, base=None, *, changes=lambda config: {}, **axes):
    """Write the records of a grid into a folder; `changes(config)` replace fields of a record."""
    asked = {"methods": ["simclr", "moco"], "batch_sizes": [16, 64], "weights": [1.0, 3.0], "temperatures": [0.2, 0.5],
             "control_temperatures": [0.1], "seeds": range(3)} | axes  # fmt: skip
    rng = np.random.default_rng(0)
    for config in grid(base or TrialConfig(), **asked):
        Store(into).write(config, record_of(config, rng, **changes(config)))


def present(path, trials, pairs, effect_points=0.5):
    """Present the trials in a folder with a plan, as a sweep does after its trials have run."""
    planned.write(path, trials, pairs, effect_points)
    console = Console(file=io.StringIO())
    how = {"pairs": pairs, "command": ["x"], "ran": 0, "seconds": 0.0, "effect_points": effect_points}
    return compare_present.present(trials, Store(path), console, **how)


def report(*arguments) -> Result:
    """Run `varloss-bench report`."""
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def visible(folder: Path) -> str:
    """The words of a page, without style and figures."""
    text = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", (folder / "report.html").read_text(), flags=re.DOTALL)
    return " ".join(re.sub("<[^>]+>", " ", text).replace("&#39;", "'").split())
