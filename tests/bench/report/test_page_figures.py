"""The figures and the heat maps of the page."""

import json
import re

import pytest
from support.sweeps import BASE, GRID, PLAIN, SMALL, TUNED, VRN, present, report, visible

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.grid import grid
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.records.store import Store
from varloss_bench.report.figures.charts import gains
from varloss_bench.report.figures.heat import heat_maps
from varloss_bench.report.groups import read
from varloss_bench.report.sections import sections
from varloss_bench.statistics import summary
from varloss_bench.statistics.best import best_row
from varloss_bench.statistics.summary import Pair, grid_pairs


@pytest.mark.parametrize(
    ("base", "words"),
    [(TrialConfig(epochs=7), "equal epochs (7)"), (TrialConfig(epochs=0, steps=90), "equal steps (90)")],
)
@pytest.mark.parametrize("batch_sizes", [[16], [16, 64]])
def test_every_figure_says_what_was_equal(folder, base, words, batch_sizes):
    (section,) = sections(read(folder(base, methods=["simclr"], batch_sizes=batch_sizes)))
    assert len(section.figures) == 7
    for figure in section.figures:
        assert words in figure.caption
        assert all(words in panel.svg for _, panels in figure.parts for panel in panels)


def test_gain_over_a_tuned_baseline_at_the_same_temperature_is_drawn(folder):
    path, trials = folder(**SMALL | {"seeds": range(4)}), grid(TrialConfig(), **SMALL | {"seeds": range(4)})
    pair = Pair(Arm("simclr", 16, 0.5, 3.0), Arm("simclr", 16, 0.5, 0.0), "tuned baseline")
    present(path, trials, [pair])
    (section,) = sections(read(path))
    assert section.settled[0].startswith("SimCLR, B=16, t=0.5 + VRN 3 against the tuned baseline, t=0.5: ")
    (gain,) = (figure for figure in section.figures if figure.anchor == "gain")
    assert "The tuned baseline has the arm's own temperature: SimCLR, B=16, t=0.5." in gain.caption
    assert not any("gained" in line for line in section.missing_figures)


def test_gain_over_a_tuned_baseline_at_another_temperature_is_dashed(folder):
    path, trials = folder(**GRID), grid(TrialConfig(), **GRID)
    present(path, trials, TUNED)
    (section,) = sections(read(path))
    (gain,) = (figure for figure in section.figures if figure.anchor == "gain")
    assert "The tuned baseline has another temperature (dashed): SimCLR, B=16, t=0.2." in gain.caption
    assert [key.label for key in gain.legend] == [
        "VRN 3", "over the same temperature without VRN", "over t=0.2 without VRN",
    ]  # fmt: skip
    ((_, panels),) = gain.parts
    assert [panel.title for panel in panels] == [METRICS[name].title for name in ACCURACIES]
    for panel in panels:
        assert "over t=0.2" in panel.svg
        assert panel.svg.count("stroke-dasharray") == 1  # the bar of the one gain over t=0.2
    result = summary.summarise(trials, Store(path).load(trials).records, TUNED)
    for metric in ACCURACIES:
        drawn = {point.base: point.value.mean for point in gains(result, "simclr", metric).points}
        for base in (PLAIN, Arm("simclr", 16, 0.2, 0.0)):
            assert drawn[base] == pytest.approx(result.row(VRN).mean(metric) - result.row(base).mean(metric))


CROSSES = re.compile(r'xlink:href="#(\w+)"')


def crosses(panel):
    """How many markers of the form x a panel has."""
    definitions = dict(re.findall(r'<path id="(\w+)" d="([^"]*)"', panel.svg))
    paths = [" ".join(definitions[name].split()) for name in CROSSES.findall(panel.svg) if name in definitions]
    return sum(path == "M -3 3 L 3 -3 M -3 -3 L 3 3" for path in paths)


@pytest.mark.parametrize("batch_sizes", [[64], [16, 64]])
@pytest.mark.parametrize(("weight", "failure"), [(3.0, "collapsed"), (3.0, "diverged"), (0.0, "collapsed")])
def test_a_failed_arm_is_a_cross_in_the_figures(folder, batch_sizes, weight, failure):
    arm = Arm("simclr", 64, 0.5, weight)

    def fail(config):
        if config.arm != arm or config.seed:
            return {}
        # The smallest variance there is, if it counted.
        failed = {"collapsed": True} if failure == "collapsed" else {"status": "diverged"}
        return failed | {"metrics": {**BASE, "negative_variance": 0.0001, "negative_mean": 0.99}}

    axes = SMALL | {"batch_sizes": batch_sizes, "seeds": range(3)}
    (section,) = sections(read(folder(changes=fail, **axes)))
    for figure in section.figures:
        if figure.anchor in ("accuracy", "variance"):
            ((_, (panel,)),) = figure.parts
            assert crosses(panel) == 1
            assert figure.legend[-1].glyph == "✕"
            assert figure.legend[-1].label.startswith(failure)
            assert (f"({failure})" in panel.svg) is (len(batch_sizes) == 1)  # beside its name


