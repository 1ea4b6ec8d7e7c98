"""Verdicts on sweeps whose truth is known: planted nulls are no wins, planted effects are found, at the rates claimed."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.config import TrialConfig
from varloss_bench.statistics import summary
from varloss_bench.studies.simulate import embeddings, report, run, tables

RECORDS = Path(__file__).parents[3] / "benchmarks" / "results" / "digits-default" / "trials"
ONE, DEFAULT, _ = tables.FAMILIES
NO_EFFECT = "no effect"


@pytest.mark.parametrize("seeds", [4, 10])
@pytest.mark.parametrize("family", [ONE, DEFAULT], ids=lambda family: family.name)
def test_at_most_6_percent_of_null_sweeps_call_anything_settled(family, seeds):
    found = run.false_positives(family, 2000, seeds, np.random.default_rng(seeds), NO_EFFECT)
    assert found.comparisons == len(family.pairs) * 5
    assert 0.01 < found.rate <= 0.06
    assert found.low < found.rate < found.high < found.rate + 0.015
    assert found.uncorrected > 0.25  # what the correction is there for


@pytest.mark.parametrize("seeds", [4, 10])
def test_an_effect_on_one_metric_makes_no_other_settled(seeds):
    """Strong control: the variance is always settled, and Holm's later steps are easier."""
    rng = np.random.default_rng(seeds)
    found = run.false_positives(DEFAULT, 2000, seeds, rng, "variance", variance=tables.VARIANCE_EFFECT)
    assert 0.01 < found.rate <= 0.06
    values = tables.draw(DEFAULT.arms, 20, seeds, rng, variance=tables.VARIANCE_EFFECT)
    of_variance = [
        c.verdict
        for comparisons in run._compared(DEFAULT, values)
        for c in comparisons
        if c.metric == "negative_variance"
    ]
    assert of_variance.count("settled") > 0.9 * len(of_variance)


def test_looking_until_something_is_settled_breaks_the_promise():
    assert run.looking_again(DEFAULT, 800, np.random.default_rng(0)).rate > 0.06


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.5, 30)])
def test_power_is_what_the_number_of_seeds_is_computed_from(effect, seeds):
    found = run.power(ONE, 400, seeds, np.random.default_rng(1), effect)
    assert 0.3 < found.predicted < 0.95
    # Holm's later steps add to what its first one finds, never take from it.
    assert found.predicted - 0.07 < found.rate < found.predicted + 0.15
    more_seeds = run.power(ONE, 400, 2 * seeds, np.random.default_rng(1), effect)
    assert more_seeds.rate > found.rate


def test_an_effect_is_of_the_size_that_was_planted():
    values = tables.draw(ONE.arms, 300, 10, np.random.default_rng(0), points=1.0)
    vrn, plain = (ONE.arms.index(arm) for arm in ONE.pairs[0][:2])
    differences = (values[:, vrn] - values[:, plain]).mean(axis=(0, 1))
    assert differences[0] == pytest.approx(1.0, abs=0.06)
    assert differences[1:] == pytest.approx(0.0, abs=0.04)


