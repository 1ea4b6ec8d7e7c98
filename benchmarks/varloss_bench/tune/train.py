"""Train a candidate of the search on validation seeds, and store its scores at the rungs on disk."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from varloss_bench.config import COLLAPSE_MEAN, TrialConfig
from varloss_bench.data import loading
from varloss_bench.records import provenance
from varloss_bench.records.store import Store, write_atomically
from varloss_bench.training import evaluate, trial
from varloss_bench.training.errors import TrainingDivergedError
from varloss_bench.tune.search import Candidate, CandidateFailedError

RUNGS_SCHEMA = 1


class _Stop(BaseException):
    """Ends a training from inside. Not an `Exception`, so that no `except Exception` catches it."""


@dataclasses.dataclass(frozen=True)
class Look:
    """The score of a net at a rung, and the mean similarity of different held-out images."""

    score: float
    mean_similarity: float


class Looks:
    """Scores at rungs, in one small JSON file per trial: `rungs/NAME.json` beside `trials/NAME.json`.

    A stopped trial has no record, and the record of a finished trial does not contain its scores at rungs.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self._folder = folder / "rungs"
        self._metric = metric

    def read(self, config: TrialConfig) -> dict[int, Look]:
        """Scores by epoch. A file that is incomplete, or of another trial or metric, counts as missing and is made again."""
        try:
            content = json.loads(self._path(config).read_text())
            if content["schema"] != RUNGS_SCHEMA or content["key"] != config.key() or content["metric"] != self._metric:
                return {}
            found = {int(epoch): Look(float(score), float(mean)) for epoch, (score, mean) in content["looks"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return {}
        return found if all(math.isfinite(v) for look in found.values() for v in dataclasses.astuple(look)) else {}

    def write(self, config: TrialConfig, looks: Mapping[int, Look]) -> None:
        """Store all scores of a trial so far."""
        content = {
            "schema": RUNGS_SCHEMA,
            "key": config.key(),
            "metric": self._metric,
            "config": config.to_dict(),
            "looks": {str(epoch): dataclasses.astuple(look) for epoch, look in looks.items()},
        }
        write_atomically(self._path(config), json.dumps(content, indent=1, sort_keys=True) + "\n")

    def _path(self, config: TrialConfig) -> Path:
        return self._folder / f"{config.file_stem()}.json"


class _Rungs(Callback):
    """Scores the net after certain epochs. It draws no random numbers, so it does not change the training."""

    def __init__(
        self, config: TrialConfig, metric: str, epochs: Sequence[int], seen: Callable[[int, Look], None]
    ) -> None:
        source = trial.load_source(config)
        self._splits = loading.split(source, config.seed)
        self._seed, self._metric, self._epochs, self._seen = config.seed, metric, epochs, seen

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch in self._epochs:
            self._seen(epoch, self._look(pl_module, epoch))

    def _look(self, module: Any, epoch: int) -> Look:
        train_split, held_out = (split.to(module.device) for split in (self._splits.train, self._splits.val))
        features = evaluate.encode(module.backbone, train_split.images)
        held_out_features = evaluate.encode(module.backbone, held_out.images)
        projections = torch.nn.functional.normalize(evaluate.encode(module.head, held_out_features), dim=1)
        for outputs in (features, held_out_features, projections):
            if not outputs.isfinite().all():
                raise TrainingDivergedError(f"outputs after epoch {epoch} are not finite")
        scores = evaluate.feature_metrics(
            features.cpu(), held_out_features.cpu(), self._splits.train, self._splits.val, self._seed
        )
        number = len(projections)
        # The sum over all pairs is the squared length of the sum of the rows; each of the n pairs of an image with itself gives 1.
        mean = float(projections.double().sum(0).square().sum() - number) / (number * (number - 1))
        return Look(scores[self._metric], mean)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan for training candidates.

    Attributes:
        base: The options that candidates share; its seed is the first validation seed.
        seeds: Number of validation seeds. A candidate is trained on the second seed only after it has passed all rungs of the
            first. Each further seed is another rung.
        rungs: Epochs of the first seed after which candidates are scored, without the full length.
    """

    base: TrialConfig
    seeds: int
    rungs: tuple[int, ...]
    metric: str

    @property
    def costs(self) -> tuple[int, ...]:
        """Total epochs, over seeds, up to each rung."""
        return (*self.rungs, *(self.base.epochs * count for count in range(1, self.seeds + 1)))

    def trial(self, candidate: Candidate, number: int) -> TrialConfig:
        """The trial of a candidate for one of the seeds; `compare` runs the same trial."""
        return dataclasses.replace(
            self.base, weight=candidate.weight, temperature=candidate.temperature, seed=self.base.seed + number
        ).canonical()


class Trainings:
    """Evaluates candidates for `search`: reads a score from disk if it is known, trains otherwise.

    Args:
        plan: The plan for training.
        folder: Finished trials are stored in `trials`, as by `compare`, and scores at rungs in `rungs`.
        command: Recorded with every trial.
        report: Called with the epochs trained since the last call.
    """

    def __init__(
        self, plan: Plan, folder: Path, command: list[str], report: Callable[[int], None] = lambda _: None
    ) -> None:
        self._plan, self._command, self._report = plan, command, report
        self._store, self._looks = Store(folder), Looks(folder, plan.metric)

    def evaluate(self, candidate: Candidate, decide: Callable[[float], bool]) -> None:
        """Score all rungs of the first seed, then the mean over seeds after each further seed."""
        finals: list[float] = []
        for number in range(self._plan.seeds):
            config = self._plan.trial(candidate, number)
            climbing = self._climb(config, self._plan.rungs if number == 0 else (), decide)
            if climbing is None:
                return
            finals.append(climbing)
            if not decide(sum(finals) / len(finals)):
                return

    def _climb(self, config: TrialConfig, rungs: Sequence[int], decide: Callable[[float], bool]) -> float | None:
        """The final score of a trial; None if it was stopped at a rung."""
        looks = self._looks.read(config)
        record: Mapping[str, Any] | None = self._store.load([config]).records.get(config.key())
        decided: list[int] = []

        def seen(epoch: int, look: Look) -> bool:
            before = looks[decided[-1]].mean_similarity if decided else math.inf
            decided.append(epoch)
            # After a slow start the similarity is also high, but falls; in a net that collapses it rises.
            if look.mean_similarity > COLLAPSE_MEAN and look.mean_similarity > before:
                raise CandidateFailedError(
                    "collapsed", f"mean similarity {look.mean_similarity:.3f} and rising, epoch {epoch}"
                )
            return decide(look.score)

        for epoch in rungs:
            if epoch not in looks:
                break
            if not seen(epoch, looks[epoch]):
                return None
        diverged = record is not None and record["status"] == "diverged"  # so its later rungs cannot be scored any more
        if record is None or record["status"] == "crashed" or (len(decided) < len(rungs) and not diverged):
            left = [epoch for epoch in rungs if epoch not in decided]
            record = self._train(config, left, looks, seen)
            if record is None:
                return None
        if record["status"] == "diverged":
            raise CandidateFailedError("diverged", str(record["reason"]))
        if record["collapsed"]:
            mean = record["metrics"]["negative_mean"]
            raise CandidateFailedError("collapsed", f"mean similarity {mean:.3f} after the last epoch")
        return float(record["metrics"][self._plan.metric])

    def _train(
        self, config: TrialConfig, rungs: Sequence[int], looks: dict[int, Look], seen: Callable[[int, Look], bool]
    ) -> Mapping[str, Any] | None:
        """Train from the start; None if stopped at a rung. Each score is stored before any decision."""
        done = 0

        def look(epoch: int, look: Look) -> None:
            looks[epoch] = look
            self._looks.write(config, looks)
            if not seen(epoch, look):
                raise _Stop

        def progress(fraction: float) -> None:
            nonlocal done
            self._report(round(fraction * config.epochs) - done)
            done = round(fraction * config.epochs)

        outcome: dict[str, Any] = {}
        try:
            callbacks = [_Rungs(config, self._plan.metric, rungs, look)] if rungs else []
            outcome = trial.run_trial(config, progress, callbacks=callbacks)
            status, reason = "finished", None
        except _Stop:
            return None
        except TrainingDivergedError as error:
            status, reason = "diverged", str(error)
        record = {**provenance.record_of(config, self._command), "status": status, "reason": reason, **outcome}
        self._store.write(config, record)
        return record
