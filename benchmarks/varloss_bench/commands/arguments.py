"""What commands make of options: names of data sets, devices."""

import dataclasses
from pathlib import Path

import torch

from varloss_bench.config import TrialConfig


def resolve_data(data: str) -> str:
    """The data set's name; a folder's path whole, so that its trials have one key from wherever they are run."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if path else data


def folder_name(data: str) -> str:
    """What the folder of results is called by default."""
    kind, _, path = data.partition(":")
    return Path(path).expanduser().resolve().name if path else kind


def resolve(trial: TrialConfig, *, elsewhere: bool = False) -> TrialConfig:
    """The same with whole paths and a device that exists, so that it has one key from wherever it is run.

    Raises:
        ValueError: As `resolve_device`.
    """
    return dataclasses.replace(
        trial,
        data=resolve_data(trial.data),
        data_dir=None if trial.data_dir is None else str(Path(trial.data_dir).resolve()),
        device=resolve_device(trial.device, elsewhere=elsewhere),
    )


def resolve_device(device: str, *, elsewhere: bool = False) -> str:
    """`auto` by what this machine has; a GPU that is asked for by name may be on another machine.

    Raises:
        ValueError: The name is unknown, or this machine, which is meant, has no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be one of auto, cpu, cuda, got {device!r}")
    if device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
