"""Which temperature and weight a validation split prefers, how sure it is of that, and what is then compared on test."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from varloss_bench.config import Arm, TrialConfig, grid
from varloss_bench.measures import METRICS, SELECTABLE
from varloss_bench.report.text import arm_label, group_label
from varloss_bench.statistics import inference as stats
from varloss_bench.statistics import summary
from varloss_bench.statistics.summary import Pair, Row


@dataclass(frozen=True)
class Plan:
    """What `--select` was asked for.

    Attributes:
        base: Everything the trials share.
        methods, batch_sizes, weights, temperatures, control_temperatures: The grid. Controls compete for the baseline only.
        metric: One of `SELECTABLE`.
        validation_seeds, test_seeds: Disjoint.
    """

    base: TrialConfig
    methods: Sequence[str]
    batch_sizes: Sequence[int]
    weights: Sequence[float]
    temperatures: Sequence[float]
    control_temperatures: Sequence[float]
    metric: str
    validation_seeds: Sequence[int]
    test_seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Raises ValueError for a plan that could not select, or not honestly."""
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
                f"--select chooses on val and then reads test by itself; --evaluate-on {self.base.evaluate_on} leaves nothing "
                "to confirm the choice with"
            )
        if not any(self.weights):
            raise ValueError("--select needs a --weight above 0 to choose from")

    def validation_trials(self) -> list[TrialConfig]:
        """The whole grid on the validation split, seed by seed."""
        trials = grid(
            replace(self.base, evaluate_on="val"),
            methods=self.methods,
            batch_sizes=self.batch_sizes,
            weights=self.weights,
            temperatures=self.temperatures,
            control_temperatures=self.control_temperatures,
            seeds=self.validation_seeds,
        )
        return [trial for trial in trials if trial.arm.trained]

    def test_trials(self, chosen: Iterable[tuple[Arm, Arm]]) -> list[TrialConfig]:
        """Of each pair (baseline, VRN): both, VRN's temperature without it, and the untrained rows; on the test split."""
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
        """As many and as dear as there can be; what is chosen is not known before."""
        temperatures = [*self.temperatures, *self.control_temperatures]
        return self.test_trials(
            (
                Arm(method, batch_size, next((t for t in temperatures if t != temperatures[0]), temperatures[0]), 0.0),
                Arm(method, batch_size, temperatures[0], max(self.weights)),
            )
            for method in self.methods
            for batch_size in self.batch_sizes
        )


@dataclass(frozen=True)
class Choice:
    """The best of several cells.

    Attributes:
        row: Of the chosen cell, on the validation split.
        candidates: Cells it was chosen from, those that failed not counted.
        runner_up: None where there was no other.
        lead: Chosen minus runner-up, paired by seed. Picked for being largest, so its interval is no test of anything.
        tied: Whether the runner-up has the same mean; the smaller weight was taken then, or else the smaller temperature.
    """

    row: Row
    candidates: int
    runner_up: Row | None
    lead: stats.Interval | None
    tied: bool


@dataclass(frozen=True)
class Group:
    """A method at a batch size: the tuned baseline, the tuned VRN, None where every cell failed."""

    rows: tuple[Row, ...]
    baseline: Choice | None
    vrn: Choice | None

    @property
    def chosen(self) -> tuple[Arm, Arm] | None:
        """Baseline and VRN, where there are both."""
        return (self.baseline.row.arm, self.vrn.row.arm) if self.baseline and self.vrn else None


@dataclass(frozen=True)
class Selection:
    """What was chosen, from what.

    Attributes:
        drawn_test: Whether test images are drawn from the same images as validation images, not published apart.
    """

    metric: str
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]
    drawn_test: bool

    @property
    def chosen(self) -> list[tuple[Arm, Arm]]:
        """Pairs of baseline and VRN, of all groups that have both."""
        return [group.chosen for group in self.groups if group.chosen]

    def pairs(self) -> list[Pair]:
        """What is compared on the test split, and together one family: VRN with the tuned baseline, and with its own
        temperature where that is another one.
        """
        pairs = []
        for baseline, vrn in self.chosen:
            pairs.append(Pair(vrn, baseline, "tuned baseline"))
            if baseline.temperature != vrn.temperature:
                pairs.append(Pair(vrn, replace(vrn, weight=0.0), "same temperature"))
        return pairs


