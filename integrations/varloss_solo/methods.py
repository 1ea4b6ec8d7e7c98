"""solo-learn's methods: the tensors that VRN can use, or the reason why there are none.

``z``, ``p``, ``q`` and ``k`` are the keys of solo-learn's own output dictionaries.
"""

from __future__ import annotations

from dataclasses import dataclass

from varloss.functional import Pairs


@dataclass(frozen=True)
class Method:
    """How VRN applies to one method.

    Attributes:
        views: output of ``forward`` whose two views form pairs; like the next ones, empty if there is none.
        keys: output of ``momentum_forward``; the pairs are query and stop-gradient key.
        queue: whether the method keeps a queue of past keys.
        targets: pairs of a predictor's output with the stop-gradient output of this name.
        default: the pairs that a bare flag uses; None if the user must name the pairs.
        labels: whether images of the same class are not negatives; n is then the number of classes.
        refusal: the reason why there are no pairs; None if there are some.
    """

    views: str = ""
    keys: str = ""
    queue: bool = False
    targets: str = ""
    default: str | None = None
    labels: bool = False
    refusal: str | None = None

    @property
    def offered(self) -> tuple[str, ...]:
        """The values ``varloss.between`` may take."""
        offers = {
            "views": bool(self.views) and not self.targets,
            "keys": bool(self.keys),
            "queue": self.queue,
            "targets": bool(self.targets),
        }
        return tuple(name for name, offered in offers.items() if offered)

    def pair(self, between: str) -> str:
        """The pair in words, for the start-up line."""
        return {
            "views": f"{self.views}1·{self.views}2",
            "keys": f"{self.views}·sg({self.keys}), momentum keys",
            "queue": f"{self.views}·queue",
            "targets": f"{self.views}·sg({self.targets})",
        }[between]


@dataclass(frozen=True)
class Objective:
    """A member of the NT-Xent family that replaces SimCLR's loss."""

    name: str
    decoupled: bool
    negatives: Pairs
    free: bool
    """Whether ``varloss.negatives`` may change the negatives."""


_CLUSTERS = "it compares scores of prototypes, not similarities of samples, so no pair of samples is a negative"

METHODS = {
    "simclr": Method(views="z", default="views"),
    "supcon": Method(views="z", default="views", labels=True),
    "mocov2plus": Method(views="z", keys="z", queue=True, default="views"),
    "mocov3": Method(views="q", keys="k", default="views"),
    "nnclr": Method(views="z", default="views"),
    "byol": Method(views="p"),
    "nnbyol": Method(views="p"),
    "simsiam": Method(views="p", targets="z"),
    "nnsiam": Method(views="p", targets="z"),
    "barlow_twins": Method(views="z"),
    "vicreg": Method(views="z"),
    "vibcreg": Method(views="z"),
    "ressl": Method(
        refusal="its soft targets keep the similarities to the queue apart; one target for all undoes them"
    ),
    "wmse": Method(refusal="it whitens the projections of the batch, which already fixes their second moments"),
    "all4one": Method(refusal="it contrasts summaries of neighbourhoods, not the projections of two views"),
    "swav": Method(refusal=_CLUSTERS),
    "deepclusterv2": Method(refusal=_CLUSTERS),
    "dino": Method(refusal=_CLUSTERS),
    "mae": Method(refusal="it reconstructs pixels and has no projections"),
}

OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("nt_xent", decoupled=False, negatives="both", free=True),
        Objective("dcl", decoupled=True, negatives="both", free=True),
        Objective("dhel", decoupled=True, negatives="within", free=False),
    )
}
HOST = "simclr"
"""The method that carries the objectives: its network, its configuration keys and its checkpoints."""
