"""How a dataclass field describes itself as an option: help, range or choices, name on the command line.

The options are not here. Each one is a field: of a trial in `config`, of a command in `compare.options`, `tune.options` and
`commands.running`, of a study in its own `command`.

These are made from the descriptions: parameters and `--help` (`commands.parameters`), the keys of a YAML file
(`commands.config_file`), the docstring's list of attributes (`documented`) and the checks (`check`).
"""

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


@dataclass(frozen=True)
class Range:
    """Allowed values of a number, which must be finite. `above` and `below` leave the ends out."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.above is not None:
            return f"greater than {self.above:g}"
        if self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        if self.below is not None:
            return f"from {self.least:g} to below {self.below:g}"
        return f"at least {self.least:g}"


@dataclass(frozen=True)
class Option:
    """A field as an option.

    Attributes:
        help: One or more sentences; a function where they can grow. The choices are added to it.
        panel: The heading of `--help` that lists it.
        name: Name on the command line and in YAML files, if it is not the field's name.
        within: Allowed range of the value, or of each of several values.
        choices: Allowed values, likewise; a function if their number can grow.
        switch: The two words of a bool, `("fused", "split")`; by default the name with and without `no-`. A single word is a
            flag.
        asked: Default on the command line, if it is not the field's default; it is resolved later.
        default_by: Another option and, for each of its values, the default of this option; for commands that have both.
        excludes: Another option; one of the two must be 0. For commands that have both.
        may_be_empty: Whether a list of values may be empty.
        metavar: Text that `--help` shows instead of the value.
        of_the_call: Whether the option is about a single call and is not written to a file of options.
    """

    help: str | Callable[[], str]
    panel: str
    name: str = ""
    within: Range | None = None
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    switch: tuple[str, ...] = ()
    asked: Any = None
    default_by: tuple[str, Mapping[str, Any]] | None = None
    excludes: str = ""
    may_be_empty: bool = False
    metavar: str | None = None
    of_the_call: bool = False

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{dashed(self.name)}"

    @property
    def allowed(self) -> tuple[str, ...]:
        """The current choices."""
        return self.choices() if callable(self.choices) else self.choices

    @property
    def full_help(self) -> str:
        """The help with the choices."""
        text = self.help() if callable(self.help) else self.help
        return f"{text} Choices: {', '.join(self.allowed)}." if self.choices else text

    def check(self, value: Any) -> None:
        """Raise `ValueError` if the value, or one of several values, is not allowed. None is always allowed."""
        for single in value if isinstance(value, (list, tuple, range)) else (value,):
            if single is None:
                continue
            if self.choices and single not in self.allowed:
                raise ValueError(f"{self.flag} must be one of {', '.join(self.allowed)}, got {single!r}")
            if self.within is not None and single not in self.within:
                finite = "" if math.isfinite(single) else "a finite number "
                raise ValueError(f"{self.flag} must be {finite}{self.within}, got {single:g}")


def setting(default: Any, option: Option, *, later: bool = False) -> Any:
    """A dataclass field that is an option; `later` as in `config.TrialConfig`."""
    return dataclasses.field(default=default, metadata={"option": option} | ({"later": True} if later else {}))


def options_of(kind: Any) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The fields of a dataclass, or of an instance of it, that are options."""
    for field in dataclasses.fields(kind):
        found = field.metadata.get("option")
        if found is not None:
            yield field, dataclasses.replace(found, name=found.name or field.name)


def check(instance: Any) -> None:
    """Raise `ValueError` for the first field whose value is out of range or not among its choices."""
    for field, found in options_of(instance):
        value = getattr(instance, field.name)
        other = getattr(instance, found.excludes) if found.excludes else 0
        if value and other:
            raise ValueError(
                f"--{dashed(field.name)} and --{dashed(found.excludes)} exclude each other, got {value} and {other}: set one to 0"
            )
        if not (other and not value):
            found.check(value)


def as_typed(instance: _T) -> _T:
    """The same with integers of float fields as floats and lists as tuples, because 3 and 3.0 have different keys.

    Raises:
        ValueError: The type of a value is not that of its field.
    """
    kinds = get_type_hints(type(instance))
    changes: dict[str, Any] = {}
    for field, found in options_of(instance):
        kind, value = kinds[field.name], getattr(instance, field.name)
        if item := item_kind(kind):
            if isinstance(value, str):
                raise ValueError(f"{found.flag} takes a list of values, got {value!r}")
            changes[field.name] = tuple(_as(item, single, found) for single in value)
        elif value is not None:
            allowed = [part for part in get_args(kind) or (kind,) if part is not types.NoneType]
            changes[field.name] = _as(allowed[0], value, found)
    return dataclasses.replace(instance, **changes)  # type: ignore[type-var]


def _as(kind: Any, value: Any, found: Option) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{found.flag} takes a value of type {kind.__name__}, got {value!r}")
    return value


def item_kind(kind: Any) -> Any:
    """`float` for `Sequence[float]`, whose values are separated by commas on the command line; None for any other type."""
    return get_args(kind)[0] if get_origin(kind) is Sequence else None


def items(option: str, text: str, kind: type, *, allow_empty: bool = False) -> list[Any]:
    """The values of a comma-separated option.

    Raises:
        ValueError: A value is of the wrong type, or a required value is missing.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts and not allow_empty:
        raise ValueError(f"{option} needs at least one value, got {text!r}")
    try:
        return [kind(part) for part in parts]
    except ValueError:
        raise ValueError(f"{option} takes {kind.__name__} values separated by commas, got {text!r}") from None


def as_text(value: Any) -> Any:
    """Several values as one text, separated by commas; a path as text; any other value unchanged."""
    if isinstance(value, tuple | list | range):
        return ",".join(str(single).removesuffix(".0") for single in value)
    return str(value) if isinstance(value, Path) else value


def documented(kind: type[_T]) -> type[_T]:
    """A decorator of dataclasses: adds the help of the fields to the docstring."""
    lines = [f"    {field.name}: {found.full_help}" for field, found in options_of(kind)]
    kind.__doc__ = "\n".join([inspect.cleandoc(kind.__doc__ or ""), "", "Attributes:", *lines])
    return kind


def dashed(name: str) -> str:
    """A field name as it is typed in an option."""
    return name.replace("_", "-")
