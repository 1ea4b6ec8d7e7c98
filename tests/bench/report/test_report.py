"""From records to rows, comparisons, words and pictures, on records made up with known numbers."""

import dataclasses
import io
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from varloss_bench import measures
from varloss_bench.config import Arm, TrialConfig, grid
from varloss_bench.data import fashion as data_fashion
from varloss_bench.data import sets as data
from varloss_bench.records import provenance
from varloss_bench.records import redraws as seed_words
from varloss_bench.report import sweep_figure as figure
from varloss_bench.report import text as report_text
from varloss_bench.statistics import summary

BASE = {"few_label_probe": 95.0, "linear_probe": 98.0, "knn": 97.0, "projection_knn": 96.0,
        "negative_variance": 0.18, "negative_mean": 0.01, "positive_mean": 0.7}  # fmt: skip


CONTROLS = (0.2,)


def summarise(trials, records, **options):
    return summary.summarise(trials, records, summary.grid_pairs(trials, CONTROLS), **options)


def sweep(*, batch_sizes=(16,), seeds=4, effect=None, weights=(3.0,), temperatures=(0.5,), epochs=20, steps=0):
    """Trials and records of which VRN moves each metric by `effect`, with a little noise that is not shared."""
    trials = grid(
        TrialConfig(epochs=epochs, steps=steps),
        methods=["simclr", "moco"],
        batch_sizes=batch_sizes,
        weights=weights,
        temperatures=temperatures,
        control_temperatures=CONTROLS,
        seeds=range(seeds),
    )
    rng = np.random.default_rng(0)
    records = {}
    for trial in trials:
        level = BASE if trial.arm.trained else dict.fromkeys(("few_label_probe", "linear_probe", "knn"), 90.0)
        metrics = {name: value + 0.002 * rng.normal() for name, value in level.items()}
        if trial.weight:
            metrics = {name: value + (effect or {}).get(name, 0.0) for name, value in metrics.items()}
        records[trial.key()] = {
            "status": "finished", "reason": None, "collapsed": False, "metrics": metrics,
            "seconds": {"train": 2.0, "evaluate": 0.1},
        }  # fmt: skip
    return trials, records


def change(trials, records, arm, seed, **changes):
    config = next(trial for trial in trials if trial.arm == arm and trial.seed == seed)
    records[config.key()] = {**records[config.key()], **changes}


def text_of(trials, records):
    return report_text.plain_text(summarise(trials, records), next(t for t in trials if t.arm.trained))


VRN = Arm("simclr", 16, 0.5, 3.0)
PLAIN = Arm("simclr", 16, 0.5, 0.0)


def test_compares_with_the_same_arm_and_with_the_control():
    trials, records = sweep()
    result = summarise(trials, records)
    pairs = list(dict.fromkeys((c.treated, c.base) for c in result.comparisons if c.treated.method == "simclr"))
    assert pairs == [(VRN, PLAIN), (VRN, Arm("simclr", 16, 0.2, 0.0))]
    assert len(result.comparisons) == 2 * 2 * 5


def test_a_control_at_which_vrn_was_run_too_stays_a_rival():
    trials, records = sweep(temperatures=(0.5, 0.2, 0.1))
    result = summarise(trials, records)
    pairs = {(c.treated, c.base.temperature) for c in result.comparisons if c.treated.method == "simclr"}
    at = {temperature: Arm("simclr", 16, temperature, 3.0) for temperature in (0.5, 0.2, 0.1)}
    # 0.5 and 0.1 are no controls, and 0.2 is its own base once, not twice.
    assert pairs == {(at[0.5], 0.5), (at[0.5], 0.2), (at[0.2], 0.2), (at[0.1], 0.1), (at[0.1], 0.2)}
    assert len(result.comparisons) == 2 * 5 * 5


def test_a_planted_effect_is_settled_and_nothing_else_is():
    trials, records = sweep(effect={"few_label_probe": 1.0})
    result = summarise(trials, records)
    settled = {c.metric for c in result.comparisons if c.verdict == "settled"}
    assert settled == {"few_label_probe"}
    text = " ".join(text_of(trials, records).split())
    assert "linear probe, 10 labels per class: 1.00 points higher, settled at 4 seeds (95% interval" in text
    assert re.search(
        r"not settled at 4 seeds; an effect of 0\.5 points would need about \(seeds\): linear probe, all labels \(\d+\); kNN, "
        r"backbone \(\d+\)",
        text,
    )
    assert "On the 10-label probe every trained row is above raw-pixels (90.00)." in text


