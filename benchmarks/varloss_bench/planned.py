"""What a sweep had decided to compare before it saw a result: kept in `summary.json`, for `report` to compare the same."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.summary import Pair, Role

FILE = "summary.json"


@dataclass(frozen=True)
class Planned:
    """The plan of the last sweep in a folder.

    Attributes:
        keys: Of its trials.
        pairs: What it compares, all of them one family.
        effect_points: The accuracy difference whose price in seeds it tells.
    """

    keys: frozenset[str]
    pairs: tuple[Pair, ...]
    effect_points: float


def to_dict(trials: Sequence[TrialConfig], pairs: Sequence[Pair], effect_points: float) -> dict[str, Any]:
    """As plain values, for `read`."""
    return {
        "trials": [trial.key() for trial in trials],
        "pairs": [{"treated": vars(pair.treated), "base": vars(pair.base), "base_is": pair.role} for pair in pairs],
        "effect_points": effect_points,
    }


def read(folder: Path) -> Planned | None:
    """The plan in `folder/summary.json`; None where there is no such file, or one of an earlier version, without a plan.

    Raises:
        ValueError: The file is not what a sweep writes.
    """
    try:
        content = json.loads((folder / FILE).read_text())
        return _read(content["plan"]) if "plan" in content else None
    except FileNotFoundError:
        return None
    # What an arbitrary file can raise on its way.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"corrupt: {type(error).__name__}: {error}") from None


def _read(plan: Any) -> Planned:
    keys = plan["trials"]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the plan's trials are not a list of keys")
    pairs = tuple(Pair(_arm(pair["treated"]), _arm(pair["base"]), pair["base_is"]) for pair in plan["pairs"])
    if not all(pair.role in get_args(Role) for pair in pairs):
        raise ValueError("the plan compares with a base that is none of " + ", ".join(get_args(Role)))
    effect = plan["effect_points"]
    if not isinstance(effect, int | float) or not math.isfinite(effect) or not effect > 0:
        raise ValueError(f"the plan's effect is {effect!r}")
    return Planned(frozenset(keys), pairs, float(effect))


def _arm(values: Any) -> Arm:
    arm = Arm(**values)
    numbers = (arm.batch_size, arm.temperature, arm.weight)
    if not isinstance(arm.method, str) or not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"the plan compares what is no arm: {values!r}")
    return arm
