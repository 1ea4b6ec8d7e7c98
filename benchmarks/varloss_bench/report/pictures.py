"""Which figures a group of trials allows, with captions and legends; the panels themselves are drawn by `report_figures`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import METRICS
from varloss_bench.methods import display_name
from varloss_bench.report import figures
from varloss_bench.report.groups import Group
from varloss_bench.report.heat import SCORE, Heat, heat_maps, tuned
from varloss_bench.report.panel import CROSS, Key, Look, Panel, css, glyph
from varloss_bench.report.style import GREY, equal_words, split_words, weight_colours
from varloss_bench.report.text import group_label
from varloss_bench.report.verdict import FAILURES
from varloss_bench.statistics.summary import Comparison, Summary


@dataclass(frozen=True)
class Figure:
    """Panels, or tables of cells, under one heading."""

    anchor: str
    title: str
    caption: str
    legend: tuple[Key, ...] = ()
    parts: tuple[tuple[str, tuple[Panel, ...]], ...] = ()
    heats: tuple[tuple[str, tuple[Heat, ...]], ...] = ()


_NOT_EQUAL = {
    "epochs": "small batches hence take more steps",
    "steps": "large batches hence see more data",
}


def controls(configs: Sequence[TrialConfig]) -> set[float]:
    """Temperatures at which nothing was run with VRN: they can only have been run to be compared with."""
    trained = [config for config in configs if config.arm.trained]
    return {c.temperature for c in trained} - {c.temperature for c in trained if c.weight}


def pictures(group: Group, summary: Summary, methods: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """All figures that the records allow, and a line for each that they do not."""
    trained = [row.arm for row in summary.rows if row.arm.trained]
    look = Look(weight_colours(arm.weight for arm in trained), equal_words(group.sample))
    several = len({arm.batch_size for arm in trained}) > 1
    legend = tuple(
        Key(css(colour), glyph(number), f"VRN {weight:g}" if weight else "without VRN")
        for number, (weight, colour) in enumerate(look.colours.items())
    )
    made: list[Figure] = []
    missing: list[str] = []

    def add(figure: Figure, otherwise: str) -> None:
        if all(len(panels) == 1 for _, panels in figure.parts):  # methods side by side
            side_by_side = [replace(p, title=f"{name}, {p.title}" if p.title else name) for name, (p,) in figure.parts]
            figure = replace(figure, parts=(("", tuple(side_by_side)),) if side_by_side else ())
        if figure.parts or figure.heats:
            made.append(figure)
        else:
            missing.append(otherwise)

    split = split_words(group.sample)
    then = (f"; {_NOT_EQUAL[group.sample.equal]}" if several else "") + ". "
    against = " against batch size" if several else ""
    dotted = "Dotted: temperatures run without VRN only. " if controls(group.configs) and several else ""

    def add_curves(anchor: str, title: str, caption: str, values: Sequence[figures.Values]) -> None:
        panels = [(_name(m), tuple(figures.over_batch(v, look))) for m, v in zip(methods, values, strict=True)]
        parts = tuple((name, found) for name, found in panels if found)
        keys = tuple(
            key for key, w in zip(legend, look.colours, strict=True) if any(a.weight == w for v in values for a in v.of)
        )
        failures = dict.fromkeys(failure for v in values for failure in v.failed.values())
        keys += tuple(Key(css(GREY), CROSS, FAILURES[failure].legend) for failure in failures)
        add(Figure(anchor, title + against, caption, keys, parts), f"{title}: nothing to show.")

    add_curves(
        "accuracy",
        "Accuracy",
        f"{_capital(METRICS[SCORE].title)}, {split}, {look.equal}{then}Bars: 95% t intervals over seeds of the mean, cut "
        "where they would leave no room for the others. Seeds move all arms together: what two arms differ by is in the next "
        f"figure. {dotted}{_baselines(summary)}",
        [figures.scores(summary, m, SCORE) for m in methods],
    )
    chosen = [c for c in summary.comparisons if c.role == "tuned baseline" and c.metric == SCORE]
    marks = (
        f", with its 95% t interval. Filled: settled after Holm's correction over all {len(summary.comparisons)} comparisons; "
        "hollow: not. Arrow: beyond the axis; long bars are cut. An arm with a failed seed, or whose base has one, is left "
        "out."
    )
    add_curves(
        "gain",
        "Accuracy gained with VRN",
        f"{_capital(METRICS[SCORE].title)}, {split}, {look.equal}{then}Difference, paired by seed, to the same temperature "
        f"without VRN{marks}" + _tuned_words("This is the tuned baseline as well: ", chosen, elsewhere=False),
        [figures.gains(summary, m, SCORE) for m in methods],
    )
    if any(c.against_control for c in chosen):
        add_curves(
            "gain-tuned",
            "Accuracy gained over the tuned baseline",
            f"{_capital(METRICS[SCORE].title)}, {split}, {look.equal}{then}Difference, paired by seed, to the temperature "
            f"chosen for training without VRN{marks}"
            + _tuned_words("At another temperature than the arm with VRN: ", chosen, elsewhere=True)
            + _tuned_words("At the same: ", chosen, elsewhere=False),
            [figures.gains(summary, m, SCORE, over_tuned=True) for m in methods],
        )
    add_curves(
        "variance",
        "Variance of held-out negatives",
        f"Cosine similarities of different held-out images in projection space, {split}, {look.equal}{then}Bars: 95% t "
        f"intervals over seeds of the mean. {dotted}A collapsed net has none either: an arm with one is a cross.",
        [figures.scores(summary, m, "negative_variance") for m in methods],
    )
    cells = [(m, b) for m in methods for b in sorted({arm.batch_size for arm in trained if arm.method == m})]
    heats = [(f"{_name(m)}, B = {b}", tuple(heat_maps(summary, m, b))) for m, b in cells]
    caption = (
        f"{_capital(METRICS[SCORE].title)}, %, mean ± 95% half width over seeds, {split}, {look.equal}. Blue: "
        "better than the baseline, orange: worse, on one scale for all; the score has a scale of its own in each table, "
        "bold is its highest. The best temperature without VRN is chosen by these very numbers."
    )
    add(
        Figure("heat", "VRN weight and temperature", caption, (), (), tuple((n, h) for n, h in heats if h)),
        "Weight and temperature: no method and batch size has two of each.",
    )
    _add_drawn(add, group, summary, cells, look)
    return made, missing


def _tuned_words(lead: str, chosen: Sequence[Comparison], *, elsewhere: bool) -> str:
    """Which tuned baselines are, or are not, at another temperature than what is compared with them."""
    named = [f"{group_label(c.base)}, t={c.base.temperature:g}" for c in chosen if c.against_control is elsewhere]
    return f" {lead}{'; '.join(dict.fromkeys(named))}." if named else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _name(method: str) -> str:
    return display_name(method)


def _baselines(summary: Summary) -> str:
    known = [
        f"{r.arm.method} {r.interval(SCORE).mean:.1f}"
        for r in summary.rows
        if not r.arm.trained and r.values.get(SCORE)
    ]
    return f"Without training: {', '.join(known)}." if known else ""


def _add_drawn(
    add: Callable[[Figure, str], None],
    group: Group,
    summary: Summary,
    cells: Sequence[tuple[str, int]],
    look: Look,
) -> None:
    """Figures of single arms: for each method and batch size the best arm with VRN, and the same arm without."""
    chosen: dict[tuple[str, int], tuple[Arm, Arm]] = {}
    for method, batch_size in cells:
        best = tuned(summary, method, batch_size)
        if best is not None:
            plain = Arm(method, batch_size, best.treated.arm.temperature, 0.0)
            if any(row.arm == plain for row in summary.rows):
                chosen[method, batch_size] = (plain, best.treated.arm)
    methods = list(dict.fromkeys(method for method, _ in chosen))
    used = {arm.weight for pair in chosen.values() for arm in pair}
    keys = tuple(
        Key(css(colour), "▬", f"VRN {weight:g}" if weight else "without VRN") for weight, colour in look.colours.items()
    )
    of_pair = "the arm with VRN that has the highest 10-label probe, and the same temperature without VRN"

    def parts(
        panels: Mapping[tuple[str, int], Panel | None],
    ) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
        by_method = [(_name(m), tuple(p for (method, _), p in panels.items() if method == m and p)) for m in methods]
        return tuple((name, found) for name, found in by_method if found)

    pairs = {cell: figures.histograms(group, *pair, look) for cell, pair in chosen.items()}
    add(
        Figure(
            "histograms",
            "Similarities of positives and negatives",
            f"Held-out images, all seeds together, {look.equal}. Solid: negatives, dashed: positives. Of each method and batch "
            f"size {of_pair}.",
            tuple(key for key, weight in zip(keys, look.colours, strict=True) if weight in used),
            parts(pairs),
        ),
        "Histograms of similarities: these records hold none (made by an earlier version), or no arm has its arm without VRN.",
    )
    curves = {
        cell: figures.losses(
            group,
            [row.arm for row in summary.rows if (row.arm.method, row.arm.batch_size, row.arm.temperature)
             == (*cell, treated.temperature)],
            look,
        )
        for cell, (_, treated) in chosen.items()
    }  # fmt: skip
    add(
        Figure(
            "losses",
            "Training loss",
            f"Mean over seeds, shaded: standard deviation; {look.equal}. VRN's term is part of the loss, so levels of different "
            "weights, temperatures and batch sizes are not comparable; the shape is. At the temperature of the best arm with "
            "VRN.",
            keys,
            parts(curves),
        ),
        "Training loss: these records hold none.",
    )
    planes = {}
    for method in methods:
        cell = next(cell for cell in chosen if cell[0] == method)
        panels = []
        for arm in chosen[cell]:
            trial = next((t for t in group.of(arm) if "drawn" in t.record), None)
            if trial is not None:
                words = f"VRN {arm.weight:g}" if arm.weight else "without VRN"
                title = f"B = {arm.batch_size}, t = {arm.temperature:g}, {words}, seed {trial.config.seed}"
                panels.append(figures.components(trial, title, look))
        planes[_name(method)] = tuple(panels)
    add(
        Figure(
            "components",
            "Projections in the plane",
            f"First two principal components of held-out projections on the unit sphere, coloured by class, {look.equal}. Of "
            f"each method at its smallest batch size {of_pair}; the first seed. Two of many dimensions: a picture, no evidence.",
            (),
            tuple((name, panels) for name, panels in planes.items() if panels),
        ),
        "Principal components: these records hold none.",
    )
