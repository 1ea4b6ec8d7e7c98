"""The table of data sets: its rows are correct, and a new data set needs only a row."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import toy_dataset

from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.datasets import DATASETS, listed, published_sizes
from varloss_bench.execution.workers import SPAWN, spawn
from varloss_bench.methods import load
from varloss_bench.records.redraws import redraws_test, redraws_training

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(TESTS), *sys.path])


def with_toy(command):
    return subprocess.run(
        [sys.executable, "-m", "support.toy_dataset", *command.split()],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": PATHS, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_a_row_has_the_name_it_is_found_by_and_names_a_loader_that_exists(name):
    assert DATASETS[name].name == name
    assert callable(load(DATASETS[name].loader))


def test_the_registry_needs_no_torch_and_loading_imports_one_loader():
    code = (
        "import sys, varloss_bench.datasets; assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "from varloss_bench.data import loading; loading.load('digits')\n"
        "assert not {'torchvision', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_help_lists_the_rows():
    assert listed().startswith("digits (part of scikit-learn), fashion-mnist, fashion-pairs (100 classes), ")
    assert listed().endswith("imagefolder:PATH (a folder with one folder per class)")
    assert all(row.typed in listed() for row in DATASETS.values())


def test_published_sizes_are_none_where_no_row_has_them():
    assert published_sizes("cifar10") == (50000, 10000)
    for name in ("digits", "imagefolder:/some/path", "of-another-version"):
        assert published_sizes(name) == (None, None)


def test_a_row_is_all_that_a_new_data_set_needs_to_be_loaded_and_described(monkeypatch):
    monkeypatch.setitem(DATASETS, "toy", toy_dataset.ROW)
    source = loading.load("toy", official_test=True)
    assert (len(source.labels), len(source.official_test)) == published_sizes("toy")
    assert loading.load("toy", sizes=(100, 0, 60)).sizes == (100, 0, 60)
    whole = TrialConfig(data="toy", official_test=True, num_train=200, num_val=0, num_test=50)
    assert (redraws_training(whole), redraws_test(whole)) == (False, False)
    with pytest.raises(loading.DataError, match=r"unknown data set 'toy:x'; known data sets: digits, .*, toy$"):
        loading.load("toy:x")


def test_help_shows_a_new_data_set_and_compare_takes_it():
    shown = with_toy("compare --help")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "toy (bright halves)" in " ".join(shown.stdout.replace("│", " ").split())
    done = with_toy("compare --data toy --method simclr --epochs 1 --batch-size 64 --dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SimCLR, B=64" in done.stdout


def test_a_worker_process_knows_a_new_data_set(monkeypatch):
    monkeypatch.setitem(DATASETS, "toy", toy_dataset.ROW)
    ours, theirs = SPAWN.Pipe()
    process = spawn("support.toy_dataset:send_size", theirs)
    assert ours.recv() == 200
    process.join()
