"""Check whether records were made from the same images. A trial's key holds the path of a folder, not its contents."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from varloss_bench.config import TrialConfig
from varloss_bench.messages import counted

# What a record says about its images, in words; the most informative first.
_NAMES = {
    "data_digest": "the images with the digest {}",
    "num_train": "{} training images",
    "num_evaluated": "{} evaluated images",
    "first_batch": "images with the first batch {}",
}
# Number of files that the text names for each set of images.
_NAMED_FILES = 5


def differences(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sets of images that the records of one data set were made from, the oldest first; empty if nothing contradicts.

    Records must agree on the digest of images and labels and on the numbers of training and evaluated images. The first batch
    also depends on seed, batch size and device, and its rounding depends on versions and machine. Records that share all of
    these must agree on it. Nothing here depends on method, weight or temperature. The order in the records is not compared: it
    follows from the seed and the number of training images. A record without a digest is compared by the other values.

    Returns:
        One entry per set of images: `by` (the value that differs), `value`, `trials` (names of files), `num_train` (all numbers
        of training images among them), `finished_at` (first and last) and `made_by` (versions and processor by name; only those
        in which the entries differ).
    """
    by_name: dict[str, dict[str, dict[str, list[tuple[TrialConfig, Mapping[str, Any]]]]]] = {}
    for trial in trials:
        record = records.get(trial.key(), {})
        for name, scope, value in _described(trial, record):
            by_name.setdefault(name, {}).setdefault(scope, {}).setdefault(value, []).append((trial, record))
    for name in _NAMES:
        for by_value in by_name.get(name, {}).values():
            if len(by_value) > 1:
                found = [_entry(name, value, members) for value, members in by_value.items()]
                _keep_differing([entry["made_by"] for entry in found])
                return sorted(found, key=lambda entry: entry["finished_at"][-1])
    return []


def _described(trial: TrialConfig, record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """For each value that describes the images of a record: its name, the options that must also be equal, and the value."""
    source = [trial.data, trial.data_dir, trial.image_size, trial.official_test]
    sizes = [*source, trial.num_train, trial.num_val, trial.num_test]
    paired = _table(record, "paired")
    environment = _table(record, "environment")
    made_by = [environment.get("versions"), environment.get("machine")]
    scopes: dict[str, tuple[Any, list[Any]]] = {
        "data_digest": (record.get("data_digest"), source),
        "num_train": (record.get("num_train"), sizes),
        "num_evaluated": (record.get("num_evaluated"), [*sizes, trial.evaluate_on]),
        "first_batch": (paired.get("first_batch"), [*sizes, trial.seed, trial.batch_size, trial.device, made_by]),
    }
    for name, (value, scope) in scopes.items():
        if value is not None:
            yield name, json.dumps(scope, sort_keys=True, default=str), str(value)


def _entry(name: str, value: str, members: Sequence[tuple[TrialConfig, Mapping[str, Any]]]) -> dict[str, Any]:
    finished = sorted(str(record.get("finished_at", "")) for _, record in members)
    return {
        "by": name,
        "value": value,
        "trials": [f"{trial.file_stem()}.json" for trial, _ in members],
        "num_train": sorted({count for _, record in members if isinstance(count := record.get("num_train"), int)}),
        "finished_at": [finished[0], finished[-1]],
        "made_by": _made_by(record for _, record in members),
    }


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table in a record; empty if it is missing or not a table."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _made_by(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """All versions and processors that occur in these records."""
    found: dict[str, set[str]] = {}
    for record in records:
        environment = _table(record, "environment")
        for name, value in {
            **_table(environment, "versions"),
            "cpu": _table(environment, "machine").get("cpu"),
        }.items():
            if value is not None:
                found.setdefault(name, set()).add(str(value))
    return {name: sorted(values) for name, values in found.items()}


def _keep_differing(entries: Sequence[dict[str, list[str]]]) -> None:
    for name in set().union(*entries):
        if all(made_by.get(name) == entries[0].get(name) for made_by in entries):
            for made_by in entries:
                del made_by[name]


def in_words(found: Sequence[Mapping[str, Any]], command: Sequence[str]) -> list[str]:
    """Paragraphs about the result of `differences`, with the command that makes every trial again; none if it is empty."""
    if not found:
        return []
    heading, *kinds = _text(found, "data_differ in summary.json")
    return [
        heading,
        *(f"- {kind}" for kind in kinds),
        "A trial is identified by its options. They name the data set but do not describe its images. To make all trials from "
        f"the current images, in a new folder: {shlex.join([*command, '--output', 'NEW_FOLDER'])}",
    ]


def warnings(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same for a page about these trials, which may come from several commands."""
    found = differences(trials, records)
    return _text(found, "all in rows.csv") if found else []


def _text(found: Sequence[Mapping[str, Any]], rest: str) -> list[str]:
    """The meaning, then a line for each set of images; `rest` says where to find the files that are not named."""
    # Only a digest depends on decoding: image counts are counts of files, and first batches are compared within one machine.
    decoded = ", or other versions or machines decoded them differently" if found[0]["by"] == "data_digest" else ""
    return [
        f"NOT THE SAME IMAGES: these trials read different images (the files changed{decoded}). Rows therefore also differ in "
        "their images, and no difference below can be attributed to VRN, temperature or batch size:",
        *(
            f"{counted(len(entry['trials']), 'trial')} from {_NAMES[entry['by']].format(entry['value'])}"
            f"{_trained_on(entry)}, finished {' to '.join(dict.fromkeys(entry['finished_at']))}{_with(entry)}: "
            f"{_files(entry['trials'], rest)}"
            for entry in found
        ),
    ]


def _with(entry: Mapping[str, Any]) -> str:
    made_by = [f"{name} {' or '.join(values)}" for name, values in entry["made_by"].items()]
    return f", with {', '.join(made_by)}" if made_by else ""


def _trained_on(entry: Mapping[str, Any]) -> str:
    if entry["by"] == "num_train" or not entry["num_train"]:
        return ""
    return f" ({' or '.join(map(str, entry['num_train']))} of them trained on)"


def _files(names: Sequence[str], rest: str) -> str:
    more = len(names) - _NAMED_FILES
    return ", ".join(names[:_NAMED_FILES]) + (f" and {more} more ({rest})" if more > 0 else "")
