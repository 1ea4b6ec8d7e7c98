"""The comparisons that a sweep planned before it saw a result. `plan.json` keeps them, so `report` makes the same ones."""

import dataclasses
import json
import math
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from varloss_bench.config import EVALUATION_SPLITS, PROTOCOL, Arm, TrialConfig
from varloss_bench.methods import METHODS
from varloss_bench.records.store import write_atomically
from varloss_bench.statistics.summary import Pair, Role

FILE = "plan.json"


@dataclass(frozen=True)
class Planned:
    """The plan of the last sweep in a folder.

    Attributes:
        configs: Its trials with and without results; missing results also affect verdicts.
        protocol: The protocol of the harness when the sweep was planned.
        pairs: The comparisons, which form one family.
        effect_points: The accuracy difference for which the number of seeds needed is reported.
    """

    configs: tuple[TrialConfig, ...]
    protocol: int
    pairs: tuple[Pair, ...]
    effect_points: float

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the trials, as in their records."""
        return frozenset(config.key(self.protocol) for config in self.configs)


def write(folder: Path, trials: Sequence[TrialConfig], pairs: Sequence[Pair], effect_points: float) -> None:
    """Write the plan of a sweep to its folder."""
    write_atomically(folder / FILE, json.dumps(to_dict(trials, pairs, effect_points), indent=1, sort_keys=True) + "\n")


def to_dict(trials: Sequence[TrialConfig], pairs: Sequence[Pair], effect_points: float) -> dict[str, Any]:
    """As plain values, for `read`.

    Trials that differ only in the seed are one entry; values that most entries share are written once.
    """
    seeds: dict[TrialConfig, list[int]] = {}
    for trial in trials:
        seeds.setdefault(dataclasses.replace(trial, seed=0), []).append(trial.seed)
    entries = [trial.to_dict() for trial in seeds]
    common = {name: _most_common([entry[name] for entry in entries]) for name in entries[0] if name != "seed"}
    return {
        "protocol": PROTOCOL,
        "common": common,
        "trials": [
            {name: value for name, value in entry.items() if name in common and not _same(value, common[name])}
            | {"seeds": of_entry}
            for entry, of_entry in zip(entries, seeds.values(), strict=True)
        ],
        "pairs": [{"treated": vars(pair.treated), "base": vars(pair.base), "base_is": pair.role} for pair in pairs],
        "effect_points": effect_points,
    }


def _most_common(values: Sequence[Any]) -> Any:
    ((text, _),) = Counter(map(json.dumps, values)).most_common(1)
    return json.loads(text)


def _same(one: Any, other: Any) -> bool:
    """As JSON, from which keys are made: 1 and 1.0 differ, so their records differ too."""
    return json.dumps(one) == json.dumps(other)


def read(folder: Path) -> Planned | None:
    """The plan in `folder/plan.json`; None if there is no such file, as in folders of earlier versions.

    Raises:
        ValueError: A sweep did not write the file in this form.
    """
    try:
        return read_plan(json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None
    # The exceptions that an arbitrary file can raise.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"corrupt: {type(error).__name__}: {error}") from None


def read_plan(plan: Mapping[str, Any]) -> Planned:
    """The inverse of `to_dict`. Raises `ValueError`, or any exception that an incomplete plan causes."""
    protocol, effect = plan["protocol"], plan["effect_points"]
    if type(protocol) is not int or not 1 <= protocol <= PROTOCOL:
        raise ValueError(f"the plan's protocol is {protocol!r}; it must be from 1 to {PROTOCOL}")
    if not isinstance(effect, int | float) or not math.isfinite(effect) or not effect > 0:
        raise ValueError(f"the plan's effect is {effect!r}")
    configs: list[TrialConfig] = []
    for entry in plan["trials"]:
        values = {**plan["common"], **entry}
        configs += [TrialConfig.from_dict({**values, "seed": seed}) for seed in values.pop("seeds")]
    for config in configs:
        check_config(config)
    pairs = tuple(Pair(_arm(pair["treated"]), _arm(pair["base"]), pair["base_is"]) for pair in plan["pairs"])
    if not all(pair.role in get_args(Role) for pair in pairs):
        raise ValueError("the role of a base in the plan is not one of " + ", ".join(get_args(Role)))
    arms = {config.arm for config in configs}
    if not any(arm.trained for arm in arms):
        raise ValueError("the plan has no trained arm")
    if not arms.issuperset(arm for pair in pairs for arm in pair[:2]):
        raise ValueError("the plan compares arms without trials")
    return Planned(tuple(dict.fromkeys(configs)), protocol, pairs, float(effect))


def _arm(values: Any) -> Arm:
    arm = Arm(**values)
    numbers = (arm.batch_size, arm.temperature, arm.weight)
    if not isinstance(arm.method, str) or not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"the plan has an invalid arm: {values!r}")
    return arm


def check_config(config: TrialConfig) -> None:
    """Check types and ranges, so that later code does not sort numbers with strings or take the logarithm of -1.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """
    hints = get_type_hints(TrialConfig)
    for name, value in dataclasses.asdict(config).items():
        allowed = get_args(hints[name]) if get_origin(hints[name]) in (Union, types.UnionType) else (hints[name],)
        kinds = tuple(get_origin(kind) or kind for kind in allowed)
        if not isinstance(value, (*kinds, int) if float in kinds else kinds) or (
            isinstance(value, bool) and bool not in kinds
        ):
            raise ValueError(f"{name} is {value!r}, not {hints[name]}")
        if isinstance(value, float | int) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}")
    if config.evaluate_on not in EVALUATION_SPLITS:
        raise ValueError(f"unknown split {config.evaluate_on!r}")
    if config.batch_size < 1 or config.temperature <= 0 or config.weight < 0 or config.epochs < 0:
        raise ValueError("batch size, temperature, weight or epochs out of range")
