"""The options of `compare`: the grid, and the selection on the validation split."""

from collections.abc import Sequence
from dataclasses import dataclass

from varloss_bench.config import TrialConfig
from varloss_bench.grid import Axes, grid
from varloss_bench.measures import SELECTABLE
from varloss_bench.methods import trained_methods
from varloss_bench.options import Option, Range, documented, setting

_COMPARED, _SELECTION = "What is compared", "Choosing on validation"
# `augment.epoch_seed` leaves room for epochs and blocks below torch's 2^63.
SEEDS = Range(least=0, below=10**10)


@documented
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid: each method at each batch size, temperature and weight, all with the same seeds."""

    methods: Sequence[str] = setting(
        ("simclr", "moco"), Option("Methods, comma-separated.", _COMPARED, name="method", choices=trained_methods)
    )
    batch_sizes: Sequence[int] = setting(
        (16,), Option("Batch sizes over all ranks, comma-separated.", _COMPARED, name="batch_size")
    )
    weights: Sequence[float] = setting(
        (0, 3),
        Option(
            "VRN weights, comma-separated; 0 is always included. Typical: 1 to 10 for a thousand images, 30 for fifty thousand.",
            _COMPARED,
            name="weight",
        ),
    )
    temperatures: Sequence[float] = setting(
        (0.5,), Option("Temperatures, comma-separated.", _COMPARED, name="temperature")
    )
    control_temperatures: Sequence[float] = setting(
        (0.2,),
        Option(
            "Temperatures that run at weight 0 only, comma-separated: a lower temperature alone gives part of VRN's effect. "
            "Use an empty string for none.",
            _COMPARED,
            name="control_temperature",
            may_be_empty=True,
        ),
    )
    seeds: int = setting(
        4, Option("Number of paired seeds. An interval needs 2, a few-label gain needs 4 to 10.", _COMPARED)
    )
    interval: bool = setting(
        True, Option("Require intervals. --no-interval accepts a single seed, which settles nothing.", _COMPARED)
    )
    first_seed: int = setting(0, Option("First seed.", _COMPARED, within=SEEDS))
    effect: float = setting(
        0.5,
        Option(
            "Accuracy difference, in points, that would matter to you. Where nothing is settled, the table says how many seeds "
            "it needs.",
            _COMPARED,
            within=Range(above=0),
        ),
    )

    @property
    def test_seeds(self) -> range:
        """The seeds of the comparison."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def trials(self, base: TrialConfig) -> list[TrialConfig]:
        """All trials; `base` has the options that they share."""
        return grid(base, **self.axes, seeds=self.test_seeds)

    @property
    def axes(self) -> Axes:
        """The arms."""
        return Axes(
            methods=self.methods,
            batch_sizes=self.batch_sizes,
            weights=self.weights,
            temperatures=self.temperatures,
            control_temperatures=self.control_temperatures,
        )


@documented
@dataclass(frozen=True, kw_only=True)
class Selection:
    """How temperature and weight are chosen on the validation split, before the test split is read."""

    by: str = setting(
        "few_label_probe",
        Option("Metric that is maximised.", _SELECTION, name="select_by", choices=SELECTABLE),
    )
    seeds: int = setting(
        3,
        Option(
            "Number of validation seeds. A score is the mean over them.",
            _SELECTION,
            name="select_seeds",
            within=Range(least=1),
        ),
    )
    first_seed: int = setting(
        10000,
        Option(
            "First validation seed; must not overlap the test seeds (--first-seed). Results in the folder are reused, "
            "also those of `--evaluate-on val`.",
            _SELECTION,
            name="select_first_seed",
            within=SEEDS,
        ),
    )
