"""Results on disk are complete or absent, and are checked when they are read."""

import json

import pytest

from varloss_bench.config import TrialConfig
from varloss_bench.records.store import Store, write_atomically


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
