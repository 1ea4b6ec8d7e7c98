"""What a training leaves, whichever framework did it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from varloss_bench.data.types import Split
from varloss_bench.training.modules import ContrastiveModule
from varloss_bench.training.solo.net import SoloEncoder


@dataclass(frozen=True)
class Trained:
    """A trained net and what is stored of its training.

    Attributes:
        encoder: The net, with the parts `backbone` and `head`.
        split: The training split where the net is: a second copy of large images would be too much.
        record: What is stored of the training; plain values.
        speed: Measures how fast the training was, on numbers of its own; None where that cannot be measured.
    """

    encoder: ContrastiveModule | SoloEncoder
    split: Split
    record: dict[str, Any]
    speed: Callable[[], dict[str, float]] | None = None
