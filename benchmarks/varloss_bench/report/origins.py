"""Where the rows of a report come from: versions and machine, confounds, commands."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from varloss_bench.report.groups import Group


def environments(group: Group) -> list[tuple[str, str, int]]:
    """Each set of versions, losses and machine with its number of trials; after the first, only the differences."""
    counted = Counter(json.dumps(_made_by(trial.record), sort_keys=True) for trial in group.trials)
    first: dict[str, str] = {}
    result = []
    for number, (text, count) in enumerate(counted.most_common()):
        flat = _flatten(json.loads(text))
        shown = flat if number == 0 else {name: value for name, value in flat.items() if first.get(name) != value}
        first = first or flat
        words = "; ".join(f"{name} {value}" for name, value in shown.items())
        result.append(("most common" if number == 0 else "differences", words, count))
    return result


def _flatten(values: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= _flatten(value) if isinstance(value, Mapping) else {name: str(value)}
    return flat


def confounds(group: Group) -> list[tuple[str, str]]:
    """Every confound with all its values in this group."""
    seen: dict[str, list[str]] = {}
    for trial in group.trials:
        recorded = trial.record.get("confounds")
        for name, value in recorded.items() if isinstance(recorded, Mapping) else ():
            values = seen.setdefault(str(name).replace("_", " "), [])
            if str(value) not in values:
                values.append(str(value))
    return [(name, " | ".join(values)) for name, values in seen.items()]


def commands(group: Group) -> list[tuple[str, int]]:
    """Each command with the number of its trials."""
    counted = Counter(shlex.join(map(str, trial.record.get("command", []))) for trial in group.trials)
    return counted.most_common()


def _made_by(record: Mapping[str, Any]) -> dict[str, Any]:
    environment = record["environment"]
    made_by = {name: environment.get(name, "unknown") for name in ("versions", "varloss_source", "machine")}
    # Older records have none.
    harness = {name: environment[name] for name in ("varloss_bench_source",) if name in environment}
    return made_by | harness
