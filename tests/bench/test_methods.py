"""The table of methods: its rows are correct, and a new method needs only a row."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import toy_method

import varloss
from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.execution.execute import execute
from varloss_bench.methods import METHODS, display_name, load, trained_methods, untrained_methods
from varloss_bench.records.provenance import confounds
from varloss_bench.records.store import Store
from varloss_bench.training import fit
from varloss_bench.training.solo import config as solo_config

TESTS = Path(__file__).parents[1]
TINY = TrialConfig(epochs=1, batch_size=128)


def build(**changes):
    source = loading.load("digits")
    return fit.build(dataclasses.replace(TINY, **changes), loading.split(source, 0).train, source)[0]


def test_the_registry_needs_no_torch():
    code = "import varloss_bench.methods, sys; print(sorted({'torch', 'lightly', 'varloss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", METHODS)
def test_a_row_has_the_name_it_is_found_by_and_names_code_that_exists(name):
    row = METHODS[name]
    assert row.name == name
    for place in filter(None, (row.module, row.loss, row.features)):
        assert callable(load(place))
    # A row is trained or a row of features, never both.
    assert (row.module is None) != (row.features is None)


def test_the_rows_are_those_that_results_were_made_with():
    assert {"simclr", "dcl", "dhel", "moco"} <= set(trained_methods())
    assert untrained_methods() == ("raw-pixels", "random-init")
    assert [display_name(name) for name in ("simclr", "moco", "unknown")] == ["SimCLR", "MoCo v2", "unknown"]


@pytest.mark.parametrize("name", trained_methods())
def test_a_method_has_the_head_and_the_negatives_of_its_row(name):
    row = METHODS[name]
    for asked in (None, True, False):
        norms = [
            m for m in build(method=name, head_batch_norm=asked).head.modules() if isinstance(m, torch.nn.BatchNorm1d)
        ]
        assert bool(norms) == (row.head_batch_norm if asked is None else asked)
    criterion = build(method=name).criterion
    assert isinstance(criterion, varloss.QueueInfoNCELoss) == row.momentum_queue
    assert confounds(TrialConfig(method=name))["negatives"] == row.negatives
    if row.momentum_queue:
        return
    assert getattr(criterion, "negatives", None) == row.negatives
    if row.negatives_can_be_chosen:
        assert build(method=name, negatives="cross").criterion.negatives == "cross"


def test_the_losses_are_the_three_cells_they_are_named_after():
    made = {name: build(method=name, temperature=0.3).criterion for name in ("simclr", "dcl", "dhel")}
    assert {name: (loss.negatives, loss.decoupled) for name, loss in made.items()} == {
        "simclr": ("both", False),
        "dcl": ("both", True),
        "dhel": ("within", True),
    }
    assert {loss.temperature for loss in made.values()} == {0.3}


@pytest.mark.usefixtures("trains")
def test_a_row_is_all_that_a_new_method_needs_to_be_trained_and_recorded(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "toy", toy_method.ROW)
    config = TrialConfig(method="toy", weight=3.0, epochs=1, batch_size=128).canonical()
    assert execute(config, tmp_path, ["varloss-bench", "compare", "--method", "toy"]) == ("finished", None)
    record = Store(tmp_path).load([config]).records[config.key()]
    assert record["confounds"]["head_batch_norm"] is True
    assert 10 < record["metrics"]["knn"] <= 100
    criterion = build(method="toy", temperature=0.3).criterion
    assert (criterion.temperature, criterion.slope) == (0.3, 0.5)


def test_compare_takes_a_new_method_with_its_row():
    command = "compare --method toy --epochs 1 --batch-size 64 --num-train 200 --num-val 0 --num-test 50 --dry-run"
    done = subprocess.run(
        [sys.executable, "-m", "support.toy_method", *command.split()],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Toy, B=64" in done.stdout


def test_solo_learn_refuses_a_method_that_it_does_not_have(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", toy_method.ROW)
    with pytest.raises(ValueError, match="solo-learn does not train toy"):
        solo_config.check(TrialConfig(method="toy", framework="solo", backbone="resnet18", fused=False), 997)
