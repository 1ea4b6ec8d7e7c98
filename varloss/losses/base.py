"""What every two-view module does: gather, call its function, print, and keep a temperature that may be learned."""

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from varloss import distributed
from varloss._core import checks
from varloss._core.pairs import Gathered
from varloss._core.ranks import HeldGroup, Parts, ProcessGroup

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


_CALL = nn.Module.__call__


def calls_only(part: Any, forward: Callable[..., Tensor]) -> bool:
    """Whether calling ``part`` runs this forward of a class and nothing else, so that it can be computed in another way.

    A class or an instance may have a forward or a call of its own, and any module may have hooks, or all of them.
    """
    return (
        isinstance(part, nn.Module)
        and type(part).forward is forward
        and type(part).__call__ is _CALL
        and not {"forward", "_call_impl", "_compiled_call_impl"} & vars(part).keys()
        and not any(getattr(part, hooks) or getattr(module, f"_global{hooks}") for hooks in _HOOKS)
    )


def shown(value: float | Tensor) -> str:
    """A number as printed; the meta device has none."""
    if isinstance(value, Tensor):
        return "?" if value.is_meta else f"{value.item():.4g}"
    return str(value)


class NumericOptions(nn.Module):
    """A module that takes no parameter in the place of a number: torch would register one that no option looks at."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Parameter) and (
            isinstance(getattr(type(self), name, None), property) or isinstance(vars(self).get(name), (int, float))
        ):
            raise TypeError(f"{type(self).__name__}.{name} takes a number, and no nn.Parameter.")
        super().__setattr__(name, value)


class TwoViewLoss(NumericOptions):
    """A subclass names its function and the attributes it passes on; ``_shown`` are those to print, where they differ."""

    _function: Callable[..., Tensor]
    _options: tuple[str, ...] = ()
    _shown: tuple[str, ...] = ()

    def __init__(self, gather_distributed: bool, process_group: ProcessGroup | None) -> None:
        super().__init__()
        if gather_distributed:
            distributed.require_available()
        elif process_group is not None:
            raise ValueError("process_group needs gather_distributed=True; got gather_distributed=False.")
        self.gather_distributed = gather_distributed
        self.process_group = process_group
        self._starts: dict[str, float] = {}

    def _learn(self, name: str, start: float) -> None:
        """Makes ``name`` a parameter. It has shape (1,), since FSDP takes no 0-dim parameters."""
        self._starts[name] = start
        with torch.inference_mode(False):  # a parameter made in inference mode cannot be trained
            self.register_parameter(name, nn.Parameter(torch.full((1,), start)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets what is learned to its start, as torch asks for after ``to_empty`` of a module built on the meta device."""
        for name, start in self._starts.items():
            getattr(self, name).fill_(start)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        with torch.inference_mode(False):  # as in _learn
            for key in (prefix + name for name in self._starts):
                if isinstance(value := state_dict.get(key), Tensor):
                    value = value.clone() if value.is_inference() else value
                    state_dict[key] = value.reshape(1) if value.ndim == 0 else value  # 0-dim in earlier versions
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TwoViewLoss":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        state = {name: value for name, value in vars(self).items() if name != "_compiled_call_impl"}
        with torch.inference_mode(False):  # as in _learn
            vars(twin).update(copy.deepcopy(state, memo))
        return twin

    def is_distributed(self) -> bool:
        """Whether this loss looks at rows of other ranks."""
        return self.gather_distributed and distributed.world_size(self.process_group) > 1

    @property
    def process_group(self) -> ProcessGroup | None:
        """The ranks whose rows count, None for the world. A copy of the module keeps it; a pickle does not."""
        return self._held_group.get()

    @process_group.setter
    def process_group(self, value: ProcessGroup | None) -> None:
        self._held_group = HeldGroup(value)

    def _check_options(self) -> None:
        """Raises for options that were set out of range since: every rank then does, before any waits for the others."""

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        shown = (*(self._shown or self._options), "gather_distributed")
        group = f", process_group={self._held_group}" if self._held_group else ""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown) + group

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._value(z0, z1, gathered=self._gathered(z0, z1))

    def _value(self, z0: Tensor, z1: Tensor, **more: Any) -> Tensor:
        for name in self._options:
            more[name] = getattr(self, name)
        return self._function(z0, z1, **more)

    def _gathered(self, z0: Tensor, z1: Tensor) -> Gathered | None:
        if not self.is_distributed():
            return None
        return distributed.views_of(lambda: self._look(z0, z1), self.process_group)

    def _look(self, z0: Tensor, z1: Tensor) -> Parts:
        self._check_options()
        return distributed.two_views(z0, z1)


class TemperedLoss(TwoViewLoss):
    """A loss with a ``temperature``: a plain attribute, or exp of the parameter ``log_temperature`` where it is learned."""

    def __init__(
        self,
        temperature: float,
        learnable_temperature: bool,
        gather_distributed: bool,
        process_group: ProcessGroup | None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        checks.temperature(temperature)
        if learnable_temperature and temperature <= 0:
            raise ValueError(
                f"a learnable temperature is exp(log_temperature) and must start above 0; got {temperature}."
            )
        self._fixed_temperature: float | Tensor | None = None if learnable_temperature else temperature
        self.log_temperature: nn.Parameter | None
        if learnable_temperature:
            self._learn("log_temperature", math.log(temperature))
        else:
            self.log_temperature = None

    @property
    def temperature(self) -> float | Tensor:
        """The number given, or, where it is learned, a 0-dim tensor with gradient."""
        log = self.log_temperature
        return cast(float, self._fixed_temperature) if log is None else log.exp().squeeze()

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.log_temperature is not None:
            raise AttributeError("the temperature is learned: change the parameter log_temperature instead.")
        checks.temperature(value)
        self._fixed_temperature = value

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        learned = "" if self.log_temperature is None else ", learnable_temperature=True"
        return f"temperature={shown(self.temperature)}{learned}, {super().extra_repr()}"
