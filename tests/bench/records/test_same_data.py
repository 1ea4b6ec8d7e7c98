"""Records that were made from different images are detected; a trial's key has only the folder's path."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from varloss_bench.compare import select
from varloss_bench.compare.present import present
from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.execution.execute import execute
from varloss_bench.grid import grid, untrained
from varloss_bench.records import same_data
from varloss_bench.records.store import Store
from varloss_bench.report import groups
from varloss_bench.report.sections import sections
from varloss_bench.statistics.selection import choose
from varloss_bench.statistics.summary import grid_pairs
from varloss_bench.training.trial import _load

COMMAND = ["varloss-bench", "compare", "--data", "imagefolder:here"]


def trials_of(folder, weights):
    base = TrialConfig(data=f"imagefolder:{folder}", image_size=8, epochs=1, batch_size=16)
    axes = {"methods": ["simclr"], "batch_sizes": [16], "temperatures": [0.5], "control_temperatures": []}
    return grid(base, **axes, weights=weights, seeds=[0, 1])


def write_images(folder, first, last):
    random = np.random.default_rng(first)
    for name, colour in (("a", 60), ("b", 180)):
        (folder / name).mkdir(exist_ok=True, parents=True)
        for i in range(first, last):
            Image.fromarray(random.normal(colour, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{i}.bmp"
            )


def run(folder, results, weights):
    """Run the missing trials, like a new worker, and show all of them; returns the console's text and the stored text."""
    _load.cache_clear()
    trials, store = trials_of(folder, weights), Store(results)
    for trial in trials:
        assert execute(trial, results, COMMAND)[0] == "finished"
    console = Console(file=io.StringIO(), width=100)
    present(trials, store, console, pairs=grid_pairs(trials, []), command=COMMAND, ran=0, seconds=0.0)
    summary = json.loads((results / "summary.json").read_text())
    return console.file.getvalue(), (results / "table.txt").read_text(), summary["data_differ"]


@pytest.mark.usefixtures("trains")
def test_a_folder_that_changed_between_two_sweeps_is_announced(tmp_path):
    images, results = tmp_path / "images", tmp_path / "results"
    write_images(images, 0, 40)
    for text in run(images, results, [3.0])[:2]:
        assert "IMAGES" not in text
    keys = {trial.key() for trial in trials_of(images, [3.0])}
    # Labels change and images are removed, as when a folder is tidied up.
    for i in range(8):
        (images / "a" / f"{i}.bmp").unlink()
        (images / "b" / f"{i}.bmp").rename(images / "a" / f"{i}.bmp")
    *texts, differ = run(images, results, [1.0, 3.0])
    assert keys < {trial.key() for trial in trials_of(images, [1.0, 3.0])}
    for text in texts:
        shown = " ".join(text.split())
        assert "NOT THE SAME IMAGES" in shown
        assert shown.index("NOT THE SAME IMAGES") < shown.index("Accuracy on")
        assert re.search(
            r"- 8 trials from the images with the digest \w{12} \(48 of them trained on\), finished 2\d{3}-", shown
        )
        assert re.search(
            r"- 2 trials from the images with the digest \w{12} \(44 of them trained on\), finished 2\d{3}-", shown
        )
        assert "simclr-b16-t0.5-w1-s0-" in shown
        assert "in a new folder: varloss-bench compare --data imagefolder:here --output NEW_FOLDER" in shown
    assert [entry["by"] for entry in differ] == ["data_digest"] * 2
    assert [len(entry["trials"]) for entry in differ] == [8, 2]
    assert all((results / "trials" / name).is_file() for entry in differ for name in entry["trials"])
    assert all(name in texts[1] for entry in differ for name in entry["trials"][:5])  # no name is broken in two
    # The page of the folder and its Markdown show the warning above the verdict.
    warned = sections(groups.read(results))[0].warnings
    assert warned[0].startswith("NOT THE SAME IMAGES: these trials read different images (the files changed, or ")
    assert [line.split(" trials from the images with the digest ")[0] for line in warned[1:3]] == ["8", "2"]
    assert "NOT THE SAME IMAGES" in (results / "report.html").read_text()
    assert "> NOT THE SAME IMAGES" in (results / "report.md").read_text()
    # The trials of a selection are checked too.
    console = Console(file=io.StringIO(), width=100)
    trials = trials_of(images, [1.0, 3.0])
    records = Store(results).load(trials).records
    alarm = same_data.in_words(same_data.differences(trials, records), COMMAND)
    select._show_validation(choose(trials, records, "knn"), alarm, console)
    assert console.file.getvalue().startswith("NOT THE SAME IMAGES")


def test_the_digest_is_of_pixels_labels_and_their_order(tmp_path):
    write_images(tmp_path, 0, 12)

    def digest():
        return loading.load(f"imagefolder:{tmp_path}", image_size=8, sizes=(14, 4, 4)).digest

    before = digest()
    assert digest() == before
    assert len(before) == 12
    file, other = tmp_path / "a" / "3.bmp", tmp_path / "a" / "4.bmp"
    content, size = file.read_bytes(), file.stat().st_size
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(file)
    assert file.stat().st_size == size  # neither name nor size tells it
    assert digest() != before
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert digest() != before
    other.write_bytes(file.read_bytes())
    file.write_bytes(content)
    assert digest() == before
    # Sizes and seeds draw from the same images.
    assert loading.load(f"imagefolder:{tmp_path}", image_size=8).digest == before
    digits = loading.load("digits")
    assert dataclasses.replace(digits, labels=digits.labels.flip(0)).digest != digits.digest
    assert (
        dataclasses.replace(digits, official_test=loading.Split(digits.images, digits.labels)).digest != digits.digest
    )


