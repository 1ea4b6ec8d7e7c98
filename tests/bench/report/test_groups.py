"""Reading a folder: which records are read, which are left out, and which trials may be compared."""

import dataclasses
import json

import numpy as np
import pytest
from support.sweeps import SMALL, record_of, report, visible

from varloss_bench.config import PROTOCOL, TrialConfig
from varloss_bench.records.store import Store
from varloss_bench.report.groups import read

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize("change", [{"epochs": 30}, {"evaluate_on": "val"}, {"data": "fashion-mnist"}, {"base_lr": 0.3},
                                    {"steps": 50, "epochs": 0}, {"fused": False}])  # fmt: skip
def test_what_differs_in_more_than_the_arm_is_not_mixed(folder, change):
    folder()
    path = folder(dataclasses.replace(TrialConfig(), **change))
    found = read(path)
    assert len(found.groups) == 2
    for group in found.groups:
        assert len([t for t in group.trials if t.config.arm.trained]) == 2 * 2 * 7 * 3
        assert len([t for t in group.trials if not t.config.arm.trained]) == 2 * 3
    assert not found.left_out


def test_sweeps_of_other_arms_and_seeds_are_one_group(folder):
    folder(seeds=range(2))
    path = folder(methods=["dcl"], batch_sizes=[32], seeds=range(2, 5))
    (group,) = read(path).groups
    assert len(group.trials) == 2 * 2 * 7 * 2 + 7 * 3 + 2 * 5


def test_the_arm_without_vrn_stands_beside_vrn_of_either_kind(folder):
    path = folder(**SMALL | {"methods": ["moco"]})
    queue = TrialConfig(method="moco", weight=3.0, vrn_against="queue")
    Store(path).write(queue, record_of(queue, np.random.default_rng(1)))
    groups = read(path).groups
    assert sorted(len(group.trials) for group in groups) == [1 + 2 + 4, 2 + 2 + 4]
    for group in groups:
        assert {t.config.arm.weight for t in group.trials if t.config.arm.trained} == {0.0, 3.0}
        assert len({t.config.vrn_against for t in group.trials if t.config.weight}) == 1


def test_records_of_an_older_protocol_stand_apart_and_say_so(folder):
    folder(**SMALL)
    path = folder(**SMALL | {"seeds": [7]}, changes=lambda config: {"key": config.key(PROTOCOL - 1)})
    found = read(path)
    assert [group.protocol for group in found.groups] == [PROTOCOL, PROTOCOL - 1]
    report(path)
    assert f"Made under protocol {PROTOCOL - 1}" in visible(path)


def broken(record, **changes):
    return json.dumps({**record, **changes})


CORRUPTIONS = {
    "half": lambda r: json.dumps(r)[:300],
    "list": lambda r: "[]",
    "deep": lambda r: "[" * 100_000,
    "nan": lambda r: json.dumps(r).replace('"metrics": {', '"metrics": {"knn": NaN, "x": NaN,', 1),
    "foreign key": lambda r: broken(r, key="0" * 16),
    "text for a number": lambda r: broken(r, config={**r["config"], "batch_size": "16"}),
    "boolean for a number": lambda r: broken(r, config={**r["config"], "weight": True}),
    "unknown method": lambda r: broken(r, config={**r["config"], "method": "<script>"}),
    "no temperature": lambda r: broken(r, config={**r["config"], "temperature": -1.0}),
    "histogram": lambda r: broken(
        r, drawn={**r["drawn"], "similarity_histograms": {"positives": [1], "negatives": []}}
    ),
    "points": lambda r: broken(r, drawn={**r["drawn"], "principal_components": {"points": [[1]], "labels": [1]}}),
    "losses": lambda r: broken(r, epoch_losses=["x"]),
    "command": lambda r: broken(r, command="rm -rf /"),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corrupt_record_is_left_out(folder, kind):
    path = folder(**SMALL)
    victim = sorted((path / "trials").glob("simclr*"))[0]
    victim.write_text(CORRUPTIONS[kind](json.loads(victim.read_text())))
    found = read(path)
    assert list(found.left_out) == [victim.name]
    assert found.left_out[victim.name].startswith("corrupt: ")
    assert len(found.trials) == 2 * (2 + 2) - 1


def test_what_is_left_out_is_named_everywhere(folder):
    path = folder(**SMALL)
    victim = sorted((path / "trials").glob("simclr*"))[0]
    victim.write_text("{")
    result = report(path)
    assert result.exit_code == 0, result.output
    assert f"left out: {victim.name}: corrupt" in result.output
    assert ", 1 file left out: " in result.output
    assert "; 1 file left out" in visible(path)
    assert victim.name in visible(path)
    assert victim.name in (path / "report.md").read_text().replace("\\", "")
    assert victim.name not in (path / "rows.csv").read_text()


def test_names_are_shown_as_they_are(folder, tmp_path):
    """For rich they contain tags and an emoji."""
    name = "my[old]:x:set"
    path = folder(**SMALL, into=tmp_path / name)
    (path / "trials" / f"{name}.json").write_text("{")
    shown = report(path).output
    assert f"left out: {name}.json: corrupt" in shown
    assert f"/{name}/" in shown.splitlines()[-1]
    (tmp_path / f"{name}.txt").write_text("")
    assert f"/{name}.txt" in report(path, "--output", tmp_path / f"{name}.txt").output.splitlines()[-1]
    assert f"/{name}.none" in report(tmp_path / f"{name}.none").output


def test_rows_without_training_alone_are_left_out_with_the_reason(folder):
    path = folder(batch_sizes=[], seeds=[0])
    found = read(path)
    assert not found.groups
    assert all("no trained row" in reason for reason in found.left_out.values())
    assert report(path).exit_code == 1
