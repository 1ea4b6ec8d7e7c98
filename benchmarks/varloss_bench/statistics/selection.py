"""Choose a temperature and a VRN weight on the validation split, and list what is then compared on the test split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.grid import Axes, grid
from varloss_bench.measures import SELECTABLE
from varloss_bench.statistics.inference import Interval, paired
from varloss_bench.statistics.summary import Pair, Row, summarise


@dataclass(frozen=True)
class Plan:
    """The grid, the seeds and the metric of `--select`.

    Attributes:
        base: The options that all trials share.
        axes: The arms of the grid. Control temperatures are candidates for the baseline only.
        metric: One of `SELECTABLE`.
        validation_seeds, test_seeds: They do not overlap.
    """

    base: TrialConfig
    axes: Axes
    metric: str
    validation_seeds: Sequence[int]
    test_seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Raises ValueError for a plan that has nothing to select from, or whose test would reuse what it selected on."""
        if self.metric not in SELECTABLE:
            raise ValueError(f"--select-by must be one of {', '.join(SELECTABLE)}, got {self.metric!r}")
        if not self.validation_seeds:
            raise ValueError("--select-seeds must be at least 1, got 0")
        shared = sorted(set(self.validation_seeds) & set(self.test_seeds))
        if shared:
            raise ValueError(
                f"cells are chosen with other seeds than they are tested with, got {', '.join(map(str, shared))} in both; "
                "move --select-first-seed or --first-seed"
            )
        if self.base.evaluate_on != "test":
            raise ValueError(
                f"--select chooses on val and then evaluates on test; with --evaluate-on {self.base.evaluate_on} there is no "
                "split to confirm the choice on"
            )
        if not any(self.axes["weights"]):
            raise ValueError("--select needs a --weight above 0 to choose from")

    def validation_trials(self) -> list[TrialConfig]:
        """The whole grid on the validation split, ordered by seed."""
        trials = grid(replace(self.base, evaluate_on="val"), **self.axes, seeds=self.validation_seeds)
        return [trial for trial in trials if trial.arm.trained]

    def test_trials(self, chosen: Iterable[tuple[Arm, Arm]]) -> list[TrialConfig]:
        """On the test split, for each pair (baseline, VRN): both arms, the VRN arm's temperature without VRN, untrained rows."""
        trials = [
            trial
            for baseline, vrn in chosen
            for trial in grid(
                self.base,
                methods=[vrn.method],
                batch_sizes=[vrn.batch_size],
                weights=[vrn.weight],
                temperatures=[vrn.temperature],
                control_temperatures=[baseline.temperature],
                seeds=self.test_seeds,
            )
        ]
        return sorted(dict.fromkeys(trials), key=lambda trial: trial.seed)

    def most_test_trials(self) -> list[TrialConfig]:
        """The largest and most expensive set of test trials that the selection can lead to."""
        temperatures = [*self.axes["temperatures"], *self.axes["control_temperatures"]]
        return self.test_trials(
            (
                Arm(method, batch_size, next((t for t in temperatures if t != temperatures[0]), temperatures[0]), 0.0),
                Arm(method, batch_size, temperatures[0], max(self.axes["weights"])),
            )
            for method in self.axes["methods"]
            for batch_size in self.axes["batch_sizes"]
        )


@dataclass(frozen=True)
class Choice:
    """The best of several cells (a temperature and a weight).

    Attributes:
        row: The chosen cell on the validation split.
        candidates: Number of cells it was chosen from; cells that failed are not counted.
        runner_up: The second-best cell; None if there was no other.
        lead: Chosen minus runner-up, paired by seed. It is the largest of several differences, so its interval is no test.
        tied: Whether the runner-up has the same mean. Then the smaller weight is taken; if those are equal too, the smaller
            temperature.
    """

    row: Row
    candidates: int
    runner_up: Row | None
    lead: Interval | None
    tied: bool


@dataclass(frozen=True)
class Group:
    """A method at a batch size: the tuned baseline and the tuned VRN, each None if every cell failed."""

    rows: tuple[Row, ...]
    baseline: Choice | None
    vrn: Choice | None

    @property
    def chosen(self) -> tuple[Arm, Arm] | None:
        """Baseline and VRN if both exist."""
        return (self.baseline.row.arm, self.vrn.row.arm) if self.baseline and self.vrn else None


