"""Read the records of a folder, check them, and group the trials that may be compared."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varloss_bench.config import ARM_AND_SEED, PROTOCOL, Arm, TrialConfig
from varloss_bench.grid import untrained
from varloss_bench.measures import HISTOGRAM_BINS
from varloss_bench.records import planned
from varloss_bench.records.planned import Planned
from varloss_bench.records.store import Store


@dataclass(frozen=True)
class Trial:
    """One record and its file.

    Attributes:
        protocol: The protocol of the harness that its key was made under.
    """

    file: str
    config: TrialConfig
    record: Mapping[str, Any]
    protocol: int

    @property
    def finished(self) -> bool:
        """Whether it has metrics."""
        return bool(self.record["status"] == "finished")


@dataclass(frozen=True)
class Group:
    """Trials that may be compared: equal in everything but arm and seed, under one protocol.

    Attributes:
        trials: The trials that have a record.
        plan: The plan of the folder's last sweep if these are exactly its trials (some may be missing), else None.
        beyond_plan: Whether the last sweep is a part of these trials; it has its own group.
    """

    protocol: int
    trials: tuple[Trial, ...]
    plan: Planned | None = None
    beyond_plan: bool = False

    @property
    def sample(self) -> TrialConfig:
        """The configuration of a trained trial, for what all have in common; one with VRN if there is one."""
        return max((config for config in self.configs if config.arm.trained), key=lambda config: bool(config.weight))

    @property
    def configs(self) -> list[TrialConfig]:
        """The planned configurations if there is a plan, else those of the records."""
        return list(self.plan.configs) if self.plan else [trial.config for trial in self.trials]

    @property
    def missing(self) -> list[TrialConfig]:
        """Planned trials without a readable record."""
        records = self.records
        return [config for config in self.configs if config.key() not in records]

    @property
    def records(self) -> dict[str, Mapping[str, Any]]:
        """By the current `TrialConfig.key`, which `summary` looks them up by."""
        return {trial.config.key(): trial.record for trial in self.trials}

    def of(self, arm: Arm) -> list[Trial]:
        """Finished trials of an arm, by seed."""
        return sorted((t for t in self.trials if t.config.arm == arm and t.finished), key=lambda t: t.config.seed)


@dataclass(frozen=True)
class Found:
    """The contents of a folder.

    Attributes:
        groups: Groups of comparable trials: the folder's last sweep, then the others in the order of their first file.
        left_out: File name -> the reason why it is in no group.
    """

    groups: tuple[Group, ...]
    left_out: Mapping[str, str]

    @property
    def trials(self) -> list[Trial]:
        """The trials of all groups; an untrained row that belongs to several groups is listed once."""
        return list({trial.file: trial for group in self.groups for trial in group.trials}.values())


def read(folder: Path) -> Found:
    """Read `folder/trials/*.json`.

    Raises:
        ValueError: There is no such folder, or no record in it.
    """
    files = sorted((folder / "trials").glob("*.json"))
    if not files:
        raise ValueError(
            f"no trial records in {folder / 'trials'}; `varloss-bench compare --output {folder}` writes them"
            if folder.is_dir()
            else f"there is no folder {folder}"
        )
    trials, left_out = [], {}
    for file in files:
        trial = _read_or_reason(file)
        if isinstance(trial, str):
            left_out[file.name] = trial
        else:
            trials.append(trial)
    groups = _group(trials)
    try:
        plan = planned.read(folder)
    except ValueError as error:
        left_out[planned.FILE] = str(error)
    else:
        groups = _sweep_first(trials, groups, plan) if plan else groups
    grouped = {trial.file for group in groups for trial in group.trials}
    for trial in trials:
        if trial.file not in grouped:
            left_out[trial.file] = _why_alone(trial.config)
    return Found(tuple(groups), left_out)


def _why_alone(config: TrialConfig) -> str:
    """Why an untrained row belongs to no trained one."""
    if config.raw_pixels_side != untrained(config, config.method, config.seed).raw_pixels_side:
        return "made before large images were averaged for the raw-pixels row; run the sweep's command again to make a new one"
    return "an untrained row, and no trained row has its data, split, backbone and protocol"


def _read_or_reason(file: Path) -> Trial | str:
    try:
        return _read(file)
    # What an arbitrary file can raise, as in `Store.load`.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        return f"corrupt: {type(error).__name__}: {error}"


def _read(file: Path) -> Trial:
    record = json.loads(file.read_text())
    if not isinstance(record, dict):
        raise ValueError("not a table of names")
    config = TrialConfig.from_dict(record["config"])
    planned.check_config(config)
    Store.check(record, config)
    _check_drawn(record)
    flat(record)  # raises RecursionError here, where the file is known, if the record is nested too deeply
    protocols = [protocol for protocol in range(1, PROTOCOL + 1) if record["key"] == config.key(protocol)]
    if not protocols:
        raise ValueError(
            "the key inside is not that of the configuration inside, under any protocol up to this version's"
        )
    return Trial(file.name, config, record, protocols[0])


def _check_drawn(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless the parts that figures are drawn from are complete or, as in older records, absent."""
    losses = record.get("epoch_losses", [])
    if not isinstance(losses, list) or not all(_is_number(loss) for loss in losses):
        raise ValueError("epoch_losses is not a list of numbers")
    if not isinstance(record.get("command", []), list):
        raise ValueError("command is not a list")
    if "drawn" not in record:
        return
    histograms, components = record["drawn"]["similarity_histograms"], record["drawn"]["principal_components"]
    for name in ("positives", "negatives"):
        counts = histograms[name]
        if len(counts) != HISTOGRAM_BINS or not all(_is_number(count) and count >= 0 for count in counts):
            raise ValueError(f"the histogram of {name} is not {HISTOGRAM_BINS} counts")
    points, labels = components["points"], components["labels"]
    if len(points) != len(labels) or not all(isinstance(label, int) for label in labels):
        raise ValueError("principal components and their labels do not match")
    if not all(len(point) == 2 and all(_is_number(value) for value in point) for point in points):
        raise ValueError("principal components are not points in the plane")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _group(trials: Sequence[Trial]) -> list[Group]:
    """A group for each set of options of the arms with VRN, with the rows that may be compared with them.

    All fields except arm and seed must be equal. An arm without VRN has the options that only concern VRN at their
    defaults (`TrialConfig.canonical`), so several groups can share it.
    """
    shared: dict[str, tuple[int, dict[str, Any]]] = {}
    trained = [trial for trial in trials if trial.config.arm.trained]
    for trial in sorted(trained, key=lambda t: not t.config.weight):  # stable: those with VRN first
        if not any(_belongs(trial, *group) for group in shared.values()):
            common = {name: value for name, value in trial.config.to_dict().items() if name not in ARM_AND_SEED}
            shared[json.dumps([trial.protocol, common], sort_keys=True)] = trial.protocol, common
    groups = []
    for protocol, common in shared.values():
        members = [trial for trial in trials if _belongs(trial, protocol, common)]
        members.sort(key=_by_arm)
        groups.append(Group(protocol, tuple(members)))
    return groups


def _sweep_first(trials: Sequence[Trial], groups: Sequence[Group], plan: Planned) -> list[Group]:
    """The planned sweep, complete or not, then all groups that hold more than a part of it."""
    keys = plan.keys
    members = sorted((trial for trial in trials if trial.record["key"] in keys), key=_by_arm)
    sweep = {trial.file for trial in members}
    others = [group for group in groups if not sweep.issuperset(trial.file for trial in group.trials)]
    return [
        Group(plan.protocol, tuple(members), plan),
        *(
            dataclasses.replace(group, beyond_plan=bool(sweep) and sweep.issubset(trial.file for trial in group.trials))
            for group in others
        ),
    ]


def _by_arm(trial: Trial) -> tuple[bool, Arm, int]:
    return not trial.config.arm.trained, trial.config.arm, trial.config.seed


def _belongs(trial: Trial, protocol: int, common: Mapping[str, Any]) -> bool:
    config = trial.config
    if trial.protocol != protocol:
        return False
    if not config.arm.trained:
        return config == untrained(TrialConfig(**common), config.method, config.seed)
    return config in (moved := dataclasses.replace(config, **common), moved.canonical())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names joined by dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return found
