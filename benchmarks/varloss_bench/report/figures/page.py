"""The figures of a section of the page: which ones its records allow, with captions and legends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import METRICS
from varloss_bench.methods import display_name
from varloss_bench.report.figures import drawings
from varloss_bench.report.figures.charts import Chart, gain_metrics, gains, look_of, means, shows_controls
from varloss_bench.report.figures.drawings import Drawing
from varloss_bench.report.figures.heat import Heat, heat_maps
from varloss_bench.report.figures.style import GREY, Look
from varloss_bench.report.figures.svg import CROSS, Panel, css, glyph, panel
from varloss_bench.report.groups import Group
from varloss_bench.report.labels import capitalised, split_words, weight_label
from varloss_bench.report.verdict import FAILURES
from varloss_bench.statistics.best import SCORE, best_pair
from varloss_bench.statistics.summary import Comparison, Summary

_NOT_EQUAL = {
    "epochs": "so small batches take more steps",
    "steps": "so large batches see more data",
}
_DASH_GLYPHS = {"-": "──", "--": "╌╌", ":": "┈┈", "-.": "─·"}
# Method and batch size.
_Cell = tuple[str, int]


class Key(NamedTuple):
    """An entry of a legend in HTML."""

    colour: str
    glyph: str
    label: str


@dataclass(frozen=True)
class Figure:
    """Panels, or tables of cells, under one heading."""

    anchor: str
    title: str
    caption: str
    legend: tuple[Key, ...] = ()
    parts: tuple[tuple[str, tuple[Panel, ...]], ...] = ()
    heats: tuple[tuple[str, tuple[Heat, ...]], ...] = ()


def control_temperatures(configs: Sequence[TrialConfig]) -> set[float]:
    """Temperatures at which nothing was run with VRN; they were run for comparison."""
    trained = [config for config in configs if config.arm.trained]
    return {c.temperature for c in trained} - {c.temperature for c in trained if c.weight}


def figures(group: Group, summary: Summary, methods: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """All figures that the records allow, and a line for each that they do not."""
    look = look_of(summary, group.sample)
    made: list[Figure] = []
    missing: list[str] = []

    def add(figure: Figure, otherwise: str) -> None:
        if figure.parts or figure.heats:
            made.append(_side_by_side(figure))
        else:
            missing.append(otherwise)

    _add_charts(add, group, summary, methods, look)
    cells = [
        (method, batch_size)
        for method in methods
        for batch_size in sorted({row.arm.batch_size for row in summary.rows if row.arm.method == method})
    ]
    heats = [(f"{display_name(m)}, B = {b}", tuple(heat_maps(summary, m, b))) for m, b in cells]
    caption = (
        f"{capitalised(METRICS[SCORE].title)}, %, mean ± 95% half width over seeds, {split_words(group.sample)}, "
        f"{look.equal}. Blue: better than the baseline; orange: worse; one scale for all tables of gains. Each table of "
        "scores has its own scale; its highest score is bold. The best temperature without VRN is chosen by these same "
        "numbers."
    )
    add(
        Figure("heat", "VRN weight and temperature", caption, (), (), tuple((n, h) for n, h in heats if h)),
        "Weight and temperature: no method and batch size has two of each.",
    )
    _add_single_arms(add, group, summary, cells, look)
    return made, missing


def _side_by_side(figure: Figure) -> Figure:
    """Methods of one panel each stand in one row, named in the headings of their panels."""
    if not figure.parts or any(len(panels) > 1 for _, panels in figure.parts):
        return figure
    panels = [replace(p, title=f"{name}, {p.title}" if p.title else name) for name, (p,) in figure.parts]
    return replace(figure, parts=(("", tuple(panels)),))


def _add_charts(
    add: Callable[[Figure, str], None], group: Group, summary: Summary, methods: Sequence[str], look: Look
) -> None:
    """Figures of means and gains over the arms."""
    several = len({row.arm.batch_size for row in summary.rows if row.arm.trained}) > 1
    split = split_words(group.sample)
    setting = f"{split}, {look.equal}" + (f", {_NOT_EQUAL[group.sample.equal]}. " if several else ". ")
    dotted = "Dotted: temperatures run without VRN only. " if several and control_temperatures(group.configs) else ""
    score = capitalised(METRICS[SCORE].title)

    def add_charts(anchor: str, title: str, caption: str, charts: Mapping[str, Sequence[Chart]]) -> None:
        drawn = {method: tuple(map(panel, drawings.panels(of_method, look))) for method, of_method in charts.items()}
        parts = tuple((display_name(method), panels) for method, panels in drawn.items() if panels)
        keys = _legend([chart for of_method in charts.values() for chart in of_method], look)
        heading = title + (" against batch size" if several else "")
        add(Figure(anchor, heading, caption, keys, parts), f"{title}: nothing to show.")

    add_charts(
        "accuracy",
        "Accuracy",
        f"{score}, {setting}Bars: 95% t intervals over seeds of the mean, cut where they would leave no room for the others. "
        "A seed shifts all arms together; the next figure shows what two arms differ by. "
        f"{dotted}{_untrained(summary)}",
        {method: [means(summary, method, SCORE)] for method in methods},
    )
    metrics = gain_metrics(summary)
    names = score if len(metrics) == 1 else "Four accuracies"
    add_charts(
        "gain",
        "Accuracy gained with VRN",
        f"{names}, {setting}Difference, paired by seed, to an arm without VRN, with its 95% t interval.{_bases(summary)} "
        f"Filled: settled (significant after Holm's correction over all {len(summary.comparisons)} comparisons). Hollow: not "
        "settled. Arrow: beyond the axis; long bars are cut. Arms with a failed seed, or whose base has one, are left out.",
        {method: [gains(summary, method, metric) for metric in metrics] for method in methods},
    )
    add_charts(
        "variance",
        "Variance of held-out negatives",
        f"Cosine similarities of different held-out images in projection space, {setting}Bars: 95% t intervals over seeds of "
        f"the mean. {dotted}A collapsed net has no variance either; an arm with a collapsed seed is a cross.",
        {method: [means(summary, method, "negative_variance")] for method in methods},
    )


def _legend(charts: Sequence[Chart], look: Look) -> tuple[Key, ...]:
    points = [point for chart in charts for point in chart.points]
    weights = {point.arm.weight for point in points}
    keys = [
        Key(css(colour), glyph(look.marker(weight)), weight_label(weight))
        for weight, colour in look.colours.items()
        if weight in weights
    ]
    if controls := dict.fromkeys(point.control for point in points if point.control is not None):
        keys.append(Key("currentColor", _DASH_GLYPHS["-"], "over the same temperature without VRN"))
        keys += [Key("currentColor", _DASH_GLYPHS[look.dashes[t]], f"over t={t:g} without VRN") for t in controls]
    failures = dict.fromkeys(point.failure for point in points if point.failure)
    return (*keys, *(Key(css(GREY), CROSS, FAILURES[failure].legend) for failure in failures))


def _bases(summary: Summary) -> str:
    """What the gains are over, in words."""
    of_score = [c for c in summary.comparisons if c.metric == SCORE]
    tuned = [c for c in of_score if c.role == "tuned baseline"]
    words = ""
    for lead, elsewhere in (
        ("The tuned baseline has the arm's own temperature", False),
        ("The tuned baseline has another temperature (dashed)", True),
    ):
        named = _named([c for c in tuned if c.against_control is elsewhere])
        words += f" {lead}: {named}." if named else ""
    controls = dict.fromkeys(c.base.temperature for c in of_score if c.role == "control")
    if controls and shows_controls(summary):
        words += f" Dashed: over the control temperature {', '.join(f'{t:g}' for t in controls)} without VRN."
    elif controls:
        words += " Gains over the control temperatures are in the table of comparisons."
    return words


def _named(comparisons: Sequence[Comparison]) -> str:
    return "; ".join(dict.fromkeys(f"{c.base.group_label()}, t={c.base.temperature:g}" for c in comparisons))


def _untrained(summary: Summary) -> str:
    known = [
        f"{row.arm.short_label()} {row.mean(SCORE):.1f}"
        for row in summary.rows
        if not row.arm.trained and row.values.get(SCORE)
    ]
    return f"Without training: {', '.join(known)}." if known else ""


def _add_single_arms(
    add: Callable[[Figure, str], None], group: Group, summary: Summary, cells: Sequence[_Cell], look: Look
) -> None:
    """Figures of single arms: for each method and batch size the best arm with VRN, and the same arm without VRN."""
    arms = [row.arm for row in summary.rows]
    chosen: dict[_Cell, tuple[Arm, Arm]] = {}
    for method, batch_size in cells:
        best = best_pair(summary, method, batch_size)
        if best is not None and (plain := replace(best.treated.arm, weight=0.0)) in arms:
            chosen[method, batch_size] = plain, best.treated.arm
    used = {arm.weight for pair in chosen.values() for arm in pair}
    keys = {weight: Key(css(colour), "▬", weight_label(weight)) for weight, colour in look.colours.items()}
    of_pair = "the arm with VRN that has the highest 10-label probe, and the same temperature without VRN"

    add(
        Figure(
            "histograms",
            "Similarities of positives and negatives",
            f"Held-out images, all seeds together, {look.equal}. Solid: negatives; dashed: positives. Shown are, for each "
            f"method and batch size, {of_pair}.",
            tuple(key for weight, key in keys.items() if weight in used),
            _by_method({cell: drawings.histograms(group, *pair, look) for cell, pair in chosen.items()}),
        ),
        "Histograms of similarities: these records hold none (made by an earlier version), or no arm with VRN has its arm "
        "without VRN.",
    )
    curves = {
        cell: drawings.losses(group, [arm for arm in arms if replace(arm, weight=0.0) == plain], look)
        for cell, (plain, _) in chosen.items()
    }
    add(
        Figure(
            "losses",
            "Training loss",
            f"Mean over seeds; shaded: standard deviation; {look.equal}. The VRN term is part of the loss, so only the shapes "
            "of curves with different weights, temperatures and batch sizes are comparable, not their levels. Shown at the "
            "temperature of the best arm with VRN.",
            tuple(keys.values()),
            _by_method(curves),
        ),
        "Training loss: these records hold none.",
    )
    planes: dict[str, list[Drawing | None]] = {}
    for (method, _), pair in chosen.items():
        planes.setdefault(method, [_plane(group, arm, look) for arm in pair])
    add(
        Figure(
            "components",
            "Projections in the plane",
            f"First two principal components of held-out projections on the unit sphere, coloured by class, {look.equal}. "
            f"Shown are, for each method at its smallest batch size, {of_pair}; first seed. Two of many dimensions are an "
            "illustration, not evidence.",
            (),
            tuple((display_name(m), tuple(panel(d) for d in drawn if d)) for m, drawn in planes.items() if any(drawn)),
        ),
        "Principal components: these records hold none.",
    )


def _by_method(drawn: Mapping[_Cell, Drawing | None]) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    by_method: dict[str, list[Panel]] = {}
    for (method, _), drawing in drawn.items():
        if drawing:
            by_method.setdefault(method, []).append(panel(drawing))
    return tuple((display_name(method), tuple(panels)) for method, panels in by_method.items())


def _plane(group: Group, arm: Arm, look: Look) -> Drawing | None:
    trial = next((trial for trial in group.of(arm) if "drawn" in trial.record), None)
    if trial is None:
        return None
    title = f"B = {arm.batch_size}, t = {arm.temperature:g}, {weight_label(arm.weight)}, seed {trial.config.seed}"
    return drawings.components(trial, title, look)
