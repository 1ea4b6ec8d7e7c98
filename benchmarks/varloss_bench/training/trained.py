"""The result of a training with any framework."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from varloss_bench.data.types import Split
from varloss_bench.training.modules import ContrastiveModule
from varloss_bench.training.solo.net import SoloEncoder


@dataclass(frozen=True)
class Trained:
    """A trained net and the record of its training.

    Attributes:
        encoder: The net, with the parts `backbone` and `head`.
        split: The training split on the net's device; it is passed on because a second copy may not fit into memory.
        record: Plain values about the training, for the trial's record.
        speed: Measures the speed of the training with separate random numbers; None if it cannot be measured.
    """

    encoder: ContrastiveModule | SoloEncoder
    split: Split
    record: dict[str, Any]
    speed: Callable[[], dict[str, float]] | None = None
