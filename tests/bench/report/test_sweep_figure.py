"""The figure of a sweep."""

import io
import math
import re

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from support.sweeps import BASE, change, in_memory, summarise

from varloss_bench.config import Arm
from varloss_bench.report.figures.style import GREY
from varloss_bench.report.figures.sweep import sweep_figure, sweep_png
from varloss_bench.report.groups import read
from varloss_bench.report.sections import sections
from varloss_bench.statistics.summary import grid_pairs
from varloss_bench.statistics.summary import summarise as summarise_pairs

SWEEP = {
    "methods": ["simclr", "moco"],
    "batch_sizes": [16],
    "weights": [3.0],
    "temperatures": [0.5],
    "control_temperatures": [0.2],
}
GRID = {"batch_sizes": (16, 64, 256), "weights": (1.0, 3.0, 10.0, 30.0)}


@pytest.fixture
def drawn():
    """Draws a sweep over batch sizes, one of whose arms is far off, and returns the figure and its left and right axes."""

    def draw(**changes):
        trials, records = in_memory(effect={"few_label_probe": 1.0}, **changes)
        for seed in range(4):
            metrics = {**BASE, "few_label_probe": 75.0 + seed / 10}
            change(trials, records, Arm("simclr", 256, 0.5, 3.0), seed, metrics=metrics)
        result = summarise(trials, records)
        picture = sweep_figure(result, next(t for t in trials if t.arm.trained))
        picture.canvas.draw()
        return picture, *picture.axes[:2]

    return draw


def test_legend_lies_over_no_data(drawn):
    for changes in (GRID, {"batch_sizes": (256,)}):
        picture, *_ = drawn(**changes)
        assert not any(axis.get_legend() for axis in picture.axes)
        (legend,) = picture.legends
        assert not any(legend.get_window_extent().overlaps(axis.get_window_extent()) for axis in picture.axes)


