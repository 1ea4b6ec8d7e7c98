"""The table of methods, with one row each. The rest of the harness reads everything about a method here.

The module imports nothing heavy, so `--help` is fast. Code is named as `"package.module:name"`; `load` imports it when a trial
needs it.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NEGATIVES = ("cross", "within", "both")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row.

    Attributes:
        name: Name on the command line and in records.
        display_name: Name in figures and tables.
        module: The `LightningModule` that trains it, called with (trial, backbone, number of training samples). None for a row
            without training.
        loss: For `training.modules:TwoViewModule`: makes the loss of two views' projections, called with `temperature`,
            `gather_distributed`, `negatives` if the loss has this argument, and `loss_options`.
        loss_options: Its other arguments.
        features: For a row without training: called with (trial, source, training split, held-out split), returns the features
            of both splits.
        own_backbone: For a row without training: whether its features come from the trial's backbone.
        negatives: The default negatives: one of `NEGATIVES`, `"queue"`, or None if the loss has no such argument.
        negatives_fixed: Why a trial cannot choose other negatives; empty if it can.
        head_batch_norm: Whether its projection head has BatchNorm by default.
        momentum_queue: Whether it has a queue of keys from a momentum encoder. A trial's `queue_size`, `key_momentum` and
            `vrn_against="queue"` are for such methods.
        solo: Its name in solo-learn; None if solo-learn cannot train it.
        cost: Time of an epoch, relative to SimCLR's. Only the estimate of the time left uses it.
    """

    name: str
    display_name: str
    module: str | None = None
    loss: str | None = None
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    features: str | None = None
    own_backbone: bool = False
    negatives: str | None = None
    negatives_fixed: str = ""
    head_batch_norm: bool = False
    momentum_queue: bool = False
    solo: str | None = None
    cost: float = 1.0

    @property
    def trained(self) -> bool:
        """Whether the row comes from training."""
        return self.module is not None

    @property
    def negatives_can_be_chosen(self) -> bool:
        """Whether a trial can choose the `negatives` of this method."""
        return self.negatives is not None and not self.negatives_fixed


_TWO_VIEWS = "varloss_bench.training.modules:TwoViewModule"

_ROWS = (
    Method(
        name="simclr",
        display_name="SimCLR",
        module=_TWO_VIEWS,
        loss="varloss:NTXentLoss",
        negatives="both",
        head_batch_norm=True,
        solo="simclr",
    ),
    Method(
        name="dcl",
        display_name="DCL",
        module=_TWO_VIEWS,
        loss="varloss:NTXentLoss",
        loss_options={"decoupled": True},
        negatives="both",
        head_batch_norm=True,
        solo="dcl",  # varloss's plugin registers it there, like dhel
    ),
    Method(
        name="dhel",
        display_name="DHEL",
        module=_TWO_VIEWS,
        loss="varloss:NTXentLoss",
        loss_options={"decoupled": True},
        negatives="within",
        negatives_fixed="within-view negatives define it",
        head_batch_norm=True,
        solo="dhel",
    ),
    Method(
        name="moco",
        display_name="MoCo v2",
        module="varloss_bench.training.modules:MoCoModule",
        negatives="queue",
        negatives_fixed="its negatives come from the queue",
        momentum_queue=True,
        solo="mocov2plus",
        cost=1.4,  # it also encodes the keys
    ),
    Method(
        name="raw-pixels",
        display_name="raw-pixels",
        features="varloss_bench.training.untrained:raw_pixels",
        cost=0.05,
    ),
    Method(
        name="random-init",
        display_name="random-init",
        features="varloss_bench.training.untrained:random_init",
        own_backbone=True,
        cost=0.05,
    ),
)
METHODS = {row.name: row for row in _ROWS}


def trained_methods() -> tuple[str, ...]:
    """Names of the methods that are trained."""
    return tuple(name for name, row in METHODS.items() if row.trained)


def untrained_methods() -> tuple[str, ...]:
    """Names of the rows without training that every sweep has."""
    return tuple(name for name, row in METHODS.items() if not row.trained)


def methods_with_negatives() -> tuple[str, ...]:
    """Names of the methods whose negatives a trial can choose."""
    return tuple(name for name, row in METHODS.items() if row.negatives_can_be_chosen)


def methods_with_queue() -> tuple[str, ...]:
    """Names of the methods that have a queue."""
    return tuple(name for name, row in METHODS.items() if row.momentum_queue)


def display_name(name: str) -> str:
    """Name in figures and tables; `method` itself if it is unknown, as in records of other versions."""
    return METHODS[name].display_name if name in METHODS else name


def load(place: str) -> Any:
    """Import the object `"package.module:name"`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