BASE = TrialConfig(data="imagefolder:x")
ENVIRONMENT = {"versions": {"torch": "2.4.0"}, "machine": {"cpu": "one"}}


def old_record(**more):
    """A record from before records had a digest."""
    record = {"num_train": 72, "num_evaluated": 24, "environment": ENVIRONMENT, "finished_at": "2026-01-02"}
    return {**record, "paired": {"order": "o", "first_batch": "f"}, **more}


@pytest.mark.parametrize(
    ("changes", "more", "by"),
    [
        ({}, {}, None),
        ({}, {"num_train": 59}, "num_train"),
        ({"seed": 1}, {"num_train": 59}, "num_train"),
        ({"num_train": 59}, {"num_train": 59}, None),  # asked for
        ({}, {"num_evaluated": 23}, "num_evaluated"),
        ({"evaluate_on": "val"}, {"num_evaluated": 23}, None),
        ({}, {"paired": {"first_batch": "g"}}, "first_batch"),
        ({"method": "moco"}, {"paired": {"first_batch": "g"}}, "first_batch"),
        ({"seed": 1}, {"paired": {"first_batch": "g"}}, None),
        ({"batch_size": 64}, {"paired": {"first_batch": "g"}}, None),
        ({"device": "cuda"}, {"paired": {"first_batch": "g"}}, None),
        ({}, {"paired": {"first_batch": "g"}, "environment": {**ENVIRONMENT, "machine": {"cpu": "two"}}}, None),
        ({}, {"paired": {"order": "p", "first_batch": "f"}}, None),
        ({}, {"paired": {"first_own_loss": "1.5"}}, None),
        ({}, {"paired": None}, None),
        ({}, {"data_digest": "abc"}, None),  # a newer record with the same numbers: nothing shows a difference
    ],
)
def test_what_has_to_be_equal_for_which_records(changes, more, by):
    trials = [dataclasses.replace(BASE, weight=weight) for weight in (0.0, 3.0)]
    trials.append(dataclasses.replace(BASE, **{"weight": 1.0, **changes}))
    records = {trial.key(): old_record() for trial in trials[:2]}
    records[trials[2].key()] = old_record(**{"finished_at": "2026-03-04", **more})
    found = same_data.differences(trials, records)
    if by is None:
        assert found == []
        assert same_data.in_words(found, COMMAND) == []
        return
    older, newer = found
    assert (older["by"], len(older["trials"]), older["finished_at"]) == (by, 2, ["2026-01-02"] * 2)
    assert newer["trials"] == [f"{trials[2].file_stem()}.json"]
    text = "\n".join(same_data.in_words(found, COMMAND))
    assert newer["trials"][0] in text
    assert "finished 2026-01-02:" in text


def test_versions_that_decoded_the_images_are_named_where_they_differ():
    trials = [dataclasses.replace(BASE, seed=seed) for seed in range(3)]
    records = {
        trial.key(): old_record(
            data_digest="old" if trial.seed else "new",
            environment={
                "versions": {"torch": "2.4.0", "pillow": f"11.{trial.seed}.0"},
                "machine": {"cpu": "one" if trial.seed else "two"},
            },
        )
        for trial in trials
    }
    text = "\n".join(same_data.in_words(same_data.differences(trials, records), COMMAND))
    assert "(the files changed, or other versions or machines decoded them differently)" in text
    assert "1 trial from the images with the digest new (72 of them trained on), finished 2026-01-02, with " in text
    (one,), (two,) = (re.findall(rf"digest {name} .*, with (.*):", text) for name in ("new", "old"))
    assert sorted(one.split(", ")) == ["cpu two", "pillow 11.0.0"]
    assert sorted(two.split(", ")) == ["cpu one", "pillow 11.1.0 or 11.2.0"]
    assert "torch" not in text
    # Numbers of images do not depend on versions, and equal versions are not named.
    records = {trial.key(): old_record(num_train=72 if trial.seed else 59) for trial in trials}
    text = "\n".join(same_data.in_words(same_data.differences(trials, records), COMMAND))
    assert "(the files changed). Rows" in text
    assert ", with " not in text


def test_many_files_are_counted():
    trials = [dataclasses.replace(BASE, seed=seed) for seed in range(9)]
    records = {trial.key(): old_record(num_train=72 if trial.seed else 59) for trial in trials}
    text = "\n".join(same_data.in_words(same_data.differences(trials, records), COMMAND))
    assert "- 8 trials from 72 training images" in text
    assert "and 3 more (data_differ in summary.json)" in text


def test_an_earlier_row_of_large_raw_pixels_is_left_out_for_what_it_is(tmp_path):
    """An untrained row beside a trained row of the same data set, made from different images."""
    trained = dataclasses.replace(BASE, image_size=224)
    made_now = untrained(trained, "raw-pixels", 0)
    earlier = dataclasses.replace(made_now, raw_pixels_side=None)
    for trial in (trained, made_now, earlier):
        more = {"key": trial.key(), "config": trial.to_dict(), "status": "diverged", "reason": "a loss"}
        Store(tmp_path).write(trial, old_record(**more))
    left_out = groups.read(tmp_path).left_out
    assert list(left_out) == [f"{earlier.file_stem()}.json"]
    assert left_out[f"{earlier.file_stem()}.json"].startswith("made before large images were averaged")


def test_trials_without_a_result_say_nothing():
    trials = [BASE, dataclasses.replace(BASE, seed=1), dataclasses.replace(BASE, seed=2)]
    records = {BASE.key(): old_record(), trials[1].key(): {"status": "crashed", "environment": ENVIRONMENT}}
    assert same_data.differences(trials, records) == []
