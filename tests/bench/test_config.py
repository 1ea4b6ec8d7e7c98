"""Keys of trials, and grids."""

import dataclasses
import hashlib
import json

import pytest

from varloss_bench import config
from varloss_bench.config import Arm, TrialConfig
from varloss_bench.grid import grid


def make_grid(**changes):
    arguments = {
        "methods": ["simclr", "moco"],
        "batch_sizes": [16],
        "weights": [3.0],
        "temperatures": [0.5],
        "control_temperatures": [0.2],
        "seeds": range(4),
    }
    return grid(TrialConfig(), **{**arguments, **changes})


def test_key_depends_on_every_field():
    base = TrialConfig()
    other = {
        "data": "fashion-mnist", "data_dir": "/there", "method": "moco", "backbone": "resnet18", "lr_rule": "sqrt",
        "evaluate_on": "val", "device": "cuda", "fused": False, "negatives": "cross", "head_batch_norm": False,
        "vrn_against": "queue", "precision": "bf16-mixed", "strategy": "ddp", "raw_pixels_side": 32,
            "framework": "solo",
            "num_train": 900, "num_val": 200, "num_test": 400, "official_test": True, "image_size": 16,
    }  # fmt: skip
    for field in dataclasses.fields(TrialConfig):
        value = other.get(field.name, getattr(base, field.name))
        if field.name not in other:
            value = value + 1
        assert dataclasses.replace(base, **{field.name: value}).key() != base.key(), field.name


def test_key_survives_json_and_is_fixed():
    config = TrialConfig(weight=3.0, seed=2)
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))).key() == config.key()
    # Numbers typed differently are one trial; the option parser gives floats.
    assert TrialConfig(weight=3.0).key() == TrialConfig(weight=float("3")).key()


def test_from_dict_names_what_is_missing():
    values = TrialConfig().to_dict()
    del values["seed"]
    with pytest.raises(TypeError, match="seed"):
        TrialConfig.from_dict(values)


def test_a_field_added_later_counts_once_it_is_set(monkeypatch):
    """Trials from before the field existed keep their names and can still be read."""
    before = TrialConfig()
    monkeypatch.setattr(config, "_added_later", lambda: {"fused": True})
    values = before.to_dict()
    del values["fused"]
    old = TrialConfig.from_dict(values)
    assert old == before
    canonical = json.dumps({"protocol": config.PROTOCOL, **values}, sort_keys=True, separators=(",", ":"))
    assert old.key() == hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert dataclasses.replace(before, fused=False).key() != old.key()


def test_default_grid():
    trials = make_grid()
    assert len(trials) == 4 * (2 + 2 * 3)
    assert len({trial.key() for trial in trials}) == len(trials)
    arms = {trial.arm for trial in trials if trial.method == "moco"}
    assert arms == {Arm("moco", 16, 0.5, 0.0), Arm("moco", 16, 0.5, 3.0), Arm("moco", 16, 0.2, 0.0)}
    assert {trial.method for trial in trials if not trial.arm.trained} == {"raw-pixels", "random-init"}


def test_weight_zero_is_always_there_and_a_control_is_not_run_twice():
    trials = make_grid(weights=[1.0], temperatures=[0.2, 0.5], control_temperatures=[0.2], methods=["simclr"])
    arms = [trial.arm for trial in trials if trial.arm.trained and trial.seed == 0]
    assert sorted(arms) == sorted(Arm("simclr", 16, t, w) for t in (0.2, 0.5) for w in (0.0, 1.0))


def test_seeds_are_run_one_after_another():
    seeds = [trial.seed for trial in make_grid()]
    assert seeds == sorted(seeds)


def test_learning_rate_rules():
    assert TrialConfig(batch_size=64, base_lr=0.4).learning_rate == pytest.approx(0.1)
    assert TrialConfig(batch_size=64, base_lr=0.4, lr_rule="sqrt").learning_rate == pytest.approx(0.2)
    assert TrialConfig(batch_size=64, base_lr=0.4, lr_rule="constant").learning_rate == 0.4


@pytest.mark.parametrize(
    ("arm", "group", "short", "label", "slug"),
    [
        (
            Arm("moco", 16, 0.5, 3.0),
            "MoCo v2, B=16",
            "t=0.5 + VRN 3",
            "MoCo v2, B=16, t=0.5 + VRN 3",
            "moco-b16-t0.5-w3",
        ),
        (Arm("dhel", 8, 0.25, 0.0), "DHEL, B=8", "t=0.25", "DHEL, B=8, t=0.25", "dhel-b8-t0.25-w0"),
        (Arm("raw-pixels", 16, 0.5, 0.0), "without training", "raw-pixels", "raw-pixels", "raw-pixels"),
    ],
)
def test_names_of_an_arm(arm, group, short, label, slug):
    assert (arm.group_label(), arm.short_label(), arm.label(), arm.slug()) == (group, short, label, slug)
