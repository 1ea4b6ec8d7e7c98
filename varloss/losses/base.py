"""What every two-view module does: gather, print, and keep a temperature that may be learned."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from varloss import distributed
from varloss._core import checks
from varloss._core.pairs import Gathered


class TwoViewLoss(nn.Module):
    """A subclass defines ``forward(z0, z1)`` as a call of its function, and names in ``_shown`` what is printed."""

    _shown: tuple[str, ...] = ()

    def __init__(self, gather_distributed: bool) -> None:
        super().__init__()
        if gather_distributed:
            distributed.require_available()
        self.gather_distributed = gather_distributed

    def is_distributed(self) -> bool:
        """Whether this loss looks at rows of other ranks."""
        return self.gather_distributed and distributed.world_size() > 1

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*self._shown, "gather_distributed"))

    def _gathered(self, z0: Tensor, z1: Tensor) -> Gathered | None:
        return distributed.gather_views(z0, z1) if self.gather_distributed else None


class TemperedLoss(TwoViewLoss):
    """A loss with a ``temperature``: a plain attribute, or exp of the parameter ``log_temperature`` where it is learned."""

    def __init__(self, temperature: float, learnable_temperature: bool, gather_distributed: bool) -> None:
        super().__init__(gather_distributed)
        checks.temperature(temperature)
        if learnable_temperature and temperature <= 0:
            raise ValueError(
                f"a learnable temperature is exp(log_temperature) and must start above 0; got {temperature}."
            )
        self._fixed_temperature = None if learnable_temperature else temperature
        # None keeps the name out of parameters() and state_dict().
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable_temperature else None

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

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        if self.log_temperature is None:
            temperature = f"temperature={self._fixed_temperature}"
        else:
            temperature = f"temperature={self.log_temperature.exp().item():.4g}, learnable_temperature=True"
        return f"{temperature}, {super().extra_repr()}"
