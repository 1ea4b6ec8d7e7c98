"""How commands resolve options: names of data sets, devices."""

import dataclasses
from pathlib import Path

import torch

from varloss_bench.config import TrialConfig


def resolve_data(data: str) -> str:
    """The data set's name; the path of a folder is made absolute, so its trials have the same key in every working directory."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if path else data


def folder_name(data: str) -> str:
    """The default name of the folder of results."""
    kind, _, path = data.partition(":")
    return Path(path).expanduser().resolve().name if path else kind


def resolve(trial: TrialConfig, *, elsewhere: bool = False) -> TrialConfig:
    """The same trial with absolute paths and a resolved device, so it has the same key in every working directory.

    Raises:
        ValueError: As in `resolve_device`.
    """
    return dataclasses.replace(
        trial,
        data=resolve_data(trial.data),
        data_dir=None if trial.data_dir is None else str(Path(trial.data_dir).resolve()),
        device=resolve_device(trial.device, elsewhere=elsewhere),
    )


def resolve_device(device: str, *, elsewhere: bool = False) -> str:
    """The device for `auto` on this machine; `cuda` may also refer to another machine.

    Raises:
        ValueError: The name is unknown, or the trial runs on this machine, which has no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be one of auto, cpu, cuda, got {device!r}")
    if device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA device, but torch finds none")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
