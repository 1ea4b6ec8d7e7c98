"""`varloss-bench study trends`: equal steps, verdicts that can go either way, one real trial."""

from __future__ import annotations

import dataclasses

import pytest
from matplotlib.text import Text

from varloss_bench.config import TrialConfig
from varloss_bench.studies.trends import report, run

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
]


def test_trials_take_equal_steps_at_one_learning_rate() -> None:
    trials = [config for _, config in run.trials(620, [0])]
    assert {config.learning_rate for config in trials} == {0.15 * 64 / 256}
    steps = [997 // config.batch_size * config.epochs for config in trials]
    assert max(steps) - min(steps) <= 10
    assert {config.batch_size for config in trials} == {16, 64, 256}


def rows(variance_of, by_temperature) -> list[dict]:
    found = []
    for trend, config in run.trials(620, [0, 1]):
        size, t = config.batch_size, config.temperature
        found.append(
            {
                "trend": trend,
                "config": dataclasses.asdict(config),
                "steps": 620,
                "epochs": config.epochs,
                "cross_var": variance_of(size, config.weight),
                "cross_mean": 0.0,
                "positive_mean": 0.9,
                "linear_probe": 99.0,
                "uniformity": by_temperature(t),
                "tolerance": -by_temperature(t),
                "penalty_entropy": -by_temperature(t),
            }
        )
    return found


def test_verdicts_follow_the_means() -> None:
    text = report.table(rows(lambda size, weight: 1 / size - 1e-4 * weight, lambda t: -t))
    assert text.count("APPEARS: ") == 6
    assert "NOT" not in text
    one_off = report.table(rows(lambda size, weight: 1 / size - 1e-4 * weight, lambda t: 3 if t == 0.2 else -t))
    assert one_off.count("DOES NOT APPEAR: ") == 3
    flat = report.table(rows(lambda size, weight: 0.1, lambda t: -t))
    assert flat.count("DOES NOT APPEAR: ") == 3
    for name, content in report.figures(rows(lambda size, weight: 1 / size, lambda t: t)).items():
        assert name in ("batch-size", "temperature")
        assert content.startswith(b"\x89PNG")


def test_figures_say_what_was_equal() -> None:
    found = rows(lambda size, weight: 1 / size, lambda t: t)
    (epochs,) = {row["epochs"] for row in found if row["trend"] == "temperature"}
    words = {"batch-size": "equal steps", "temperature": f"equal epochs ({epochs})"}
    for name, figure in report.build(found).items():
        assert any(words[name] in text.get_text() for text in figure.findobj(Text))


def test_one_trial_is_run_and_then_read_back(tmp_path) -> None:
    config = TrialConfig(batch_size=256, epochs=1, base_lr=0.01, lr_rule="constant")
    row = run.run_one("batch size", config, str(tmp_path))
    assert row["steps"] == 3
    assert 0 <= row["cross_var"] <= 1
    assert row["linear_probe"] > 20
    assert run.run_one("temperature", config, str(tmp_path)) == {**row, "trend": "temperature"}
    assert len(list(tmp_path.iterdir())) == 1
