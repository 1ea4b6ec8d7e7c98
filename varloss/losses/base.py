"""What every module does: a temperature that may be learned, gathering, printing."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from varloss import distributed
from varloss._core import checks


class Tempered(nn.Module):
    """A module with a ``temperature``: a plain attribute, or exp of the parameter ``log_temperature`` where it is learned."""

    def _start_temperature(self, temperature: float, learnable: bool) -> None:
        checks.temperature(temperature)
        if learnable and temperature <= 0:
            raise ValueError(
                f"a learnable temperature is exp(log_temperature) and must start above 0; got {temperature}."
            )
        self._fixed_temperature = None if learnable else temperature
        # None keeps the name out of parameters() and state_dict().
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable else None

    @property
    def temperature(self) -> float | Tensor:
        """The number given, or, where it is learned, a 0-dim tensor with gradient."""
        if self.log_temperature is not None:
            return self.log_temperature.exp()
        return cast(float, self._fixed_temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.log_temperature is not None:
            raise AttributeError("the temperature is learned: change the parameter log_temperature instead.")
        checks.temperature(value)
        self._fixed_temperature = value

    def _temperature_repr(self) -> str:
        if self.log_temperature is None:
            return f"temperature={self._fixed_temperature}"
        return f"temperature={self.log_temperature.exp().item():.4g}, learnable_temperature=True"


class Pairwise(nn.Module):
    """Gathering and printing, for modules whose hyper-parameters are attributes named in ``_shown``."""

    _shown: tuple[str, ...] = ()

    def __init__(self, gather_distributed: bool) -> None:
        super().__init__()
        if gather_distributed:
            distributed.require_available()
        self.gather_distributed = gather_distributed

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*self._shown, "gather_distributed"))

    def _call(self, function: Any, z0: Tensor, z1: Tensor, **options: Any) -> Tensor:
        keys, offset, share = distributed.gather_two_views(z0, z1, self.gather_distributed)
        loss: Tensor = function(z0, z1, keys=keys, offset=offset, **options)
        return distributed.weighed(loss, share)
