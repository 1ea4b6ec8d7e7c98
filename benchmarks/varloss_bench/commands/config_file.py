"""Options of a command from a YAML file, and the options in effect as such a file."""

import difflib
from pathlib import Path
from typing import Any

import typer

# Options that are about one call, not about what is run.
_OF_THE_CALL = ("config", "dump_config", "dry_run", "resume", "help")


def load_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of `--config`, run before any other option is looked at: the file's values become the defaults.

    Raises:
        typer.BadParameter: The file cannot be read, is not a table of options, or names one that does not exist.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        context.default_map = {**(context.default_map or {}), **read(path, _names(context))}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return path


def read(path: Path, known: list[str]) -> dict[str, Any]:
    """Options by parameter name; dashes and underscores are alike, a list stands for values separated by commas.

    Raises:
        ValueError: As `load_defaults`; what was given and what is close to it is in the message.
    """
    import yaml  # noqa: PLC0415  (only those who have such a file need it)

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
            hint = f"; close to it: {', '.join(map(_shown, close))}" if close else ""
            raise ValueError(f"{path}: unknown option {key!r}{hint}")
        if name in found:
            raise ValueError(f"{path}: {_shown(name)} is there twice")
        if value is not None:  # `name:` alone leaves the default
            found[name] = _value(path, key, value)
    return found


def _value(path: Path, key: Any, value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value))
    if isinstance(value, str | int | float):
        return value
    raise ValueError(f"{path}: {key} must be a number, a text, true, false or a list of these, got {value!r:.80}")


def dump(context: typer.Context, **resolved: Any) -> str:
    """Options in effect as YAML that `--config` reads; what is about one call only is left out.

    Args:
        context: Of the command.
        resolved: What has become of an option since it was read; None leaves it out.
    """
    import yaml  # noqa: PLC0415

    options = {name: resolved.get(name, context.params[name]) for name in _names(context) if name in context.params}
    kept = {
        _shown(name): str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if name not in _OF_THE_CALL and value is not None
    }
    text: str = yaml.safe_dump(kept, sort_keys=False)
    return text


def given_on_the_command_line(context: typer.Context, name: str) -> bool:
    """Whether an option was typed, and does not come from a file or from its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _names(context: typer.Context) -> list[str]:
    return [parameter.name for parameter in context.command.params if parameter.name and parameter.name != "config"]


def _shown(name: str) -> str:
    return name.replace("_", "-")
