"""The options of `tune`."""

from collections.abc import Sequence
from dataclasses import dataclass

from varloss_bench.compare.options import SEEDS
from varloss_bench.measures import SELECTABLE
from varloss_bench.options import Option, Range, documented, setting

_PANEL = "Search"
# Rungs only score features.
METRICS = tuple(metric for metric in SELECTABLE if metric != "projection_knn")

# The search sets temperature, weight, seed and split; rungs are epochs; one process on this machine trains.
NOT_TUNED = frozenset(
    {"temperature", "weight", "seed", "evaluate_on", "steps", "framework", "devices", "nodes", "strategy"}
)


@documented
@dataclass(frozen=True, kw_only=True)
class Search:
    """The search space, the budget and the scores."""

    weight_range: Sequence[float] = setting((0.3, 30), Option("Lowest and highest VRN weight.", _PANEL))
    temperature_range: Sequence[float] = setting((0.05, 1), Option("Lowest and highest temperature.", _PANEL))
    budget: int = setting(
        12,
        Option(
            "Epochs of each of the two searches, in full trainings. Both have the same budget, so the comparison is fair.",
            _PANEL,
        ),
    )
    seeds: int = setting(
        2,
        Option("Number of validation seeds. A candidate's score is the mean over them.", _PANEL, within=Range(least=1)),
    )
    first_seed: int = setting(100, Option("First validation seed.", _PANEL, within=SEEDS))
    rungs: Sequence[int] = setting(
        (),
        Option(
            "Epochs after which the worse half stops, comma-separated. Default: a quarter and half of --epochs.",
            _PANEL,
            may_be_empty=True,
        ),
    )
    metric: str = setting("few_label_probe", Option("Metric that is maximised.", _PANEL, choices=METRICS))
    search_seed: int = setting(0, Option("Random seed of the Optuna sampler.", _PANEL))
