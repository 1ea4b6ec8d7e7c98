"""One trial trained by solo-learn: write its files, run main_pretrain.py in a process, read its results."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from varloss_bench.config import TrialConfig
from varloss_bench.data.types import Source, Split
from varloss_bench.training.errors import TrainingDivergedError
from varloss_bench.training.solo import config as solo_config
from varloss_bench.training.solo import guard as solo_guard
from varloss_bench.training.solo import net as solo_net
from varloss_bench.training.solo.install import SoloLearn, environment
from varloss_bench.training.trained import Trained

_POLL_SECONDS = 1.0
_LOG_LINES = 6
_VRN_LINE = re.compile(r"^varloss: VRN on, method=\S+, weight=(?P<weight>[^,]+), n=(?P<n>\d+) .*$", re.MULTILINE)


class SoloLearnError(RuntimeError):
    """solo-learn failed, or did not run with the requested options."""


@dataclass(frozen=True)
class Workplace:
    """The files of one run.

    Attributes:
        folder: Folder of images, configuration and checkpoint; removed afterwards.
        log: File of solo-learn's output; kept.
    """

    folder: Path
    log: Path

    @property
    def metrics(self) -> Path | None:
        """The file of logged numbers, if there is one yet; solo-learn writes no CSV if TensorBoard is installed."""
        return next((self.folder / "out").rglob("metrics.csv"), None)


@contextmanager
def workplace(log: Path | None) -> Iterator[Workplace]:
    """A new folder beside the log or, without a log, a temporary folder with a log in it.

    The folder is not in /tmp, which may be in memory: a checkpoint takes about 90 MB. Files of a killed run are removed first.
    """
    if log is None:
        with tempfile.TemporaryDirectory(prefix="varloss-solo-") as scratch:
            yield Workplace(Path(scratch) / "run", Path(scratch) / "run.log")
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    folder = log.with_suffix(".solo")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield Workplace(folder, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(
    config: TrialConfig, split: Split, source: Source, report: Callable[[float], None], log: Path | None = None
) -> Trained:
    """Train a trial with solo-learn.

    Args:
        config: The trial.
        split: Its training split.
        source: The data set.
        report: Called with the fraction done.
        log: File for solo-learn's output.

    Raises:
        SoloLearnError: solo-learn failed, or did not run with the requested options; the message ends with its last lines.
        TrainingDivergedError: The loss became NaN or infinite.
    """
    solo = SoloLearn.from_variables()
    with workplace(log) as place:
        arguments = prepare(config, split, source, place)
        steps = config.total_steps(len(split))
        launch(solo, arguments, place, lambda: report(min(1.0, _logged_steps(place) / steps)))
        ran = _ran_with(place, config, len(split))
        checkpoint = _checkpoint(place, config)
        losses = _losses(place, config)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    encoder = solo_net.rebuild(config, source, state).to(config.device_of(0))
    record = {
        "backbone_changed": f"nothing; images enlarged to a side of {solo_config.image_side(source)}",
        "learning_rate": config.learning_rate,
        "steps": steps,
        "solo_learn": {**solo.described(), **ran, "overrides": solo_config.overrides(config)},
        **losses,
        "parameters": sum(p.numel() for p in encoder.backbone.parameters()),
    }
    return Trained(encoder, split.to(config.device_of(0)), record)


def measure(config: TrialConfig, split: Split, source: Source, short: int = 5, long: int = 25) -> tuple[float, float]:
    """Seconds until the first step and seconds per step, from two short runs on this machine."""
    solo = SoloLearn.from_variables()
    seconds = {}
    with workplace(None) as place:
        arguments = prepare(config, split, source, place)
        for steps in (short, long):
            started = time.perf_counter()
            launch(solo, [*arguments, f"+max_steps={steps}", "checkpoint.enabled=False"], place, lambda: None)
            seconds[steps] = time.perf_counter() - started
    per_step = max(0.0, seconds[long] - seconds[short]) / (long - short)
    return max(0.0, seconds[short] - short * per_step), per_step


def prepare(config: TrialConfig, split: Split, source: Source, place: Workplace) -> list[str]:
    """Write images and configuration; returns the arguments of main_pretrain.py."""
    images = solo_net.export_images(split, source, place.folder / "images")
    made = solo_config.configuration(
        config,
        source,
        images=images.resolve(),
        output=(place.folder / "out").resolve(),
        num_train=len(split),
    )
    # JSON is also YAML; Hydra needs the extension .yaml.
    (place.folder / "trial.yaml").write_text(json.dumps(made, indent=1))
    return [
        *("--config-path", str(place.folder.resolve()), "--config-name", "trial.yaml"),
        *solo_config.overrides(config),
    ]


def launch(solo: SoloLearn, arguments: list[str], place: Workplace, tick: Callable[[], None]) -> None:
    """Run main_pretrain.py to its end and call `tick` about once per second.

    Raises:
        SoloLearnError: Its exit status was not 0.
    """
    command = [sys.executable, "-I", "-S", solo_guard.__file__, *solo.command(*arguments)]
    with place.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=solo.root,
            env=environment(torch.get_num_threads()),
            stdin=subprocess.PIPE,  # closes with this process: see guard.py
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    status = process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    if status:
        raise _failure(f"solo-learn ended with exit status {status}", place)


def _failure(message: str, place: Workplace) -> SoloLearnError:
    lines = [line.rstrip() for line in place.log.read_text(errors="replace").splitlines() if line.strip()]
    # Hydra's last line is advice about HYDRA_FULL_ERROR, not the cause.
    last = [line for line in lines if "HYDRA_FULL_ERROR" not in line][-_LOG_LINES:]
    return SoloLearnError("\n  ".join([f"{message}; last lines of {place.log}:", *last]))


def _logged_steps(place: Workplace) -> int:
    """Number of steps in the log so far; rows that are means of an epoch make it inexact."""
    if place.metrics is None:
        return 0
    with place.metrics.open() as file:
        return max(0, sum(1 for _ in file) - 1)


def _checkpoint(place: Workplace, config: TrialConfig) -> Path:
    """The checkpoint of the last epoch."""
    found = list((place.folder / "out").rglob(f"*-ep={config.epochs - 1}.ckpt"))
    if len(found) != 1:
        raise _failure(f"solo-learn left {len(found)} checkpoints of epoch {config.epochs - 1}", place)
    return found[0]


def _ran_with(place: Workplace, config: TrialConfig, num_train: int) -> dict[str, Any]:
    """The options that solo-learn ran with, from its own record and from varloss's line, checked against the trial.

    solo-learn ignores options that it does not read. Without this check a run without VRN could count as one with VRN.
    """
    args_file = next((place.folder / "out").rglob("args.json"), None)
    if args_file is None:
        raise _failure("solo-learn left no args.json", place)
    args = json.loads(args_file.read_text())
    said = list(_VRN_LINE.finditer(place.log.read_text(errors="replace")))
    weights = [float(line["weight"]) for line in said]
    expected = [float(f"{config.weight:g}")] if config.weight else []
    if weights != expected or any(int(line["n"]) != num_train for line in said):
        found = said[0][0] if said else "no line of varloss"
        raise _failure(f"expected VRN {config.weight:g} with n={num_train}, solo-learn ran with: {found}", place)
    ran: dict[str, Any] = {
        "method": args["method"],
        "objective": args.get("objective"),
        "temperature": args["method_kwargs"]["temperature"],
        "batch_size": args["optimizer"]["batch_size"],
        "learning_rate": args["optimizer"]["lr"],
        "seed": args["seed"],
        "vrn": said[0][0] if said else None,
    }
    asked = {"temperature": config.temperature, "batch_size": config.batch_size, "seed": config.seed}
    wrong = [f"{name}={ran[name]} instead of {value}" for name, value in asked.items() if ran[name] != value]
    if not math.isclose(ran["learning_rate"], config.learning_rate):
        wrong.append(f"learning_rate={ran['learning_rate']} instead of {config.learning_rate}")
    if wrong:
        raise _failure(f"solo-learn ran with {', '.join(wrong)}", place)
    return ran


@dataclass(frozen=True)
class Step:
    """One logged step: solo-learn's own loss, and the training loss, which includes the weighted VRN."""

    epoch: int
    own: float
    total: float