def test_tables_are_those_of_digits():
    """Levels and paired spreads of the committed records, as far as four seeds tell them."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    by_arm = {}
    for record in records:
        config = TrialConfig.from_dict(record["config"])
        if config.arm.trained:
            by_arm.setdefault(config.arm, {})[config.seed] = [record["metrics"][name] for name in summary.COMPARED]
    values = np.array([[by_arm[arm][seed] for seed in range(4)] for arm in sorted(by_arm)])
    assert values.shape == (6, 4, 5)
    real = tables.looks_like(values)
    made = tables.looks_like(tables.draw(DEFAULT.arms, 200, 4, np.random.default_rng(0)))
    for metric in summary.COMPARED[:-1]:
        assert made[metric][0] == pytest.approx(real[metric][0], abs=0.3)
        assert 0.7 < made[metric][1] / real[metric][1] < 1.4
    # Counts of 500 images: 0.2 points a step, a fifth of that for the mean of five probes.
    values = tables.draw(DEFAULT.arms, 5, 4, np.random.default_rng(0))
    for at, step in ((0, 0.04), (1, 0.2), (2, 0.2), (3, 0.2)):
        assert np.allclose(values[..., at] / step, np.round(values[..., at] / step))


def test_arms_of_a_seed_share_their_test_images():
    values = tables.draw(ONE.arms, 400, 4, np.random.default_rng(0))
    knn = values[..., summary.COMPARED.index("knn")]
    assert np.corrcoef(knn[:, 0].ravel(), knn[:, 1].ravel())[0, 1] > 0.3
    assert abs(np.corrcoef(knn[:, 0, 0], knn[:, 1, 1])[0, 1]) < 0.2


def test_embeddings_of_a_seed_differ_by_the_net_only():
    first, second = (embeddings.embeddings(3, arm, 3.0) for arm in (0, 1))
    for mine, theirs in zip(first[3:], second[3:], strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
    assert not torch.allclose(first[0], second[0])
    again = embeddings.embeddings(3, 0, 3.0)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    # A rotation and the net's noise leave distances between images as they were, on average.
    distance = torch.pdist(first[0]).square().mean() / torch.pdist(first[3].images).square().mean()
    assert 1.05 < float(distance) < 1.25


def test_classes_planted_farther_apart_are_found_by_the_real_probes():
    found = embeddings.sweep(number=0, seeds=4, gain=1.25)
    probe = next(c for c in found.comparisons if (c.metric, c.role) == ("few_label_probe", "same temperature"))
    assert probe.verdict == "settled"
    assert 5 < probe.result.difference.mean < 20
    null = embeddings.sweep(number=0, seeds=4, gain=1.0)
    assert len(null.comparisons) == 10
    assert not any(c.verdict == "settled" for c in null.comparisons)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The folder of a small run of the command, and its result; embeddings are made in this process."""
    folder = tmp_path_factory.mktemp("simulate")
    arguments = ["study", "simulate", "--sweeps", "8", "--embedding-sweeps", "1", "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "sweeps", lambda count, *how: [embeddings.sweep(n, *how[:2]) for n in range(count)])
        return folder, CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def test_sweeps_of_embeddings_are_the_same_in_other_processes():
    (found,) = embeddings.sweeps(1, 4, 1.1, workers=1)
    assert found == embeddings.sweep(0, 4, 1.1)


def test_the_command_leaves_table_rates_and_figure(small_run):
    folder, result = small_run
    assert result.exit_code in (0, 1), result.output  # 8 sweeps can be above 6% by chance
    assert "…" not in result.output
    stored = json.loads((folder / "summary.json").read_text())
    rates = list(csv.DictReader(io.StringIO((folder / "rates.csv").read_text())))
    assert len(rates) == len(stored["rates"]) == 3 * (3 * 2 + 1) + 2 * 4 * 4 + 3
    assert {row["question"] for row in rates} == {"false positives", "false positives, looking again", "power"}
    assert result.exit_code == any(
        row["rate"] > report.LIMIT for row in stored["rates"] if row["question"] == "false positives"
    )
    assert "sweeps that call something settled that has no effect" in (folder / "table.txt").read_text()
    pixels = np.asarray(Image.open(folder / "figure.png").convert("RGB"))
    assert 0.005 < (pixels < 128).any(axis=2).mean() < 0.5


def test_a_rate_above_the_limit_is_named():
    good = run.false_positives(ONE, 50, 4, np.random.default_rng(0), NO_EFFECT)
    good = dataclasses.replace(good, rate=0.05)
    bad = dataclasses.replace(good, rate=0.2)
    again = dataclasses.replace(bad, question="false positives, looking again")
    assert report.too_many([good, bad, again]) == [bad]
    assert "1 of 2 rates are ABOVE 6%" in report.verdict([good, bad, again])[1]
    assert "none is above 6%" in report.verdict([good])[1]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["simulate", "--sweeps", "0"], "'--sweeps'"),
        (["simulate", "--embedding-sweeps", "-1"], "'--embedding-sweeps'"),
        (["simulate", "--workers", "0"], "'--workers'"),
        (["simulate", "--seed", "-1"], "'--seed'"),
        (["trends", "--seeds", "0"], "'--seeds'"),
        (["trends", "--steps", "-1"], "'--steps'"),
        (["speed", "--seconds", "-1"], "'--seconds'"),
    ],
)
def test_bad_input_is_an_error_before_anything_runs(arguments, option, tmp_path):
    result = CliRunner().invoke(app, ["study", *arguments, "--output", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert f"Invalid value for {option}" in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "new").exists()
