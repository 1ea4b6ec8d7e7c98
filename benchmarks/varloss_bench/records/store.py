"""Results on disk: one JSON file per trial, there in full or not at all."""

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
# A diverged trial is a result: it would diverge again. A crashed one is kept to be read, and is run again.
DONE = ("finished", "diverged")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: its files are readable by their owner only, and os.replace keeps that.
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
    """What was found on disk.

    Attributes:
        records: By trial key.
        corrupt: Files that could not be read, with the reason.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    corrupt: dict[Path, str] = field(default_factory=dict)

    def done(self, config: TrialConfig) -> bool:
        """Whether a trial need not be run again."""
        return self.records.get(config.key(), {}).get("status") in DONE


class Store:
    """The folder of one sweep or of several; trials are found by key, so sweeps in one folder share what they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials = folder / "trials"

    def path(self, config: TrialConfig) -> Path:
        """File of a trial."""
        return self.trials / f"{config.file_stem()}.json"

    def write(self, config: TrialConfig, record: dict[str, Any]) -> None:
        """Keep the record of a trial."""
        # NaN is not JSON; a metric that is NaN is a failure to be recorded as one, not to be smuggled into a file.
        content = json.dumps({"schema": SCHEMA, **record}, indent=1, sort_keys=True, allow_nan=False)
        write_atomically(self.path(config), content + "\n")

    def load(self, configs: Iterable[TrialConfig]) -> Loaded:
        """Read the records of these trials; what is not a whole record of its trial is reported as corrupt."""
        loaded = Loaded()
        for config in configs:
            path = self.path(config)
            try:
                record = json.loads(path.read_text())
                self.check(record, config)
            except FileNotFoundError:
                continue
            # Half a record can be wrong in any of these ways, up to an integer too large for a float.
            except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                loaded.corrupt[path] = f"{type(error).__name__}: {error}"
                continue
            loaded.records[config.key()] = record
        return loaded

    @staticmethod
    def check(record: Any, config: TrialConfig) -> None:
        """Raise `ValueError`, or what half a record makes Python raise, unless this is a whole record of that trial."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ValueError(f"not a trial record of schema {SCHEMA}")
        if TrialConfig.from_dict(record["config"]) != config:
            raise ValueError("the configuration inside is not the one the file is named after")
        if record["status"] not in (*DONE, "crashed"):
            raise ValueError(f"unknown status {record['status']!r}")
        if not isinstance(record["reason"], str | None):
            raise ValueError(f"the reason is neither a text nor null: {record['reason']!r}")
        if not isinstance(record["environment"], dict):
            raise ValueError("the environment is not a table of names")
        if record["status"] != "finished":
            return
        # All that is read of a result later, so that the report never meets a record it cannot use.
        if not isinstance(record["collapsed"], bool):
            raise ValueError("collapsed is neither true nor false")
        numbers = {**record["metrics"], "seconds to train": record["seconds"]["train"]}
        if "timing" in record:  # older records have none
            numbers |= {"images per second": record["timing"]["images_per_second"], **record["timing"]}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is not a finite number: {value!r}")
