"""Make command-line parameters from dataclasses whose fields describe themselves (`varloss_bench.options`)."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.console import Console

from varloss_bench import messages
from varloss_bench.commands.config_file import given_on_the_command_line, load_defaults
from varloss_bench.options import Option, as_text, dashed, item_kind, items, options_of

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the cost and stop.", rich_help_panel="Running", show_default=False)
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of these options by name (`base-lr: 0.3`, several values as `[16, 64]`); the command line wins over it.",
        rich_help_panel="Running",
        is_eager=True,
        callback=load_defaults,
    ),
]


@dataclass(frozen=True)
class Without:
    """`Annotated[Kind, Without({"field"})]` in a command's signature: the options of `Kind` except these fields."""

    fields: frozenset[str] | set[str]


def from_fields(body: Callable[..., None]) -> Callable[..., None]:
    """A command for typer, in which each dataclass parameter of `body` becomes one option per field.

    Other parameters are passed to typer unchanged. Invalid values of a dataclass are an error with exit status 2.
    """
    hints = get_type_hints(body, include_extras=True)
    groups = {name: group for name, hint in hints.items() if (group := _group(hint))}
    known = frozenset(found.name for _, options in groups.values() for _, found in options)
    parameters = []
    for name, parameter in inspect.signature(body).parameters.items():
        if name in groups:
            kind, options = groups[name]
            types = get_type_hints(kind)
            parameters += [_parameter(field, found, types[field.name], known) for field, found in options]
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def command(context: typer.Context, **values: Any) -> None:
        own = {name: value for name, value in values.items() if name not in known}
        typed = [name for name in known if given_on_the_command_line(context, name)]
        try:
            made = {name: build(kind, options, values, typed) for name, (kind, options) in groups.items()}
        except ValueError as error:
            messages.error(Console(), error)
            raise typer.Exit(2) from None
        body(**own, **made)

    first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    command.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [first, *parameters]}
    command.__name__, command.__doc__ = body.__name__, body.__doc__
    return command


_Options = list[tuple["dataclasses.Field[Any]", Option]]


def _group(hint: Any) -> tuple[Any, _Options] | None:
    """A dataclass and the fields of it that are options of the command."""
    kind, left_out = hint, frozenset[str]()
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        left_out = left_out.union(*(mark.fields for mark in marks if isinstance(mark, Without)))
    if not dataclasses.is_dataclass(kind):
        return None
    return kind, [(field, found) for field, found in options_of(kind) if field.name not in left_out]


def _parameter(field: "dataclasses.Field[Any]", found: Option, kind: Any, known: frozenset[str]) -> inspect.Parameter:
    default: Any = field.default if found.asked is None else found.asked
    shown: bool | str = default is not None and len(found.switch) != 1
    if item_kind(kind):
        kind, default = str, as_text(default)
    if found.default_by and found.default_by[0] in known:
        default, shown = None, _shown_default(found)
    elif found.excludes in known:
        default, shown = None, str(default) if default else False
    words = found.switch or ((found.name, f"no_{found.name}") if kind in (bool, bool | None) else (found.name,))
    information = typer.Option(
        "/".join(f"--{dashed(word)}" for word in words),
        help=found.full_help,
        rich_help_panel=found.panel,
        show_default=shown,
        metavar=found.metavar,
    )
    return inspect.Parameter(
        found.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, information],
    )


def _shown_default(found: Option) -> str:
    """`small; resnet18 with --framework solo`."""
    assert found.default_by is not None
    other, table = found.default_by

    def word(value: Any) -> str:
        return found.switch[not value] if found.switch else str(value)

    (_, first), *rest = table.items()
    return "; ".join([word(first), *(f"{word(value)} with --{dashed(other)} {key}" for key, value in rest)])


def build(kind: Any, options: _Options, values: Mapping[str, Any], typed: Collection[str]) -> Any:
    """Make a dataclass from the values of its options, which are None if not given; `typed` names the options that were typed.

    Raises:
        ValueError: A list cannot be read, or two given options exclude each other.
    """
    types, names = get_type_hints(kind), {found.name for _, found in options}
    given = {field.name: values[found.name] for field, found in options if values[found.name] is not None}
    for field, found in options:
        if field.name not in given:
            continue
        if item := item_kind(types[field.name]):
            given[field.name] = tuple(items(found.flag, given[field.name], item, allow_empty=found.may_be_empty))
        if found.excludes in names:
            found.check(given[field.name])
    _exclude(given, [(field.name, found.excludes) for field, found in options if found.excludes in names], typed)
    for field, found in options:
        if field.name not in given and found.default_by and found.default_by[0] in given:
            other, table = found.default_by
            given |= {field.name: table[given[other]]} if given[other] in table else {}
    return kind(**given)


def _exclude(given: dict[str, Any], pairs: Sequence[tuple[str, str]], typed: Collection[str]) -> None:
    """Set one of two options that exclude each other to 0; the command line wins over a file."""
    for name, other in pairs:
        if name in given and other in given and given[name] and given[other]:
            if (name in typed) == (other in typed):
                raise ValueError(
                    f"--{dashed(name)} and --{dashed(other)} exclude each other, got {given[name]} and {given[other]}"
                )
            del given[other if name in typed else name]
    for name, other in pairs:
        if given.get(name):
            given[other] = 0
