"""Keys of trials, grids, and results on disk."""

import dataclasses
import hashlib
import json

import pytest

from varloss_bench import config
from varloss_bench.config import Arm, TrialConfig, grid
from varloss_bench.records.store import Store, write_atomically


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
    """What was run before the field existed keeps its name and can still be read."""
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


def record(config, **changes):
    return {
        "config": config.to_dict(), "status": "finished", "reason": None, "collapsed": False,
        "metrics": {"knn": 90.0}, "seconds": {"train": 1.0, "evaluate": 0.1},
        "environment": {"versions": {}, "machine": {}}, **changes,
    }  # fmt: skip


def test_store_round_trip(tmp_path):
    store, config = Store(tmp_path), TrialConfig(seed=1)
    store.write(config, record(config))
    loaded = store.load([config, TrialConfig(seed=2)])
    assert loaded.records[config.key()]["metrics"] == {"knn": 90.0}
    assert list(loaded.records) == [config.key()]
    assert not loaded.corrupt
    assert loaded.done(config)
    assert not loaded.done(TrialConfig(seed=2))


@pytest.mark.parametrize(("status", "done"), [("finished", True), ("diverged", True), ("crashed", False)])
def test_what_is_not_run_again(tmp_path, status, done):
    store, config = Store(tmp_path), TrialConfig()
    store.write(config, record(config, status=status, metrics={}))
    assert store.load([config]).done(config) is done


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"schema": 999}', b'{"schema": 1}', b'{"schema": 1, "config": 3, "status": 1}'],
)
def test_corrupt_file_is_reported_by_name_and_skipped(tmp_path, content):
    store, config = Store(tmp_path), TrialConfig()
    store.path(config).parent.mkdir()
    store.path(config).write_bytes(content)
    loaded = store.load([config])
    assert list(loaded.corrupt) == [store.path(config)]
    assert not loaded.records


LACKING = object()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, LACKING) for name in ("config", "status", "reason", "metrics", "collapsed", "seconds", "environment")),
        *(("metrics", value) for value in (None, [], 3, {"knn": None}, {"knn": "90"}, {"knn": 10**400})),
        *(("metrics", {"knn": value}) for value in (float("nan"), float("inf"))),
        *(("seconds", value) for value in (None, 3, {}, {"train": None}, {"train": float("nan")})),
        *(("status", value) for value in (None, "half done", [])),
        *(("reason", value) for value in (3, [])),
        ("collapsed", None),
        ("environment", None),
    ],
)
def test_a_record_the_report_could_not_use_is_corrupt(tmp_path, name, value):
    store, config = Store(tmp_path), TrialConfig()
    whole = {"schema": 1, **record(config)}
    store.path(config).parent.mkdir()
    store.path(config).write_text(json.dumps(whole))
    assert not store.load([config]).corrupt
    del whole[name]
    store.path(config).write_text(json.dumps(whole if value is LACKING else {**whole, name: value}))
    loaded = store.load([config])
    assert list(loaded.corrupt) == [store.path(config)]
    assert not loaded.done(config)


def test_a_failure_needs_no_metrics(tmp_path):
    store, config = Store(tmp_path), TrialConfig()
    failure = record(config, status="diverged")
    for name in ("metrics", "collapsed", "seconds"):
        del failure[name]
    store.write(config, failure)
    assert store.load([config]).done(config)


def test_record_of_another_trial_is_corrupt(tmp_path):
    store, config = Store(tmp_path), TrialConfig()
    store.write(config, record(TrialConfig(seed=5)))
    assert "configuration" in next(iter(store.load([config]).corrupt.values()))


def test_nan_is_not_stored(tmp_path):
    store, config = Store(tmp_path), TrialConfig()
    with pytest.raises(ValueError, match="JSON"):
        store.write(config, record(config, metrics={"knn": float("nan")}))
    assert not store.path(config).exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varloss_bench.records.store.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