def logged_steps(metrics: Path, config: TrialConfig) -> list[Step]:
    """The steps in solo-learn's log."""
    steps = []
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["train_nce_loss_step"]:
                continue  # the means of an epoch are in separate rows
            total = own = float(row["train_nce_loss_step"])
            if config.weight:
                weight = float(row["train_vrn_weight_step"]) if config.weight_warmup else config.weight
                total += weight * float(row["train_vrn_step"])
            steps.append(Step(int(row["epoch"]), own, total))
    return steps


def _losses(place: Workplace, config: TrialConfig) -> dict[str, Any]:
    """Mean loss of each epoch and evidence of pairing; empty if solo-learn logged elsewhere.

    Its own loss at the first step, before any update, is equal for the arms of a seed, method and temperature: they start
    with the same weights and the same images.
    """
    steps = logged_steps(place.metrics, config) if place.metrics else []
    if not steps:
        return {}
    means = [fmean(step.total for step in steps if step.epoch == epoch) for epoch in range(config.epochs)]
    for epoch, mean in enumerate(means, 1):
        if not math.isfinite(mean):
            raise TrainingDivergedError(f"mean training loss of epoch {epoch} is {mean}")
    return {"epoch_losses": means, "paired": {"first_own_loss": repr(steps[0].own)}}