def test_differences_have_the_right_sign_and_size():
    trials, records = sweep(effect={"negative_variance": -0.1})
    comparison = next(
        c
        for c in summarise(trials, records).comparisons
        if c.metric == "negative_variance" and (c.treated, c.base) == (VRN, PLAIN)
    )
    assert comparison.result.difference.mean == pytest.approx(-0.1, abs=0.005)
    assert "0.10" in report_text.in_words(comparison)
    assert "lower" in report_text.in_words(comparison)


def test_a_collapsed_arm_wins_nothing():
    trials, records = sweep(effect={"negative_variance": -0.17})
    change(trials, records, VRN, seed=2, collapsed=True)
    result = summarise(trials, records)
    assert {c.verdict for c in result.comparisons if c.treated == VRN} == {"collapsed"}
    assert "settled" in {c.verdict for c in result.comparisons if c.treated.method == "moco"}
    text = " ".join(text_of(trials, records).split())
    assert "collapsed, not a win" in text
    assert "(1 collapsed)" in text


def test_a_failed_arm_has_no_p_value_and_stays_in_the_family():
    """Its survivors' tiny p-value must not be the first step that makes Holm's next one easier."""
    trials, records = sweep(effect={"negative_variance": -0.17, "few_label_probe": 0.006})
    change(trials, records, VRN, seed=2, collapsed=True)
    result = summarise(trials, records)
    failed = [c for c in result.comparisons if c.treated == VRN]
    assert all(math.isnan(c.result.p_value) and math.isnan(c.adjusted_p) for c in failed)
    tested = sorted(c.result.p_value for c in result.comparisons if c.treated != VRN)
    adjusted = sorted(c.adjusted_p for c in result.comparisons if c.treated != VRN)
    assert len(failed) == len(tested) == 10
    assert adjusted[0] == pytest.approx(20 * tested[0])
    stored = summary.to_dict(result)
    assert stored["comparisons_in_family"] == 20
    assert {c["p_value"] for c in stored["comparisons"] if c["verdict"] == "collapsed"} == {None}
    assert {c["seeds_needed"]["stated"] for c in stored["comparisons"] if c["verdict"] == "collapsed"} == {None}


def test_seeds_needed_are_those_of_the_spread_and_the_family():
    """Spread .816, half a point: the smallest n whose power by scipy's `nct.sf` is at least .8, at .05 and at .05/20."""
    trials, records = sweep()
    for seed, difference in enumerate((-1.0, 0.0, 0.0, 1.0)):
        change(trials, records, VRN, seed, metrics={**BASE, "few_label_probe": 95.0 + difference})
        change(trials, records, PLAIN, seed, metrics=BASE)
    comparison = next(c for c in summarise(trials, records).comparisons if (c.treated, c.base) == (VRN, PLAIN))
    assert comparison.seeds_needed(0.5, alone=True).seeds == 23
    assert comparison.seeds_needed(0.5).seeds == 45
    words = report_text.in_words(comparison)
    assert words == (
        "not settled at 4 seeds (95% interval -1.30 to +1.30); an effect of 0.5 points would need about 45"
    )
    stated = summary.to_dict(summarise(trials, records))["comparisons"][0]["seeds_needed"]["stated"]
    assert (stated["effect"], stated["seeds"], stated["as_only_comparison"]) == (0.5, 45, 23)
    other = next(c for c in summarise(trials, records, effect_points=1.0).comparisons if c.treated == VRN)
    assert "an effect of 1 point would need about 15" in report_text.in_words(other)


def test_the_base_of_a_pair_is_named_for_what_it_is():
    trials, records = sweep(effect={"few_label_probe": 1.0})
    pairs = [summary.Pair(VRN, Arm("simclr", 16, 0.2, 0.0), "tuned baseline")]
    result = summary.summarise(trials, records, pairs)
    assert [c.metric for c in result.comparisons] == list(summary.COMPARED)
    assert report_text.verdict_lines(result)[0] == "SimCLR, B=16: t=0.5 + VRN 3 against the tuned baseline, t=0.2"
    assert {c["base_is"] for c in summary.to_dict(result)["comparisons"]} == {"tuned baseline"}