@dataclass(frozen=True)
class Selection:
    """The choices of all groups.

    Attributes:
        drawn_test: Whether test and validation images are drawn from the same images (no published test split).
    """

    metric: str
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]
    drawn_test: bool

    @property
    def chosen(self) -> list[tuple[Arm, Arm]]:
        """Pairs of baseline and VRN of all groups that have both."""
        return [group.chosen for group in self.groups if group.chosen]

    def pairs(self) -> list[Pair]:
        """The comparisons on the test split, which form one family.

        VRN is compared with the tuned baseline, and with its own temperature without VRN if that is another arm.
        """
        pairs = []
        for baseline, vrn in self.chosen:
            pairs.append(Pair(vrn, baseline, "tuned baseline"))
            if baseline.temperature != vrn.temperature:
                pairs.append(Pair(vrn, replace(vrn, weight=0.0), "same temperature"))
        return pairs


def choose(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]], metric: str) -> Selection:
    """The best mean over the seeds per method and batch size, with and without VRN.

    A cell with a collapsed, diverged or crashed seed is excluded, however good its other seeds are.
    """
    found = summarise(trials, records, [])
    groups = []
    for method, batch_size in dict.fromkeys((row.arm.method, row.arm.batch_size) for row in found.rows):
        rows = tuple(row for row in found.rows if (row.arm.method, row.arm.batch_size) == (method, batch_size))
        fit = [row for row in rows if not row.failure]
        groups.append(
            Group(
                rows,
                _best([row for row in fit if not row.arm.weight], metric),
                _best([row for row in fit if row.arm.weight], metric),
            )
        )
    return Selection(metric, found.seeds, tuple(groups), not trials[0].official_test)


def _best(rows: Sequence[Row], metric: str) -> Choice | None:
    # Means of the same counts in another order differ in the last digit; they are ties.
    ranked = sorted(rows, key=lambda row: (-round(row.mean(metric), 9), row.arm.weight, row.arm.temperature))
    if not ranked:
        return None
    best, runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    if runner_up is None:
        return Choice(best, 1, None, None, tied=False)
    lead = paired(best.values[metric], runner_up.values[metric]).difference
    return Choice(best, len(ranked), runner_up, lead, tied=round(lead.mean, 9) == 0)


def to_dict(plan: Plan, selection: Selection, trials: Sequence[TrialConfig]) -> dict[str, Any]:
    """The inputs of the selection and its result, as plain values."""
    keys: dict[Arm, list[str]] = {}
    for trial in trials:
        keys.setdefault(trial.arm, []).append(trial.key())
    metric = selection.metric
    return {
        "chosen_by": metric,
        "rule": "best mean over the validation seeds; ties: smaller weight, then smaller temperature; failed cells are out",
        "validation_seeds": list(selection.seeds),
        "test_seeds": list(plan.test_seeds),
        "config": {name: value for name, value in plan.base.to_dict().items() if name not in {*_VARIED, "evaluate_on"}},
        "groups": [
            {
                "method": group.rows[0].arm.method,
                "batch_size": group.rows[0].arm.batch_size,
                "baseline": _choice_to_dict(group.baseline),
                "vrn": _choice_to_dict(group.vrn),
                "cells": [
                    {
                        "temperature": row.arm.temperature,
                        "weight": row.arm.weight,
                        "scores": {str(seed): score for seed, score in row.values.get(metric, {}).items()},
                        "out": row.failure,
                        "trials": keys[row.arm],
                    }
                    for row in group.rows
                ],
            }
            for group in selection.groups
        ],
    }


_VARIED = ("method", "seed", "batch_size", "temperature", "weight")


def _choice_to_dict(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    runner_up, lead = choice.runner_up, choice.lead
    return {
        **asdict(choice.row.arm),
        "candidates": choice.candidates,
        "runner_up": asdict(runner_up.arm) if runner_up else None,
        "lead": {"mean": lead.mean, "ci95": lead.half_width if lead.count > 1 else None} if lead else None,
        "tied": choice.tied,
    }


def what_was_chosen(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a stored selection that decides the test trials; two selections are the same if it is equal."""

    def cell(choice: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {name: choice[name] for name in ("temperature", "weight")} if choice else None

    return {
        "config": stored["config"],
        "test_cells": {
            f"{group['method']}, B={group['batch_size']}": {side: cell(group[side]) for side in ("baseline", "vrn")}
            for group in stored["groups"]
        },
    }
