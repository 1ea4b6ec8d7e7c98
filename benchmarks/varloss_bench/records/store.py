"""Results on disk: one JSON file per trial, complete or absent."""

import json
import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varloss_bench.config import TrialConfig

SCHEMA = 1
# A diverged trial is a result: it would diverge again. The record of a crashed trial is kept for reading; the trial runs again.
DONE = ("finished", "diverged")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash at any moment leaves the old or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: only the owner can read its files, and os.replace keeps these permissions.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass
class Loaded:
    """The records found on disk.

    Attributes:
        records: Records by trial key.
        corrupt: Files that could not be read, with the reason.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    corrupt: dict[Path, str] = field(default_factory=dict)

    def done(self, config: TrialConfig) -> bool:
        """Whether the trial has a result and need not run again."""
        return self.records.get(config.key(), {}).get("status") in DONE


class Store:
    """The folder of one or several sweeps; trials are found by key, so sweeps in one folder share their common trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials = folder / "trials"

    def path(self, config: TrialConfig) -> Path:
        """File of a trial."""
        return self.trials / f"{config.file_stem()}.json"

    def write(self, config: TrialConfig, record: dict[str, Any]) -> None:
        """Keep the record of a trial."""
        # NaN is not JSON. A metric that is NaN raises here and is recorded as a failure.
        content = json.dumps({"schema": SCHEMA, **record}, indent=1, sort_keys=True, allow_nan=False)
        write_atomically(self.path(config), content + "\n")

    def load(self, configs: Iterable[TrialConfig]) -> Loaded:
        """Read the records of these trials; files that are not complete records of their trials are reported as corrupt."""
        loaded = Loaded()
        for config in configs:
            path = self.path(config)
            try:
                record = json.loads(path.read_text())
                self.check(record, config)
            except FileNotFoundError:
                continue
            # An incomplete record can cause any of these exceptions; an integer too large for a float causes OverflowError.
            except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                loaded.corrupt[path] = f"{type(error).__name__}: {error}"
                continue
            loaded.records[config.key()] = record
        return loaded

    @staticmethod
    def check(record: Any, config: TrialConfig) -> None:
        """Raise `ValueError`, or any exception that an incomplete record causes, unless this is a complete record of the trial."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ValueError(f"not a trial record of schema {SCHEMA}")
        if TrialConfig.from_dict(record["config"]) != config:
            raise ValueError("the configuration in the file does not match the file's name")
        if record["status"] not in (*DONE, "crashed"):
            raise ValueError(f"unknown status {record['status']!r}")
        if not isinstance(record["reason"], str | None):
            raise ValueError(f"the reason must be a text or null: {record['reason']!r}")
        if not isinstance(record["environment"], dict):
            raise ValueError("the environment is not a table")
        if record["status"] != "finished":
            return
        # All values of a result that the report reads later.
        if not isinstance(record["collapsed"], bool):
            raise ValueError("collapsed must be true or false")
        numbers = {**record["metrics"], "seconds to train": record["seconds"]["train"]}
        if "timing" in record:  # older records have none
            numbers |= {"images per second": record["timing"]["images_per_second"], **record["timing"]}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is not a finite number: {value!r}")
