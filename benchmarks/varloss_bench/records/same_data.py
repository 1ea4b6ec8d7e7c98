"""Whether records were made from the same images: a trial's key holds the path of a folder, not what is in it."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from varloss_bench.config import TrialConfig
from varloss_bench.messages import counted

# What a record says of its images, in words; the most telling first.
_NAMES = {
    "data_digest": "the images with the digest {}",
    "num_train": "{} training images",
    "num_evaluated": "{} evaluated images",
    "first_batch": "images with the first batch {}",
}
# Files that are named in words, for each set of images.
_NAMED_FILES = 5


def differences(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What these records of one data set say of different images, the oldest first; empty where nothing contradicts.

    All records that tell it must agree on the digest of images and labels, and on the numbers of training and evaluated
    images. The first batch depends on seed, batch size and device too, and is rounded differently by other versions and
    machines: records that share all these must agree on it. Method, weight and temperature have no part in any of this,
    and the order that records hold says nothing more: it follows from the seed and the number of training images. Records
    older than the digest are compared by the rest.

    Returns:
        One entry per set of images: `by` (what they differ in), `value`, `trials` (names of files), `num_train` (all numbers of
        training images there are among them), `finished_at`, first and last, and `made_by` (versions, and the processor, by
        name; those in which the entries differ).
    """
    told: dict[str, dict[str, dict[str, list[tuple[TrialConfig, Mapping[str, Any]]]]]] = {}
    for trial in trials:
        record = records.get(trial.key(), {})
        for name, scope, value in _told_by(trial, record):
            told.setdefault(name, {}).setdefault(scope, {}).setdefault(value, []).append((trial, record))
    for name in _NAMES:
        for by_value in told.get(name, {}).values():
            if len(by_value) > 1:
                found = [_entry(name, value, members) for value, members in by_value.items()]
                _keep_differing([entry["made_by"] for entry in found])
                return sorted(found, key=lambda entry: entry["finished_at"][-1])
    return []


def _told_by(trial: TrialConfig, record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, what else has to be equal, and value of all that a record says of its images."""
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
    """A table in a record; empty where there is none, or something else."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _made_by(records: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """All versions there are among these records, and the processors."""
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


def _keep_differing(told: Sequence[dict[str, list[str]]]) -> None:
    for name in set().union(*told):
        if all(made_by.get(name) == told[0].get(name) for made_by in told):
            for made_by in told:
                del made_by[name]


def in_words(found: Sequence[Mapping[str, Any]], command: Sequence[str]) -> list[str]:
    """Paragraphs about what `differences` found, with the command that makes every trial anew; none where it found nothing."""
    if not found:
        return []
    heading, *kinds = _told(found, "data_differ in summary.json")
    return [
        heading,
        *(f"- {kind}" for kind in kinds),
        "A trial is known by its options, and these name the data and not what is in it. All of them anew, from the images "
        f"there are now, in a new folder: {shlex.join([*command, '--output', 'NEW_FOLDER'])}",
    ]


def warnings(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same for a page about these trials, whose commands are not known to be one."""
    found = differences(trials, records)
    return _told(found, "all in rows.csv") if found else []


def _told(found: Sequence[Mapping[str, Any]], rest: str) -> list[str]:
    """What it means, then a line for each set of images; `rest` is where the files are that are not named."""
    # Numbers of images are those of files; a first batch is only compared within equal versions and machines.
    decoded = ", or other versions or another machine decoded them otherwise" if found[0]["by"] == "data_digest" else ""
    return [
        f"NOT THE SAME IMAGES: those that these trials read differ (the files changed{decoded}), so rows differ in their "
        "images too, and no difference below can be put down to VRN, temperature or batch size:",
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