def test_survivors_of_a_diverged_arm_are_no_evidence():
    trials, records = sweep(effect={"few_label_probe": 5.0})
    change(trials, records, PLAIN, seed=0, status="diverged", metrics={})
    result = summarise(trials, records)
    assert result.row(PLAIN).diverged == (0,)
    verdicts = {c.verdict for c in result.comparisons if (c.treated, c.base) == (VRN, PLAIN)}
    assert verdicts == {"diverged"}
    text = " ".join(text_of(trials, records).split())
    assert "training became NaN or infinite at seeds 0" in text
    assert "(3/4)" in text


@pytest.mark.parametrize("arm", [VRN, PLAIN])
def test_survivors_of_an_arm_with_a_crash_are_no_evidence(arm):
    trials, records = sweep(effect={"few_label_probe": 5.0})
    change(trials, records, arm, seed=0, status="crashed", metrics={})
    result = summarise(trials, records)
    verdicts = {c.verdict for c in result.comparisons if (c.treated, c.base) == (VRN, PLAIN)}
    assert verdicts == {"crashed"}
    text = " ".join(text_of(trials, records).split())
    assert (
        "SimCLR, B=16: t=0.5 + VRN 3 against no VRN no comparison: at least one seed of one arm has no result" in text
    )
    assert "(3/4)" in text


def test_missing_trials_are_named():
    trials, records = sweep()
    for trial in trials:
        if trial.arm == PLAIN and trial.seed in (1, 3):
            del records[trial.key()]
    assert "no result for seeds 1, 3; run the command again" in " ".join(text_of(trials, records).split())


def test_nothing_at_all_is_still_a_table():
    trials, _ = sweep()
    assert "no result for seeds 0, 1, 2, 3" in " ".join(text_of(trials, {}).split())
    figure.draw(summarise(trials, {}), trials[2])


def test_rows_below_a_baseline_are_named():
    trials, records = sweep(effect={"few_label_probe": -10.0})
    assert "NOT above random-init (90.00) on the 10-label probe: SimCLR, B=16, t=0.5 + VRN 3" in " ".join(
        text_of(trials, records).split()
    )


def test_the_text_claims_no_more_than_the_run():
    text = " ".join(text_of(*sweep()).split())
    for phrase in ("Equal epochs (20)", "redraws split", "held-out", "Holm's correction over all 20 comparisons", "level .05/20",
                   "from 4 seeds only so well that the true number may be 0.32 to 14 times as large",
                   "The correction is for one look"):  # fmt: skip
        assert phrase in text


def tiny_source(monkeypatch, train, test):
    """A data set whose published splits have these sizes, under CIFAR-10's name."""
    labels = torch.arange(train + test) % 10
    images = labels.view(-1, 1, 1, 1).float()
    whole = data.Split(images[train:], labels[train:])

    def load(request):
        published = whole if request.official_test else None
        return data.Source(images[:train], labels[:train], 10, (40, 20, 20), 0.0, (0.08, 1.0), True, published)

    monkeypatch.setitem(data.LOADERS, "cifar10", load)
    monkeypatch.setitem(seed_words.PUBLISHED, "cifar10", (train, test))


