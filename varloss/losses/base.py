"""What every two-view module does: gather, call its function, print, and keep a temperature that may be learned."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from varloss import distributed
from varloss._core import checks
from varloss._core.pairs import Gathered


class TwoViewLoss(nn.Module):
    """A subclass names its function and the attributes it passes on; ``_shown`` are those to print, where they differ."""

    _function: Callable[..., Tensor]
    _options: tuple[str, ...] = ()
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
        shown = (*(self._shown or self._options), "gather_distributed")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._value(z0, z1, gathered=self._gathered(z0, z1))

    def _value(self, z0: Tensor, z1: Tensor, **more: Any) -> Tensor:
        for name in self._options:
            more[name] = getattr(self, name)
        return self._function(z0, z1, **more)

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
        self._fixed_temperature: float | Tensor | None = None if learnable_temperature else temperature
        # None keeps the name out of parameters() and state_dict().
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        """The number given, or, where it is learned, a 0-dim tensor with gradient."""
        return self.log_temperature.exp() if self.log_temperature is not None else cast(float, self._fixed_temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.log_temperature is not None:
            raise AttributeError("the temperature is learned: change the parameter log_temperature instead.")
        checks.temperature(value)
        self._fixed_temperature = value

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        log = self.log_temperature
        shown = self.temperature if log is None else f"{log.exp().item():.4g}, learnable_temperature=True"
        return f"temperature={shown}, {super().extra_repr()}"
