"""What `compare` compares, and how it chooses first."""

from collections.abc import Sequence
from dataclasses import dataclass

from varloss_bench.config import TrialConfig
from varloss_bench.grid import grid
from varloss_bench.measures import SELECTABLE
from varloss_bench.methods import trained_methods
from varloss_bench.options import Option, Range, documented, setting

_COMPARED, _SELECTION = "What is compared", "Choosing on validation"
# `augment.epoch_seed` leaves room for epochs and blocks below torch's 2^63.
SEEDS = Range(least=0, below=10**10)


@documented
@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is compared: each method at each batch size, temperature and weight, with the same seeds for all of them."""

    methods: Sequence[str] = setting(
        ("simclr", "moco"), Option("Methods, comma-separated.", _COMPARED, name="method", choices=trained_methods)
    )
    batch_sizes: Sequence[int] = setting(
        (16,), Option("Batch sizes over all ranks, comma-separated.", _COMPARED, name="batch_size")
    )
    weights: Sequence[float] = setting(
        (0, 3),
        Option(
            "VRN weights, comma-separated; 0 is always among them. About 1 to 10 for a thousand images, 30 for fifty thousand.",
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
            "Temperatures that run at weight 0 only, comma-separated: a lower temperature alone gives part of what VRN gives. "
            "An empty string for none.",
            _COMPARED,
            name="control_temperature",
            may_be_empty=True,
        ),
    )
    seeds: int = setting(4, Option("Paired seeds. An interval needs 2, a few-label gain needs 4 to 10.", _COMPARED))
    interval: bool = setting(
        True, Option("Require intervals. --no-interval accepts a single seed, which settles nothing.", _COMPARED)
    )
    first_seed: int = setting(0, Option("First of the seeds.", _COMPARED, within=SEEDS))
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
        """The seeds that the arms are compared with."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def trials(self, base: TrialConfig) -> list[TrialConfig]:
        """All trials; `base` is what they share."""
        return grid(
            base,
            methods=self.methods,
            batch_sizes=self.batch_sizes,
            weights=self.weights,
            temperatures=self.temperatures,
            control_temperatures=self.control_temperatures,
            seeds=self.test_seeds,
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
        Option("Validation seeds that a score is the mean of.", _SELECTION, name="select_seeds", within=Range(least=1)),
    )
    first_seed: int = setting(
        10000,
        Option(
            "First validation seed; must not overlap the test seeds (--first-seed). Results that the folder holds are used, "
            "also those of `--evaluate-on val`.",
            _SELECTION,
            name="select_first_seed",
            within=SEEDS,
        ),
    )