@pytest.mark.parametrize(
    ("sizes", "evaluate_on", "official"),
    [
        ((None, None, None), "test", False),
        ((None, None, None), "test", True),
        ((100, 0, None), "test", True),
        ((100, 0, 30), "test", True),
        ((100, 0, 20), "test", True),
        ((90, 0, None), "test", True),
        ((90, 10, None), "test", True),
        ((90, 10, None), "val", True),
        ((90, 0, 20), "test", True),
    ],
)
def test_what_a_seed_redraws_is_what_it_redraws(monkeypatch, sizes, evaluate_on, official):
    tiny_source(monkeypatch, 100, 30)
    num_train, num_val, num_test = sizes
    config = TrialConfig(data="cifar10", official_test=official, num_train=num_train, num_val=num_val, num_test=num_test,
                         evaluate_on=evaluate_on)  # fmt: skip
    source = data.load(config.data, **data.options_of(config))
    train, val, test = (
        sorted(first.tolist()) != sorted(second.tolist())
        for first, second in zip(data.split_indices(source, 0), data.split_indices(source, 1), strict=True)
    )
    (words,) = [line for line in report_text.notes(summary.Summary((), (), (0, 1)), config) if "redraws" in line]
    assert (seed_words.redraws_training(config), seed_words.redraws_test(config)) == (train, test)
    read = {"val": val, "test": test}[evaluate_on]
    if train and read and (not official or evaluate_on == "val"):
        assert words.startswith(
            "A seed redraws split, labelled subsets, weights, order and augmentations, and all arms"
        )
        assert "over splits too" in words
    else:
        assert "redraws split" not in words
        assert ("redraws training split" in words) is ("over training splits" in words) is train
        assert ("every seed trains on the same images" in words) is not train
        assert ("published one at every seed" in words) is not read
        assert ("part of the published test split" in words) is read
    title = {"val": "validation split", "test": "test split"}[evaluate_on]
    if official and evaluate_on == "test":
        title = "part of the published test split" if test else "published test split"
    assert figure.split_words(config) == title
    caption = figure._caption(summary.Summary((), (), (0, 1)), config, figure._look(summary.Summary((), (), ())))
    told = ", ".join(seed_words.redraws(config)[:-1])
    assert f"a seed redraws {told} and augmentations" in " ".join(caption.split())
    assert provenance.confounds(config)["seed_redraws"] == ", ".join(seed_words.redraws(config))


def test_of_a_folder_is_said_what_is_certain_before_it_is_read():
    config = TrialConfig(data="imagefolder:x", official_test=True, num_train=100, num_val=0, num_test=50)
    assert (seed_words.redraws_training(config), seed_words.redraws_test(config)) == (None, None)
    assert seed_words.redraws(config)[:2] == (
        "training images where there are more than 100",
        "test images where more than 50 were published",
    )
    assert "over training splits where there are more than 100 training images" in seed_words.over(config)
    assert "the 50 test images are the published ones, or drawn from them where there are more" in seed_words.over(
        config
    )
    assert figure.split_words(config) == "50 published test images"
    whole = dataclasses.replace(config, num_test=None)
    assert seed_words.redraws_test(whole) is False
    assert figure.split_words(whole) == "published test split"


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("fashion-mnist", 0, "of their {} images"),
        ("fashion-pairs", 0, "of the {} pairs"),
        ("cifar10", 0, "{} training images"),
        ("cifar10", 1, "{} test images"),
        ("stl10", 0, "The {} labelled training images"),
        ("stl10", 1, "{} test images"),
    ],
)
def test_published_sizes_are_those_that_the_loaders_name(name, part, said):
    assert said.format(seed_words.PUBLISHED[name][part]) in data.LOADERS[name].__doc__
    assert seed_words.PUBLISHED["cifar100"] == seed_words.PUBLISHED["cifar10"]
    assert {*seed_words.PUBLISHED, "digits", "imagefolder"} == set(data.LOADERS)