def test_a_weight_has_one_colour_of_its_own_in_both_panels(drawn):
    picture, gain, variance = drawn(**GRID)
    # Lines over all batch sizes; error bars and caps are made of others.
    left = [line.get_color() for line in gain.lines if len(line.get_xdata()) == 3]
    right = {line.get_color() for line in variance.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"}
    assert len(left) == len(set(left)) == 4
    assert right == {*left, GREY}
    colours = {text.get_text(): line.get_color() for line, text in zip(
        picture.legends[0].get_lines(), picture.legends[0].get_texts(), strict=True
    )}  # fmt: skip
    assert [colours[f"VRN {weight}"] for weight in (1, 3, 10, 30)] == left


@pytest.mark.parametrize(("weights", "dashed"), [((1.0, 3.0, 10.0), 3), ((1.0, 3.0, 10.0, 30.0), 0)])
def test_controls_are_dashed_and_left_to_the_table_where_weights_are_many(drawn, weights, dashed):
    picture, gain, _ = drawn(batch_sizes=(16, 64, 256), weights=weights)
    styles = [line.get_linestyle() for line in gain.lines if len(line.get_xdata()) == 3]
    assert (styles.count("-"), styles.count("--")) == (len(weights), dashed)
    assert ("control temperatures are in the table" in " ".join(picture._supxlabel.get_text().split())) is (dashed == 0)


@pytest.mark.parametrize("batch_sizes", [(16, 64, 256), (256,)])
def test_an_arm_far_off_is_noted_at_the_edge_and_squeezes_nothing(drawn, batch_sizes):
    _, gain, _ = drawn(batch_sizes=batch_sizes, weights=(1.0, 3.0))
    low, high = gain.get_ylim() if len(batch_sizes) > 1 else gain.get_xlim()
    assert -3 < low < 0
    assert 1 < high < 3  # the gain of the other arms
    notes = [text.get_text() for text in gain.texts]
    assert len(notes) == 2  # against the same temperature and against the control
    assert all(re.fullmatch(r"-(19|20)\.\d±0\.\d", note) for note in notes), notes


@pytest.mark.parametrize("gain", [0.0, 5.0])
def test_a_single_seed_without_differences_has_an_axis(gain):
    """Of four accuracies at most one differs; matplotlib warns where an axis ends where it begins."""
    trials, records = in_memory(seeds=1)
    for trial in trials:
        change(trials, records, trial.arm, 0, metrics=BASE | {"knn": 97.0 + gain * (trial.weight > 0)})
    picture = sweep_figure(summarise(trials, records), next(t for t in trials if t.arm.trained))
    low, high = picture.axes[0].get_xlim()
    assert low < 0 < high


def test_a_failed_arm_is_a_named_cross_and_on_no_line():
    """The variance of a failed arm would be the smallest in the figure."""
    trials, records = in_memory(batch_sizes=(16, 64, 256))
    for seed in range(4):
        metrics = {**BASE, "negative_variance": 0.0001, "negative_mean": 0.99}
        change(trials, records, Arm("simclr", 256, 0.5, 3.0), seed, collapsed=True, metrics=metrics)
    picture = sweep_figure(summarise(trials, records), next(t for t in trials if t.arm.trained))
    gain, failed, _, whole = picture.axes
    for axis, failures in ((failed, 1), (whole, 0)):
        found = [line for line in axis.lines if line.get_marker() == "x"]
        assert [float(line.get_ydata()[0]) for line in found] == [0.0001] * failures
        # With VRN, without it, and the control.
        lines = [line for line in axis.lines if len(line.get_xdata()) == 3 and line.get_linestyle() in ("-", ":")]
        assert len(lines) == 3
        assert min(np.nanmin(line.get_ydata()) for line in lines) > 0.1
        assert sum(math.isnan(value) for line in lines for value in line.get_ydata()) == failures
    assert "collapsed" in [text.get_text() for text in picture.legends[0].get_texts()]
    # A failed arm gains nothing: its lines have two batch sizes.
    assert {len(line.get_xdata()) for line in gain.lines if line.get_linestyle() in ("-", "--")} >= {2}
    assert not any(len(line.get_xdata()) == 3 for line in gain.lines)


def test_the_page_and_the_picture_show_the_same_panels(folder):
    """The same drawings: every text in a panel of the page is in the picture."""
    path = folder(**SWEEP)
    (group,) = read(path).groups
    summary = summarise_pairs(group.configs, group.records, grid_pairs(group.configs, [0.2]))
    (section,) = sections(read(path))
    picture = sweep_figure(summary, group.sample)
    written = {text.get_text() for text in picture.findobj(Text)}
    for figure in section.figures:
        if figure.anchor in ("gain", "variance"):
            labels = {
                text
                for _, panels in figure.parts
                for panel in panels
                for text in re.findall(r">([^<>]+)</text>", panel.svg)
            }
            assert {label for label in labels if "VRN" in label or "batch size" in label} <= {
                line for text in written for line in text.split("\n")
            }


@pytest.mark.parametrize(
    "changes", [{}, {"batch_sizes": (16, 64, 256), "weights": (1.0, 3.0)}, {"seeds": 1}, {"weights": (0.0,)}]
)
@pytest.mark.parametrize(
    ("lengths", "words"),
    [({"epochs": 20}, "equal epochs (20)"), ({"epochs": 7}, "equal epochs (7)"),
     ({"epochs": 0, "steps": 90}, "equal steps (90)")],
)  # fmt: skip
def test_figure_says_what_was_equal_and_is_a_picture_with_something_on_it(changes, lengths, words):
    trials, records = in_memory(effect={"few_label_probe": 1.0}, **changes, **lengths)
    picture = sweep_figure(summarise(trials, records), next(t for t in trials if t.arm.trained))
    written = [text.get_text() for text in picture.findobj(Text) if text.get_visible()]
    assert any(words.lower() in " ".join(text.split()).lower() for text in written)
    other = {"epochs": "equal steps", "steps": "equal epochs"}["steps" if "steps" in lengths else "epochs"]
    assert not any(other in " ".join(text.split()).lower() for text in written)
    png = sweep_png(summarise(trials, records), next(t for t in trials if t.arm.trained))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert 0.01 < (pixels < 128).any(axis=2).mean() < 0.5
