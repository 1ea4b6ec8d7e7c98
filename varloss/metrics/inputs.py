"""Rows as the metrics take them: checked, in float64 where the device has it, of unit length, with autocast off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from varloss._core import checks, numerics

_Function = TypeVar("_Function", bound=Callable[..., Any])


def without_autocast(function: _Function) -> _Function:
    """Run ``function`` with autocast off on the device of its first tensor: wide stays wide."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is None:
            given = ", ".join(type(value).__name__ for value in (*args, *kwargs.values())) or "nothing"
            raise TypeError(f"{function.__name__} takes tensors, got {given}")
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def wide_rows(minimum: int, why: str, **named: Tensor) -> list[Tensor]:
    """Matrices of equal width and at least ``minimum`` rows, checked, in the widest dtype."""
    checks.embeddings(**named)
    for name, z in named.items():
        if z.shape[0] < minimum:
            raise ValueError(f"{why} needs at least {minimum} rows; {name} has {z.shape[0]}.")
    return [numerics.widest(numerics.wide(z)) for z in named.values()]


def unit_rows(z: Tensor, minimum: int, why: str) -> Tensor:
    """Checked rows of unit length in the widest dtype."""
    return numerics.unit(wide_rows(minimum, why, z=z)[0])


def unit_views(z0: Tensor, z1: Tensor, minimum: int, why: str) -> tuple[Tensor, Tensor]:
    """Both views' checked rows of unit length in the widest dtype."""
    u, v = wide_rows(minimum, why, z0=z0, z1=z1)
    checks.views(u, v)
    return numerics.unit(u), numerics.unit(v)