@pytest.mark.skipif(
    not data_fashion.FASHION_MNIST_DIR.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_published_sizes_are_those_of_the_files():
    for name in ("fashion-mnist", "fashion-pairs"):
        source = data.load(name, official_test=True)
        assert (len(source.labels), len(source.official_test)) == seed_words.PUBLISHED[name]


def test_tables_fit_eighty_columns():
    from rich.console import Console

    trials, records = sweep(effect=dict.fromkeys(measures.ACCURACIES, -1.0))
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(report_text.render(summarise(trials, records), trials[2]))
    assert "…" not in console.file.getvalue()


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_narrow_table_wraps_its_labels_and_loses_no_mark(width):
    from rich.console import Console

    trials, records = sweep(effect={"negative_variance": -0.1}, seeds=2)
    for arm in (VRN, PLAIN):
        for seed in range(2):
            metrics = {**BASE, **dict.fromkeys(measures.ACCURACIES, 50.0 * seed + 50 * bool(arm.weight))}
            change(trials, records, arm, seed, collapsed=bool(arm.weight), metrics=metrics)
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(report_text.render(summarise(trials, records), trials[2]))
    lines = console.file.getvalue().splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= width
    whole = report_text.plain_text(summarise(trials, records), trials[2])
    # The legend names every mark once; all others are those of comparisons.
    for mark in "✓~·✗=":
        assert "".join(lines).count(mark) == whole.count(mark)
    assert whole.count("✗") == 2 * 5 + 1
    if width == 80:
        assert "collapsed)" in "".join(lines)


def test_a_single_seed_is_said_to_have_no_interval():
    text = " ".join(text_of(*sweep(seeds=1)).split())
    assert "a single seed: no interval" in text
    assert "over 1 seeds" not in text


def test_summary_has_no_nan():
    import json

    trials, records = sweep(seeds=1)
    json.dumps(summary.to_dict(summarise(trials, records)), allow_nan=False)


@pytest.fixture
def drawn():
    """Draws a sweep over batch sizes, one of whose arms is far off, and returns the figure and its left and right axes."""

    def draw(**changes):
        trials, records = sweep(effect={"few_label_probe": 1.0}, **changes)
        for seed in range(4):
            metrics = {**BASE, "few_label_probe": 75.0 + seed / 10}
            change(trials, records, Arm("simclr", 256, 0.5, 3.0), seed, metrics=metrics)
        result = summarise(trials, records)
        picture = figure.build(result, next(t for t in trials if t.arm.trained))
        picture.canvas.draw()
        return picture, *picture.axes[:2]

    return draw


GRID = {"batch_sizes": (16, 64, 256), "weights": (1.0, 3.0, 10.0, 30.0)}


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
    assert right == {*left, figure.GREY}
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
    trials, records = sweep(seeds=1)
    for trial in trials:
        change(trials, records, trial.arm, 0, metrics=BASE | {"knn": 97.0 + gain * (trial.weight > 0)})
    picture = figure.build(summarise(trials, records), next(t for t in trials if t.arm.trained))
    low, high = picture.axes[0].get_xlim()
    assert low < 0 < high


def test_a_failed_arm_is_a_named_cross_and_on_no_line():
    """Its variance would else be the best of the figure."""
    trials, records = sweep(batch_sizes=(16, 64, 256))
    for seed in range(4):
        metrics = {**BASE, "negative_variance": 0.0001, "negative_mean": 0.99}
        change(trials, records, Arm("simclr", 256, 0.5, 3.0), seed, collapsed=True, metrics=metrics)
    picture = figure.build(summarise(trials, records), next(t for t in trials if t.arm.trained))
    for axis, failures in zip(picture.axes, (None, ["collapsed"], None, []), strict=True):
        if failures is None:
            continue
        found = [line for line in axis.lines if line.get_marker() == "x"]
        assert [float(line.get_ydata()[0]) for line in found] == [0.0001] * len(failures)
        assert [text.get_text() for text in axis.texts] == failures
        lines = [line for line in axis.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
        assert len(lines) == 3
        assert min(np.nanmin(line.get_ydata()) for line in lines) > 0.1
        assert sum(math.isnan(value) for line in lines for value in line.get_ydata()) == len(failures)


@pytest.mark.parametrize(
    "changes", [{}, {"batch_sizes": (16, 64, 256), "weights": (1.0, 3.0)}, {"seeds": 1}, {"weights": (0.0,)}]
)
@pytest.mark.parametrize(
    ("lengths", "words"),
    [({"epochs": 20}, "equal epochs (20)"), ({"epochs": 7}, "equal epochs (7)"),
     ({"epochs": 0, "steps": 90}, "equal steps (90)")],
)  # fmt: skip
def test_figure_says_what_was_equal_and_is_a_picture_with_something_on_it(changes, lengths, words):
    trials, records = sweep(effect={"few_label_probe": 1.0}, **changes, **lengths)
    picture = figure.build(summarise(trials, records), next(t for t in trials if t.arm.trained))
    written = [text.get_text() for text in picture.findobj(Text) if text.get_visible()]
    assert any(words.lower() in " ".join(text.split()).lower() for text in written)
    other = {"epochs": "equal steps", "steps": "equal epochs"}["steps" if "steps" in lengths else "epochs"]
    assert not any(other in " ".join(text.split()).lower() for text in written)
    png = figure.draw(summarise(trials, records), next(t for t in trials if t.arm.trained))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert 0.01 < (pixels < 128).any(axis=2).mean() < 0.5
