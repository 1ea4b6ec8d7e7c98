"""The report's contents, from records to what the templates show: the question, the verdict, figures, details."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from varloss_bench.config import ARM_AND_SEED, PROTOCOL, Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.messages import counted
from varloss_bench.methods import display_name
from varloss_bench.records import same_data
from varloss_bench.report import origins as report_origins
from varloss_bench.report import text as report_text
from varloss_bench.report import verdict as report_verdict
from varloss_bench.report.groups import Found, Group
from varloss_bench.report.heat import SCORE, tuned
from varloss_bench.report.panel import Panel
from varloss_bench.report.pictures import Figure, controls, pictures
from varloss_bench.report.style import equal_words, split_words
from varloss_bench.statistics import inference as stats
from varloss_bench.statistics.summary import EFFECT_POINTS, Summary, grid_pairs, summarise

# Columns of the table of arms; the others are in rows.csv.
_SHOWN = (*ACCURACIES, "negative_variance", "negative_mean", "positive_mean")


@dataclass(frozen=True)
class Section:
    """All that is said of one group."""

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


def html(found: Found, parts: Sequence[Section], folder: Path, command: str) -> str:
    """The page: one file, no script, nothing loaded. Everything out of a record is escaped."""
    return _render("report.html.j2", found, parts, folder, command, escape=True)


def markdown(found: Found, parts: Sequence[Section], folder: Path, command: str) -> str:
    """The same without figures."""
    return _render("report.md.j2", found, parts, folder, command, escape=False)


def _render(template: str, found: Found, parts: Sequence[Section], folder: Path, command: str, *, escape: bool) -> str:
    environment = Environment(
        loader=PackageLoader("varloss_bench.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = _trusted_svg
    environment.filters["cell"] = _markdown_cell
    environment.filters["counted"] = counted
    return environment.get_template(template).render(
        sections=parts, left_out=found.left_out, folder=str(folder), command=command, num_trials=len(found.trials)
    )


def _trusted_svg(panel: Panel) -> Markup:
    """Matplotlib's own output, in which it has escaped every text."""
    return Markup(panel.svg)


def _markdown_cell(text: object) -> str:
    """Text that stays in its cell and is no markup: Markdown lets HTML through."""
    one_line = " ".join(str(text).split())
    for character, replacement in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        one_line = one_line.replace(character, replacement)
    return "".join(f"\\{c}" if c in "|`*_[]#~" else c for c in one_line)


# Told by a section's title in any case.
_IN_TITLE = frozenset({"data", "evaluate_on", "epochs", "steps", "backbone"})


def _differences(groups: Sequence[Group]) -> list[tuple[tuple[str, str], ...]]:
    """For each group the options, and the protocol, that are not the same in all groups, as they are in this one."""
    names = [field.name for field in fields(TrialConfig) if field.name not in ARM_AND_SEED]
    values = [{name: _option(group, name) for name in names} | {"protocol": str(group.protocol)} for group in groups]
    differing = [name for name in [*names, "protocol"] if len({of_group[name] for of_group in values}) > 1]
    return [tuple((name, of_group[name]) for name in differing) for of_group in values]


def _option(group: Group, name: str) -> str:
    """The value of a field; of the arms with VRN, as all others have what only concerns VRN at its default.

    Methods whose own choice it is anyway have None: what the other methods have is then said.
    """
    configs = [config for config in group.configs if config.arm.trained]
    configs = [config for config in configs if config.weight] or configs
    seen = list(dict.fromkeys(getattr(config, name) for config in configs))
    return ", ".join(str(value) for value in seen if value is not None) or "by default"


def _section(group: Group, anchor: str, differing: Sequence[tuple[str, str]]) -> Section:
    config = group.sample
    pairs = group.plan.pairs if group.plan else grid_pairs(group.configs, controls(group.configs))
    effect = group.plan.effect_points if group.plan else EFFECT_POINTS
    summary = summarise(group.configs, group.records, pairs, effect_points=effect)
    arms = [row.arm for row in summary.rows if row.arm.trained]
    methods = list(dict.fromkeys(arm.method for arm in arms))
    drawn, missing = pictures(group, summary, methods)
    return Section(
        anchor=anchor,
        title=f"{config.data}, {split_words(config)}, {equal_words(config)}, {_backbone(config)}"
        + "".join(f", {name} {value}" for name, value in differing if name not in _IN_TITLE)
        + (": all sweeps with these options" if group.beyond_plan else ""),
        asked=(*_asked(group, summary, arms), *(pair for pair in differing if pair[0] not in _IN_TITLE | {"protocol"})),
        verdict=tuple(report_verdict.verdict(summary)),
        settled=tuple(report_verdict.settled(summary)),
        tuned=tuple(_tuned_rows(summary, arms)),
        warnings=tuple(_warnings(group, summary)),
        figures=tuple(drawn),
        missing_figures=tuple(missing),
        notes=(*report_text.notes(summary, config), *_family(group, summary)),
        heads=("arm", "seeds", *(METRICS[name].title + (", %" if METRICS[name].unit else "") for name in _SHOWN)),
        rows=tuple(_rows(summary)),
        comparisons=tuple(_comparison_rows(summary)),
        trials=tuple(_trial_rows(group)),
        environments=tuple(report_origins.environments(group)),
        confounds=tuple(report_origins.confounds(group)),
        commands=tuple(report_origins.commands(group)),
        effect=f"{effect:g} point{'s' if effect != 1 else ''}",
    )


