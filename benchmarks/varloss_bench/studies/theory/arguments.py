"""Checks of the arguments that the closed forms take."""

import math
import operator
from collections.abc import Sequence
from typing import Literal

Pairs = Literal["cross", "within", "both"]
PAIRS: tuple[Pairs, ...] = ("cross", "within", "both")


def one_of(value: str, allowed: Sequence[str], name: str) -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def real(name: str, value: float) -> float:
    """Returns a finite float, or raises naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}.")
    return float(value)


def positive(name: str, value: float) -> float:
    """Returns a finite float above 0, or raises naming the argument."""
    number = real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive; got {value}.")
    return number


def not_negative(name: str, value: float) -> float:
    """Returns a finite float of at least 0, or raises naming the argument."""
    number = real(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {value}.")
    return number


def whole(name: str, value: int, least: int) -> int:
    """Returns an integer of at least ``least``, or raises naming the argument."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got bool.")
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}.") from error
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}.")
    return number