def choose(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]], metric: str) -> Selection:
    """The best mean over the seeds, per method and batch size, with and without VRN.

    A cell with a collapsed or diverged seed is out, however good its other seeds are.
    """
    found = summary.summarise(trials, records, [])
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
    # Means of the same counts in another order differ in the last digit; that is a tie.
    ranked = sorted(rows, key=lambda row: (-round(row.mean(metric), 9), row.arm.weight, row.arm.temperature))
    if not ranked:
        return None
    best, runner_up = ranked[0], ranked[1] if len(ranked) > 1 else None
    if runner_up is None:
        return Choice(best, 1, None, None, tied=False)
    lead = stats.paired(best.values[metric], runner_up.values[metric]).difference
    return Choice(best, len(ranked), runner_up, lead, tied=round(lead.mean, 9) == 0)


def failures(group: Group) -> list[str]:
    """The cells that are out, with the reason."""
    return [
        f"{arm_label(row.arm)} ({row.failure} at seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for row in group.rows
        if row.failure
        for seeds in [{"diverged": row.diverged, "collapsed": row.collapsed, "crashed": row.crashed}[row.failure]]
    ]


def in_words(selection: Selection, test_seeds: Sequence[int]) -> str:
    """What was chosen, how close the next one was, and what the numbers are worth."""
    title = METRICS[selection.metric].title
    lines = [
        f"Chosen on the validation split by {title}, mean of {_seeds(selection.seeds)}. Confirmed on the test split with "
        f"{_seeds(test_seeds)}, read once."
    ]
    for group in selection.groups:
        lines.append(group_label(group.rows[0].arm))
        for name, choice in (("baseline", group.baseline), ("VRN", group.vrn)):
            lines.append(f"  {name}: {_choice_in_words(choice, selection.metric)}")
        out = failures(group)
        if out:
            lines.append(f"  out: {'; '.join(out)}")
        if not group.chosen:
            lines.append("  no comparison on test: every cell of one side failed")
    lines.append(
        "The validation scores of the chosen are the best of several, hence too good, the more so the more cells there were; "
        "the table below has fresh seeds."
        + (
            " A seed redraws the split of one and the same data set: an image that served the choice can be in the test split "
            "of another seed."
            if selection.drawn_test
            else ""
        )
    )
    return "\n".join(lines)


def _choice_in_words(choice: Choice | None, metric: str) -> str:
    if choice is None:
        return "none, every cell failed"
    digits = METRICS[metric].digits
    text = f"{arm_label(choice.row.arm)}, {choice.row.mean(metric):.{digits}f} on validation"
    if choice.runner_up is None or choice.lead is None:
        return f"{text}, the only cell"
    text += f", best of {choice.candidates} cells; "
    runner_up = arm_label(choice.runner_up.arm)
    if choice.tied:
        return f"{text}{runner_up} scored the same, and the smaller weight or temperature was taken"
    lead = choice.lead
    width = f"±{lead.half_width:.{digits}f}" if lead.count > 1 else ""
    return f"{text}runner-up {runner_up}, {lead.mean:.{digits}f}{width} behind"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def to_dict(plan: Plan, selection: Selection, trials: Sequence[TrialConfig]) -> dict[str, Any]:
    """Everything that went into the choice and what came out, as plain values."""
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
    """The part of a stored selection that decides what is run on test: two selections are the same if this is."""

    def cell(choice: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {name: choice[name] for name in ("temperature", "weight")} if choice else None

    return {
        "config": stored["config"],
        "test_cells": {
            f"{group['method']}, B={group['batch_size']}": {side: cell(group[side]) for side in ("baseline", "vrn")}
            for group in stored["groups"]
        },
    }
