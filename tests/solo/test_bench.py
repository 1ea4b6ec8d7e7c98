"""`varloss-bench compare --framework solo` with an unmodified solo-learn, to the end."""

import json
import math
import subprocess
import sys

import pytest
from solo_runs import environment

# The first test to need them runs all trials: two to three minutes on two quiet cores.
pytestmark = [pytest.mark.solo_root, pytest.mark.slow, pytest.mark.timeout(1800)]

# One epoch of 31 batches of 32; MoCo's queue of 256 is a multiple of it.
ARGUMENTS = [
    *("compare", "--framework", "solo", "--batch-size", "32", "--epochs", "1"),
    *("--seeds", "1", "--no-interval", "--workers", "2", "--device", "cpu"),
]


def bench(checkout, python, folder, *more):
    """Run it; returns the records by method, temperature and weight."""
    done = subprocess.run(
        [sys.executable, "-m", "varloss_bench", *ARGUMENTS, "--output", str(folder), *more],
        env=environment(SOLO_LEARN_ROOT=str(checkout), SOLO_LEARN_PYTHON=python),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")]
    configs = [record["config"] for record in found]
    keys = [(config["method"], config["temperature"], config["weight"]) for config in configs]
    return dict(zip(keys, found, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def records(checkout, solo_python, folder):
    return bench(checkout, solo_python, folder / "one", "--method", "simclr,moco", "--control-temperature", "0.2")


@pytest.fixture(scope="module")
def others(checkout, solo_python, folder):
    arguments = ["--method", "simclr,dhel", "--weight", "0", "--control-temperature", ""]
    return bench(checkout, solo_python, folder / "other", *arguments)


ARMS = [(method, *arm) for method in ("simclr", "moco") for arm in ((0.5, 0.0), (0.5, 3.0), (0.2, 0.0))]


def first_loss(record):
    return float(record["paired"]["first_own_loss"])


def test_every_trial_ends_with_a_record_of_what_solo_learn_ran(folder, records):
    assert {key for key in records if key[0] not in ("raw-pixels", "random-init")} == set(ARMS)
    assert len(records) == len(ARMS) + 2
    assert all(record["status"] == "finished" for record in records.values())
    for method, temperature, weight in ARMS:
        told = records[method, temperature, weight]["solo_learn"]
        assert told["method"] == {"simclr": "simclr", "moco": "mocov2plus"}[method]
        assert (told["temperature"], told["batch_size"]) == (temperature, 32)
        assert told["learning_rate"] == pytest.approx(0.15 * 32 / 256)
        assert (told["vrn"] or "").startswith("varloss: VRN on, " if weight else "")
        assert bool(told["vrn"]) == bool(weight)
    assert "trained by solo-learn" in (folder / "one" / "table.txt").read_text()
    # Images, configuration and checkpoints are gone; a log lies beside each trained record.
    left = [path.suffix for path in (folder / "one" / "trials").iterdir()]
    assert (left.count(".json"), left.count(".log"), len(left)) == (8, 6, 14)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_arms_begin_alike_and_only_what_was_asked_for_differs(records, method):
    plain, with_vrn, colder = (records[(method, *arm)] for arm in ((0.5, 0.0), (0.5, 3.0), (0.2, 0.0)))
    assert first_loss(plain) == first_loss(with_vrn)
    assert first_loss(plain) != first_loss(colder)
    assert len({record["metrics"]["negative_variance"] for record in (plain, with_vrn, colder)}) == 3


def test_first_losses_are_those_of_the_methods(records, others):
    # The similarities of an untrained net are close to one another: the logarithm of how many rows a row is compared with.
    assert first_loss(records["simclr", 0.5, 0.0]) == pytest.approx(math.log(63), abs=0.5)
    assert first_loss(records["moco", 0.5, 0.0]) == pytest.approx(math.log(257), abs=2.5)
    assert first_loss(others["dhel", 0.5, 0.0]) == pytest.approx(math.log(31), abs=0.5)
    assert others["dhel", 0.5, 0.0]["solo_learn"]["objective"] == "dhel"


def test_the_same_trial_gives_the_same_numbers(records, others):
    once, again = records["simclr", 0.5, 0.0], others["simclr", 0.5, 0.0]
    assert again["metrics"] == once["metrics"]
    assert again["epoch_losses"] == once["epoch_losses"]


def test_the_checkout_is_left_as_it_was(checkout, records):
    if not (checkout / ".git").exists():
        pytest.skip("the checkout is no git repository")
    done = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout == ""