def _family(group: Group, summary: Summary) -> list[str]:
    """Where the comparisons come from; nothing where there are none and none were planned."""
    number = len(summary.comparisons)
    if group.plan:
        return [
            f"Compared is what the sweep had planned: the same family of {number} comparisons as in its table.txt."
            if number
            else "The sweep had planned no comparison."
        ]
    if not number:
        return []
    return [
        "What was planned for these trials is not recorded here. This section compares with the same temperature and with "
        f"temperatures run without VRN only, and corrects over all {number}: a first look. The verdict of the sweep that made "
        "them is in the table.txt that it wrote."
    ]


def _backbone(config: TrialConfig) -> str:
    return "3-convolution net" if config.backbone == "small" else config.backbone


def _asked(group: Group, summary: Summary, arms: Sequence[Arm]) -> tuple[tuple[str, str], ...]:
    config = group.sample
    control_temperatures = controls(group.configs)
    asked = [
        ("Question", "does VRN, added to the method's loss, change what frozen features are worth?"),
        ("Data", f"{config.data}, read on the {split_words(config)}"),
        ("Methods", ", ".join(display_name(m) for m in dict.fromkeys(arm.method for arm in arms))),
        ("Batch sizes", _list(arm.batch_size for arm in arms)),
        ("VRN weights", _list(arm.weight for arm in arms)),
        ("Temperatures", _list(arm.temperature for arm in arms)),
        ("Seeds", f"{len(summary.seeds)} ({_list(summary.seeds)}), paired"),
        ("Length", f"{equal_words(config)}; read once, after the last epoch"),
        ("Backbone", _backbone(config)),
        ("Trials", f"{_of_planned(group)}, protocol {group.protocol}"),
    ]
    if control_temperatures:
        chosen = any(c.role == "tuned baseline" for c in summary.comparisons)
        kind = "Temperatures chosen" if chosen else "Control temperatures"
        asked.insert(6, (f"{kind}, without VRN only", _list(control_temperatures)))
    return tuple(asked)


def _of_planned(group: Group) -> str:
    return f"{len(group.trials)}" + (f" of the {len(group.configs)} planned" if group.missing else "")


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(set(values)))


def _tuned_rows(summary: Summary, arms: Sequence[Arm]) -> list[tuple[str, ...]]:
    metric = METRICS[SCORE]
    rows: list[tuple[str, ...]] = []
    for method, batch_size in dict.fromkeys((arm.method, arm.batch_size) for arm in arms):
        best = tuned(summary, method, batch_size)
        if best is not None:
            rows.append(
                (
                    report_text.group_label(best.treated.arm),
                    *(
                        f"{report_text.arm_label(row.arm)}: {report_text.format_interval(row.interval(SCORE), metric)}"
                        for row in (best.treated, best.base)
                    ),
                    report_text.format_interval(best.difference, metric, signed=True),
                )
            )
    return rows


def _warnings(group: Group, summary: Summary) -> list[str]:
    lines = same_data.warnings(group.configs, group.records)
    if group.sample.evaluate_on == "val":
        lines.append(
            "Validation split: these numbers are for choosing. A choice is worth what it shows on fresh test seeds."
        )
    if group.protocol != PROTOCOL:
        lines.append(
            f"Made under protocol {group.protocol} of the harness, which is now at {PROTOCOL}: today's trials would differ."
        )
    made = len(report_origins.environments(group))
    if made > 1:
        lines.append(
            f"Made by {made} different sets of versions, losses or machines (below): seeds are paired, rounding is not."
        )
    crashed = [trial for trial in group.trials if trial.record["status"] == "crashed"]
    if len(crashed) == len(group.trials) and crashed:
        lines.append(
            f"No trial has a result: {counted(len(crashed), 'trial')} crashed. The reasons are in the table of trials."
        )
    if group.missing:
        lines.append(
            f"No readable record of {len(group.missing)} of the {len(group.configs)} planned trials. What is left of their "
            "arms is compared with nothing; running the sweep's command again makes them."
        )
    counts = {len([c for c in group.configs if c.arm == row.arm]) for row in summary.rows if row.arm.trained}
    if len(counts) > 1:
        lines.append(
            f"Arms have from {min(counts)} to {max(counts)} seeds; a comparison is over the seeds that both have."
        )
    return lines


def _rows(summary: Summary) -> list[tuple[str, ...]]:
    rows = []
    for row in summary.rows:
        wanted = len(row.values.get(SCORE, {})) + len(row.diverged) + len(row.crashed)
        count = f"{wanted - len(row.diverged) - len(row.crashed)}/{wanted}" + (
            f", {row.failure}" if row.failure else ""
        )
        label = (
            f"{report_text.group_label(row.arm)}, {report_text.arm_label(row.arm)}"
            if row.arm.trained
            else row.arm.method
        )
        rows.append(
            (label, count, *(report_text.format_interval(row.interval(name), METRICS[name]) for name in _SHOWN))
        )
    return rows


def _comparison_rows(summary: Summary) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for c in summary.comparisons:
        failed = c.verdict in get_args(stats.Failure)
        needed = None if failed else c.seeds_needed(c.effect)
        at_most = f"{stats.MOST_SEEDS} or more" if needed and needed.seeds >= stats.MOST_SEEDS else ""
        rows.append(
            (
                f"{report_text.group_label(c.treated)}, {report_text.arm_label(c.treated)}",
                f"{report_text.arm_label(c.base)} ({c.role})",
                METRICS[c.metric].title,
                "-" if failed else report_text.format_interval(c.result.difference, METRICS[c.metric], signed=True),
                report_text.in_words(c),
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
