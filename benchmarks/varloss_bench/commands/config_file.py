"""Read options of a command from a YAML file, and write the options in effect as such a file."""

import difflib
from pathlib import Path
from typing import Any

import typer
import yaml

from varloss_bench.options import Option, as_text, dashed, options_of


def load_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of `--config`, which runs before other options are parsed. The file's values become the defaults.

    Raises:
        typer.BadParameter: The file cannot be read, is not a table of options, or has an unknown option.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        context.default_map = {**(context.default_map or {}), **read(path, _names(context))}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return path


def read(path: Path, known: list[str]) -> dict[str, Any]:
    """Options by parameter name. Dashes and underscores are equivalent; a list is the same as values separated by commas.

    Raises:
        ValueError: As in `load_defaults`; the message has the given name and similar names.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a table of options, `name: value` in each line, got {content!r:.80}")
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known)
            hint = f"; close to it: {', '.join(map(dashed, close))}" if close else ""
            raise ValueError(f"{path}: unknown option {key!r}{hint}")
        if name in found:
            raise ValueError(f"{path}: {dashed(name)} appears twice")
        if value is not None:  # `name:` without a value keeps the default
            found[name] = _value(path, key, value)
    return found


def _value(path: Path, key: Any, value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value))
    if isinstance(value, str | int | float):
        return value
    raise ValueError(f"{path}: {key} must be a number, a text, true, false or a list of these, got {value!r:.80}")


def dump(*settings: Any) -> str:
    """The options in effect as YAML for `--config`.

    Args:
        settings: Dataclasses whose fields are options. If two have an option with the same name, the first one counts.
    """
    kept: dict[str, Any] = {}
    for instance in settings:
        for field, found in options_of(instance):
            value = getattr(instance, field.name)
            if value is not None and not found.of_the_call and not _follows(instance, found, value):
                kept.setdefault(dashed(found.name), as_text(value))
    text: str = yaml.safe_dump(kept, sort_keys=False)
    return text


def command_words(*settings: Any) -> list[str]:
    """The same as words of the command line, without default values."""
    kept: dict[str, list[str]] = {}
    for instance in settings:
        for field, found in options_of(instance):
            value = getattr(instance, field.name)
            default = field.default if found.asked is None else found.asked
            if value is None or value == default or found.of_the_call or _follows(instance, found, value):
                words = []
            elif isinstance(value, bool):
                on, *off = found.switch or (found.name, f"no-{found.name}")
                words = [f"--{dashed(on if value else off[0])}"]
            else:
                words = [found.flag, str(as_text(value))]
            kept.setdefault(found.name, words)
    return [word for words in kept.values() for word in words]


def _follows(instance: Any, found: Option, value: Any) -> bool:
    """Whether another option determines the value. It is then not written, so that it follows changes of the other option."""
    if found.default_by:
        other, table = found.default_by
        return bool(table.get(getattr(instance, other)) == value)
    return bool(found.excludes) and not value


def given_on_the_command_line(context: typer.Context, name: str) -> bool:
    """Whether an option was typed, not read from a file or left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _names(context: typer.Context) -> list[str]:
    return [parameter.name for parameter in context.command.params if parameter.name and parameter.name != "config"]
