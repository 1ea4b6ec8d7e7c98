"""Range checks of the arguments that the closed forms take; each raises ValueError naming the argument."""

from collections.abc import Sequence

from varloss.functional import Pairs

PAIRS: tuple[Pairs, ...] = ("cross", "within", "both")


def one_of(value: str, allowed: Sequence[str], name: str) -> None:
    """The value must be one of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def positive(name: str, value: float) -> float:
    """The value must be above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}.")
    return value


def not_negative(name: str, value: float) -> float:
    """The value must be at least 0."""
    if not value >= 0:
        raise ValueError(f"{name} must not be negative; got {value}.")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """The value must be at least `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")
    return value