@pytest.mark.parametrize("failed", [False, True])
def test_a_failed_arm_interrupts_the_dotted_line_of_a_control(folder, failed):
    def fail(config):
        return {"collapsed": True} if failed and config.arm == Arm("simclr", 64, 0.1, 0.0) else {}

    axes = SMALL | {"batch_sizes": [16, 64, 256], "control_temperatures": [0.1]}
    (section,) = sections(read(folder(changes=fail, **axes)))
    (accuracy,) = (figure for figure in section.figures if figure.anchor == "accuracy")
    ((_, (panel,)),) = accuracy.parts
    (dotted,) = re.findall(r'<path d="([^"]*)"[^>]*stroke-dasharray[^>]*var\(--plain\)', panel.svg)
    assert dotted.count("L") == (0 if failed else 2)


def test_no_cross_where_nothing_failed(folder):
    (section,) = sections(read(folder(**SMALL | {"batch_sizes": [16, 64]})))
    assert not any("✕" in key.glyph for figure in section.figures for key in figure.legend)
    assert not any(crosses(panel) for figure in section.figures for _, panels in figure.parts for panel in panels)


def test_heat_maps_show_the_differences_they_say(folder):
    (group,) = read(folder()).groups
    result = summary.summarise(group.configs, group.records, grid_pairs(group.configs, [0.1]))
    base = best_row(result, "simclr", 16, with_vrn=False)
    assert base.arm.weight == 0
    assert base.interval("few_label_probe").mean == max(
        row.interval("few_label_probe").mean
        for row in result.rows
        if row.arm.slug().startswith("simclr-b16") and not row.arm.weight
    )
    score, same, best = heat_maps(result, "simclr", 16)
    assert score.temperatures == (0.1, 0.2, 0.5)
    cells = dict(score.rows)[3.0]
    assert cells[0].text == ""  # VRN was not run at the control
    mean = {t: result.row(Arm("simclr", 16, t, 3.0)).interval("few_label_probe").mean for t in (0.2, 0.5)}
    plain = {t: result.row(Arm("simclr", 16, t, 0.0)).interval("few_label_probe").mean for t in (0.2, 0.5)}
    assert cells[1].text == f"{mean[0.2]:.1f}"
    assert dict(same.rows)[3.0][2].text == f"{mean[0.5] - plain[0.5]:+.1f}"
    assert dict(best.rows)[3.0][2].text == f"{mean[0.5] - base.interval('few_label_probe').mean:+.1f}"
    assert dict(best.rows)[0.0][(0.1, 0.2, 0.5).index(base.arm.temperature)].text == "base"
    assert [cell.best for _, row in score.rows for cell in row].count(True) == 1


def test_a_collapsed_arm_has_no_number_and_is_no_baseline(folder):
    def collapse(config):
        # By far the best score without VRN, if it counted.
        gone = config.arm == Arm("simclr", 16, 0.1, 0.0)
        return {"collapsed": True, "metrics": {**BASE, "few_label_probe": 99.0}} if gone else {}

    (group,) = read(folder(changes=collapse)).groups
    result = summary.summarise(group.configs, group.records, grid_pairs(group.configs, [0.1]))
    assert best_row(result, "simclr", 16, with_vrn=False).arm.temperature != 0.1
    score, *_ = heat_maps(result, "simclr", 16)
    assert dict(score.rows)[0.0][0].text == "collapsed"


def test_cells_are_legible(folder):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    (group,) = read(folder()).groups
    result = summary.summarise(group.configs, group.records, grid_pairs(group.configs, [0.1]))
    coloured = [c for h in heat_maps(result, "simclr", 16) for _, row in h.rows for c in row if c.background]
    assert coloured
    for cell in coloured:
        light, dark = sorted((luminance(cell.background), {"#000": 0.0, "#fff": 1.0}[cell.ink]), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_records_without_pictures_still_make_a_report(folder):
    path = folder(**SMALL)
    for file in (path / "trials").iterdir():
        record = json.loads(file.read_text())
        record.pop("drawn", None)
        record.pop("epoch_losses", None)
        file.write_text(json.dumps(record))
    assert report(path).exit_code == 0
    shown = visible(path)
    for words in ("Histograms of similarities: these records hold none", "Training loss: these records hold none"):
        assert words in shown


def test_pictures_are_the_same_in_every_run(folder):
    path = folder(**SMALL)
    pages = []
    for _ in range(2):
        report(path)
        pages.append((path / "report.html").read_text())
    assert pages[0] == pages[1]
