"""The config block ``varloss`` (and the reference fork's ``add_vrn_loss_term``), read strictly.

Unknown keys raise and name the nearest known key, so a typo cannot silently disable VRN. :mod:`varloss` checks the ranges of
hyper-parameters when the term is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from varloss.functional import Pairs

PAIRS = get_args(Pairs)
BETWEEN = ("views", "keys", "queue", "targets")
FORK_KEYS = ("enabled", "weight", "k", "delta", "p")
FORK_WEIGHT = 30.0


@dataclass(frozen=True)
class Settings:
    """The settings under ``varloss:``.

    Attributes:
        enabled: False switches everything off and prints so.
        weight: factor on VRN; 0 measures VRN and adds nothing to the loss.
        pairs: ``cross``, ``within`` or ``both``.
        between: which of the method's tensors form the pairs; None takes the method's default.
        num_samples: n; None takes the size of the training set.
        target: the similarity negatives are pulled to; None takes -1 / (n - 1).
        exponent: p.
        warmup_steps: optimizer steps over which the weight rises linearly from 0.
        warmup_fraction: the same, as a part of the training in (0, 1].
        negatives: negatives of the NT-Xent family, for ``method=simclr``, ``nt_xent`` or ``dcl``.
    """

    enabled: bool = True
    weight: float | None = None
    pairs: Pairs = "cross"
    between: str | None = None
    num_samples: int | None = None
    target: float | None = None
    exponent: float = 2
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    negatives: Pairs | None = None

    def as_dict(self) -> dict[str, Any]:
        """All keys, so that two equivalent configurations compare equal."""
        return asdict(self)


KEYS = tuple(field.name for field in fields(Settings))
_OF_VRN = ("pairs", "between", "num_samples", "target", "exponent", "warmup_steps", "warmup_fraction")


def from_block(block: Any) -> Settings:
    """Settings of a ``varloss:`` block.

    Raises:
        ValueError: for anything but a mapping, unknown keys, values of the wrong kind and settings that contradict each
            other, naming what is allowed.
    """
    if not isinstance(block, Mapping):
        raise ValueError(
            f"varloss must be a block of keys; got {block!r}. For a preset write +varloss=vrn on the command line or "
            "'- varloss: vrn' in the defaults list of the YAML file; for a run without VRN write off in place of vrn."
        )
    _known_keys(block, KEYS, "varloss")
    values = {key: value for key, value in block.items() if value is not None}
    if not isinstance(values.get("enabled", True), bool):
        raise ValueError(f"varloss.enabled must be true or false; got {values['enabled']!r}.")
    for key, allowed in (("pairs", PAIRS), ("between", BETWEEN), ("negatives", PAIRS)):
        if key in values:
            _one_of(values[key], allowed, f"varloss.{key}")
    for key in ("weight", "target", "exponent", "warmup_fraction"):
        if key in values:
            _number(values[key], f"varloss.{key}")
    for key in ("num_samples", "warmup_steps"):
        if key in values and (isinstance(values[key], bool) or not isinstance(values[key], int)):
            raise ValueError(f"varloss.{key} must be a whole number; got {values[key]!r}.")
    settings = Settings(**values)
    if settings.num_samples is not None and settings.target is not None:
        raise ValueError(
            "varloss.num_samples and varloss.target exclude each other: the target is -1 / (num_samples - 1)."
        )
    _warmup(settings)
    stray = [key for key in _OF_VRN if key in values and settings.weight is None]
    if settings.enabled and stray:
        raise ValueError(
            f"varloss.{stray[0]} is given but varloss.weight is not: add +varloss.weight=3 or +varloss=vrn."
        )
    return settings


def from_fork(block: Any) -> Settings:
    """Settings of the reference fork's block ``add_vrn_loss_term``: enabled (false), weight (30), p (2), and k or delta.

    Raises:
        ValueError: for unknown keys, values of the wrong kind, and unless exactly one of k and delta is given.
    """
    if not isinstance(block, Mapping):
        raise ValueError(f"add_vrn_loss_term must be a block of keys; got {block!r}.")
    _known_keys(block, FORK_KEYS, "add_vrn_loss_term")
    values = {key: value for key, value in block.items() if value is not None}
    enabled = values.get("enabled", False)
    if not isinstance(enabled, bool):
        raise ValueError(f"add_vrn_loss_term.enabled must be true or false; got {enabled!r}.")
    if not enabled:
        return Settings(enabled=False)
    for key in ("weight", "delta", "p"):
        if key in values:
            _number(values[key], f"add_vrn_loss_term.{key}")
    if ("k" in values) == ("delta" in values):
        raise ValueError("add_vrn_loss_term needs exactly one of k (the number of training samples) and delta.")
    return Settings(
        weight=float(values.get("weight", FORK_WEIGHT)),
        num_samples=values.get("k"),
        target=values.get("delta"),
        exponent=values.get("p", 2),
    )


def _known_keys(block: Mapping[Any, Any], known: Sequence[str], name: str) -> None:
    for key in block:
        if key not in known:
            raise ValueError(f"unknown key {name}.{key}{_nearest(str(key), known)} Known keys: {', '.join(known)}.")


def _one_of(value: Any, allowed: Sequence[str], name: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{_nearest(str(value), allowed)}")


def _number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        cure = " Remove the quotes; for an environment variable write ${oc.decode:${oc.env:NAME}}."
        raise ValueError(f"{name} must be a number; got {value!r}.{cure if isinstance(value, str) else ''}")


def _warmup(settings: Settings) -> None:
    steps, fraction = settings.warmup_steps, settings.warmup_fraction
    if steps is not None and fraction is not None:
        raise ValueError("varloss.warmup_steps and varloss.warmup_fraction exclude each other.")
    if steps is not None and steps < 1:
        raise ValueError(f"varloss.warmup_steps must be at least 1; got {steps}.")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"varloss.warmup_fraction must lie in (0, 1]; got {fraction}.")


def _nearest(given: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(given, known, n=1)
    return f": did you mean {match[0]}?" if match else "."
