"""What commands make of the options they are given: lists, names of data sets, devices, and what all trials share."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varloss_bench.config import ARM_AND_SEED, FRAMEWORKS, TrialConfig


def base_config(options: Mapping[str, Any], *, elsewhere: bool = False, **given: Any) -> TrialConfig:
    """What all trials of a command share: every option that is a field of `TrialConfig`, with what it stands for resolved.

    Args:
        options: By parameter name, as typer's `context.params`; fields that are not among them keep their defaults.
        elsewhere: As `resolve_device`.
        given: Fields that are no options of this command, or other ones.

    Raises:
        ValueError: As `resolve_device`.
    """
    # Arm and seed a command gives each trial itself, whatever its options of these names mean.
    fields = {field.name for field in dataclasses.fields(TrialConfig)} - ARM_AND_SEED
    values = {name: value for name, value in options.items() if name in fields} | given
    framework = values.get("framework", TrialConfig.framework)
    if values.get("backbone") is None:
        values["backbone"] = FRAMEWORKS.get(framework, TrialConfig.backbone)
    if values.get("fused") is None:
        values["fused"] = framework != "solo"
    if values.get("data_dir") is not None:
        values["data_dir"] = str(Path(values["data_dir"]).resolve())
    values["data"] = resolve_data(values["data"])
    values["device"] = resolve_device(values["device"], elsewhere=elsewhere)
    return TrialConfig(**values)


def items(option: str, text: str, kind: type, *, allow_empty: bool = False) -> list[Any]:
    """The values of a comma-separated option.

    Raises:
        ValueError: A value is not of that kind, or there is none and there must be one.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts and not allow_empty:
        raise ValueError(f"{option} needs at least one value, got {text!r}")
    try:
        return [kind(part) for part in parts]
    except ValueError:
        raise ValueError(f"{option} takes {kind.__name__} values separated by commas, got {text!r}") from None


def resolve_data(data: str) -> str:
    """The data set's name; a folder's path whole, so that its trials have one key from wherever they are run."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if path else data


def folder_name(data: str) -> str:
    """What the folder of results is called by default."""
    kind, _, path = data.partition(":")
    return Path(path).expanduser().resolve().name if path else kind


def resolve_device(device: str, *, elsewhere: bool = False) -> str:
    """`auto` by what this machine has; a GPU that is asked for by name may be another machine's.

    Raises:
        ValueError: The name is unknown, or this machine, which is meant, has no GPU.
    """
    import torch  # noqa: PLC0415

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
