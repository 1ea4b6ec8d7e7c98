"""The contents of a section of the report: question, verdict, figures, tables and where the rows come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import get_args

from varloss_bench.config import ARM_AND_SEED, PROTOCOL, Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.messages import counted
from varloss_bench.methods import display_name
from varloss_bench.records import same_data
from varloss_bench.report import origins
from varloss_bench.report.figures.page import Figure, control_temperatures, figures
from varloss_bench.report.groups import Found, Group
from varloss_bench.report.labels import (
    backbone_label,
    equal_words,
    format_interval,
    split_words,
)
from varloss_bench.report.notes import notes
from varloss_bench.report.verdict import in_words, points, settled_lines, summary_lines
from varloss_bench.statistics.best import SCORE, best_pair
from varloss_bench.statistics.inference import MOST_SEEDS, Failure
from varloss_bench.statistics.summary import EFFECT_POINTS, Summary, grid_pairs, summarise

# Columns of the table of arms; the others are in rows.csv.
_SHOWN = (*ACCURACIES, "negative_variance", "negative_mean", "positive_mean")


@dataclass(frozen=True)
class Section:
    """The contents of one section, which is about one group."""

    anchor: str
    title: str
    asked: tuple[tuple[str, str], ...]
    verdict: tuple[str, ...]
    settled: tuple[str, ...]
    tuned: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    figures: tuple[Figure, ...]
    missing_figures: tuple[str, ...]
    notes: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    comparisons: tuple[tuple[str, ...], ...]
    trials: tuple[tuple[str, ...], ...]
    environments: tuple[tuple[str, str, int], ...]
    confounds: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, int], ...]
    effect: str


def sections(found: Found) -> list[Section]:
    """One section per group of comparable trials."""
    differences = _differences(found.groups)
    return [
        _section(group, f"group{number}", differing)
        for number, (group, differing) in enumerate(zip(found.groups, differences, strict=True), 1)
    ]


# The title of a section names these options always.
_IN_TITLE = frozenset({"data", "evaluate_on", "epochs", "steps", "backbone"})


def _differences(groups: Sequence[Group]) -> list[tuple[tuple[str, str], ...]]:
    """For each group, its values of the options (and protocol) that are not the same in all groups."""
    names = [field.name for field in fields(TrialConfig) if field.name not in ARM_AND_SEED]
    values = [{name: _option(group, name) for name in names} | {"protocol": str(group.protocol)} for group in groups]
    differing = [name for name in [*names, "protocol"] if len({of_group[name] for of_group in values}) > 1]
    return [tuple((name, of_group[name]) for name in differing) for of_group in values]


def _option(group: Group, name: str) -> str:
    """The value of a field in the arms with VRN; arms without VRN have options that only concern VRN at their defaults.

    A method whose own choice the value is has None; the value of the other methods is then given.
    """
    configs = [config for config in group.configs if config.arm.trained]
    configs = [config for config in configs if config.weight] or configs
    seen = list(dict.fromkeys(getattr(config, name) for config in configs))
    return ", ".join(str(value) for value in seen if value is not None) or "by default"


def _section(group: Group, anchor: str, differing: Sequence[tuple[str, str]]) -> Section:
    config = group.sample
    pairs = group.plan.pairs if group.plan else grid_pairs(group.configs, control_temperatures(group.configs))
    effect = group.plan.effect_points if group.plan else EFFECT_POINTS
    summary = summarise(group.configs, group.records, pairs, effect_points=effect)
    arms = [row.arm for row in summary.rows if row.arm.trained]
    methods = list(dict.fromkeys(arm.method for arm in arms))
    drawn, missing = figures(group, summary, methods)
    return Section(
        anchor=anchor,
        title=f"{config.data}, {split_words(config)}, {equal_words(config)}, {backbone_label(config)}"
        + "".join(f", {name} {value}" for name, value in differing if name not in _IN_TITLE)
        + (": all sweeps with these options" if group.beyond_plan else ""),
        asked=(*_asked(group, summary, arms), *(pair for pair in differing if pair[0] not in _IN_TITLE | {"protocol"})),
        verdict=tuple(summary_lines(summary)),
        settled=tuple(settled_lines(summary)),
        tuned=tuple(_tuned_rows(summary, arms)),
        warnings=tuple(_warnings(group, summary)),
        figures=tuple(drawn),
        missing_figures=tuple(missing),
        notes=(*notes(summary, config), *_family(group, summary)),
        heads=("arm", "seeds", *(METRICS[name].title + (", %" if METRICS[name].unit else "") for name in _SHOWN)),
        rows=tuple(_rows(summary)),
        comparisons=tuple(_comparison_rows(summary)),
        trials=tuple(_trial_rows(group)),
        environments=tuple(origins.environments(group)),
        confounds=tuple(origins.confounds(group)),
        commands=tuple(origins.commands(group)),
        effect=points(effect),
    )


def _family(group: Group, summary: Summary) -> list[str]:
    """Where the comparisons come from; empty if there are none and none were planned."""
    number = len(summary.comparisons)
    if group.plan:
        return [
            f"The comparisons are those that the sweep planned: the same family of {number} comparisons as in its table.txt. "
            "(The comparisons of a family share one correction.)"
            if number
            else "The sweep planned no comparison."
        ]
    if not number:
        return []
    return [
        "The plan of these trials is not recorded here. This section compares each arm with VRN with the same temperature "
        f"without VRN and with the temperatures run without VRN only, and corrects over all {number} comparisons. It is a "
        "first look: the verdict of the sweep that made the trials is in its table.txt."
    ]


def _asked(group: Group, summary: Summary, arms: Sequence[Arm]) -> tuple[tuple[str, str], ...]:
    config = group.sample
    controls = control_temperatures(group.configs)
    asked = [
        ("Question", "does adding VRN to the method's loss change the accuracy of probes on the frozen features?"),
        ("Data", f"{config.data}, metrics read on the {split_words(config)}"),
        ("Methods", ", ".join(display_name(m) for m in dict.fromkeys(arm.method for arm in arms))),
        ("Batch sizes", _list(arm.batch_size for arm in arms)),
        ("VRN weights", _list(arm.weight for arm in arms)),
        ("Temperatures", _list(arm.temperature for arm in arms)),
        ("Seeds", f"{len(summary.seeds)} ({_list(summary.seeds)}), paired"),
        ("Length", f"{equal_words(config)}; metrics read once, after the last epoch"),
        ("Backbone", backbone_label(config)),
        ("Trials", f"{_of_planned(group)}, protocol {group.protocol}"),
    ]
    if controls:
        chosen = any(c.role == "tuned baseline" for c in summary.comparisons)
        kind = "Temperatures chosen" if chosen else "Control temperatures"
        asked.insert(6, (f"{kind}, without VRN only", _list(controls)))
    return tuple(asked)


def _of_planned(group: Group) -> str:
    return f"{len(group.trials)}" + (f" of the {len(group.configs)} planned" if group.missing else "")


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(set(values)))


def _tuned_rows(summary: Summary, arms: Sequence[Arm]) -> list[tuple[str, ...]]:
    metric = METRICS[SCORE]
    rows: list[tuple[str, ...]] = []
    for method, batch_size in dict.fromkeys((arm.method, arm.batch_size) for arm in arms):
        best = best_pair(summary, method, batch_size)
        if best is not None:
            rows.append(
                (
                    best.treated.arm.group_label(),
                    *(
                        f"{row.arm.short_label()}: {format_interval(row.interval(SCORE), metric)}"
                        for row in (best.treated, best.base)
                    ),
                    format_interval(best.difference, metric, signed=True),
                )
            )
    return rows


def _warnings(group: Group, summary: Summary) -> list[str]:
    lines = same_data.warnings(group.configs, group.records)
    if group.sample.evaluate_on == "val":
        lines.append(
            "Validation split: these numbers are for choosing an arm. Confirm the choice on the test split with new seeds."
        )
    if group.protocol != PROTOCOL:
        lines.append(
            f"Made under protocol {group.protocol} of the harness; the current protocol is {PROTOCOL}, whose trials differ."
        )
    made = len(origins.environments(group))
    if made > 1:
        lines.append(
            f"Made with {made} different sets of versions, losses or machines (listed below): paired seeds differ in rounding."
        )
    crashed = [trial for trial in group.trials if trial.record["status"] == "crashed"]
    if len(crashed) == len(group.trials) and crashed:
        lines.append(
            f"No trial has a result: {counted(len(crashed), 'trial')} crashed. The reasons are in the table of trials."
        )
    if group.missing:
        lines.append(
            f"No readable record of {len(group.missing)} of the {len(group.configs)} planned trials. Their arms are excluded from "
            "comparisons; run the sweep's command again to run these trials."
        )
    counts = {len([c for c in group.configs if c.arm == row.arm]) for row in summary.rows if row.arm.trained}
    if len(counts) > 1:
        lines.append(
            f"Arms have {min(counts)} to {max(counts)} seeds; a comparison uses the seeds that both arms have."
        )
    return lines


def _rows(summary: Summary) -> list[tuple[str, ...]]:
    rows = []
    for row in summary.rows:
        wanted = len(row.values.get(SCORE, {})) + len(row.diverged) + len(row.crashed)
        count = f"{wanted - len(row.diverged) - len(row.crashed)}/{wanted}" + (
            f", {row.failure}" if row.failure else ""
        )
        rows.append((row.arm.label(), count, *(format_interval(row.interval(name), METRICS[name]) for name in _SHOWN)))
    return rows


def _comparison_rows(summary: Summary) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for c in summary.comparisons:
        failed = c.verdict in get_args(Failure)
        needed = None if failed else c.seeds_needed(c.effect)
        at_most = f"{MOST_SEEDS} or more" if needed and needed.seeds >= MOST_SEEDS else ""
        rows.append(
            (
                f"{c.treated.label()}",
                f"{c.base.short_label()} ({c.role})",
                METRICS[c.metric].title,
                "-" if failed else format_interval(c.result.difference, METRICS[c.metric], signed=True),
                in_words(c),
                "-" if needed is None else at_most or f"{needed.seeds} ({needed.low} to {needed.high})",
            )
        )
    return rows


def _trial_rows(group: Group) -> list[tuple[str, ...]]:
    rows = []
    for trial in group.trials:
        metrics = trial.record.get("metrics", {}) if trial.finished else {}
        rows.append(
            (
                trial.config.arm.label(),
                str(trial.config.seed),
                trial.record["status"] + (f": {trial.record.get('reason')}" if trial.record.get("reason") else ""),
                *(f"{metrics[name]:.{METRICS[name].digits}f}" if name in metrics else "-" for name in _SHOWN),
                trial.file,
            )
        )
    blanks = ("-",) * len(_SHOWN)
    rows += [(config.arm.label(), str(config.seed), "no readable record", *blanks, "-") for config in group.missing]
    return rows
