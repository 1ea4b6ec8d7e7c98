"""`varloss-bench compare --framework solo` with an unmodified solo-learn, end to end."""

import json
import math
import subprocess
import sys

import pytest
from support.solo.runs import environment

pytestmark = [pytest.mark.solo_root, pytest.mark.slow, pytest.mark.timeout(1800)]

# One epoch of 7 batches of 128. The tests are about the procedure, and starting solo-learn dominates the time. MoCo's queue of
# 256 is a multiple of the batch.
ARGUMENTS = [
    *("compare", "--framework", "solo", "--batch-size", "128", "--epochs", "1"),
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
    return bench(checkout, solo_python, folder / "one", "--method", "simclr", "--control-temperature", "0.2")


@pytest.fixture(scope="module")
def others(checkout, solo_python, folder):
    """SimCLR without VRN once more, and MoCo, both arms."""
    none = ("--control-temperature", "")
    found = bench(checkout, solo_python, folder / "other", "--method", "moco", *none)
    return found | bench(checkout, solo_python, folder / "other", "--method", "simclr", "--weight", "0", *none)


ARMS = [("simclr", 0.5, 0.0), ("simclr", 0.5, 3.0), ("simclr", 0.2, 0.0)]


def first_loss(record):
    return float(record["paired"]["first_own_loss"])


def test_every_trial_ends_with_a_record_of_what_solo_learn_ran(folder, records):
    assert set(records) == {*ARMS, ("raw-pixels", 0.5, 0.0), ("random-init", 0.5, 0.0)}
    assert all(record["status"] == "finished" for record in records.values())
    for _method, temperature, weight in ARMS:
        recorded = records["simclr", temperature, weight]["solo_learn"]
        assert (recorded["method"], recorded["temperature"], recorded["batch_size"]) == ("simclr", temperature, 128)
        assert recorded["learning_rate"] == pytest.approx(0.15 * 128 / 256)
        assert (recorded["vrn"] or "").startswith("varloss: VRN on, method=simclr, weight=3, n=997" if weight else "")
        assert bool(recorded["vrn"]) == bool(weight)
    assert "trained by solo-learn" in (folder / "one" / "table.txt").read_text()
    # Images, configuration and checkpoints are gone; a log lies beside each trained record.
    left = [path.suffix for path in (folder / "one" / "trials").iterdir()]
    assert (left.count(".json"), left.count(".log"), len(left)) == (5, 3, 8)


def test_arms_begin_alike_and_only_what_was_asked_for_differs(records):
    plain, with_vrn, colder = (records[arm] for arm in ARMS)
    assert first_loss(plain) == first_loss(with_vrn)
    assert first_loss(plain) != first_loss(colder)
    assert len({record["metrics"]["negative_variance"] for record in (plain, with_vrn, colder)}) == 3
    # The similarities of an untrained net are close to one another: the logarithm of how many rows a row is compared with.
    assert first_loss(plain) == pytest.approx(math.log(255), abs=0.5)


def test_the_same_trial_gives_the_same_numbers(records, others):
    once, again = records["simclr", 0.5, 0.0], others["simclr", 0.5, 0.0]
    assert again["metrics"] == once["metrics"]
    assert again["epoch_losses"] == once["epoch_losses"]


def test_moco_runs_with_and_without(others):
    plain, with_vrn = others["moco", 0.5, 0.0], others["moco", 0.5, 3.0]
    assert plain["solo_learn"]["method"] == with_vrn["solo_learn"]["method"] == "mocov2plus"
    assert with_vrn["solo_learn"]["vrn"].startswith("varloss: VRN on, method=mocov2plus, weight=3, n=997")
    assert first_loss(plain) == first_loss(with_vrn)
    assert plain["metrics"] != with_vrn["metrics"]


def test_the_checkout_is_left_as_it_was(checkout, records):
    if not (checkout / ".git").exists():
        pytest.skip("the checkout is no git repository")
    done = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout == ""
