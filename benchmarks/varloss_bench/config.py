"""The definition of a trial: its full configuration, the hash that names it, and its arm."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varloss_bench.datasets import listed
from varloss_bench.methods import (
    METHODS,
    NEGATIVES,
    display_name,
    methods_with_negatives,
    trained_methods,
)
from varloss_bench.options import Option, Range, documented, setting

# Increase this whenever a change of the harness changes the numbers of a configuration (augmentation, evaluation, schedule,
# ...). It is hashed into every trial's key, so old trials run again and old results are not mixed with new ones.
PROTOCOL = 2

LR_RULES = ("linear", "sqrt", "constant")
# The frameworks that train (this package with lightly's heads, or solo-learn), each with its default backbone.
FRAMEWORKS = {"lightly": "small", "solo": "resnet18"}
EVALUATION_SPLITS = ("test", "val")
VRN_AGAINST = ("queries", "queue")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
# Lightning's strategies that keep all parameters on every rank (the evaluation reads them) and launch no processes.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")

# An embedding has collapsed if its held-out negatives are this similar on average. Its small variance is not an improvement.
COLLAPSE_MEAN = 0.9

# Number of epochs with separate augmentations (`augment.epoch_seed`); the next epoch number belongs to the evaluation.
MAX_EPOCHS = 9999


_ARM, _DATA, _TRAINING, _RUNNING = "What is trained", "Data", "Training", "Running"
_FRACTION = Range(least=0, below=1)
_COUNT = Range(least=1)


@documented
@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that determines a trial's numbers. Two equal configurations give equal numbers on one CPU.

    A field that is marked `later` was added within a protocol; its default is the behaviour of earlier trials.

    `seed` determines split, labelled subsets, initial weights, order and augmentations. Trials of one seed therefore differ only
    in the arm, and the spread over seeds includes the spread over splits. `raw_pixels_side` is the side in pixels that images
    are averaged to for the raw-pixels row; None keeps their size. `untrained` sets it.
    """

    data: str = setting(
        "digits",
        Option(
            lambda: f"Data set: {listed()}.",
            _DATA,
        ),
    )
    data_dir: str | None = setting(
        None,
        Option(
            "Folder that holds the files or that they are downloaded to. Default: Debian's folder for Fashion-MNIST where it "
            "exists, else ~/.cache/varloss-bench.",
            _DATA,
            metavar="PATH",
        ),
    )
    method: str = setting("simclr", Option("Method.", _ARM, choices=trained_methods))
    seed: int = 0
    backbone: str = setting(
        "small",
        Option(
            "Backbone: small, or any timm model (untrained, adapted to small images). solo-learn takes resnet18 or resnet50.",
            _TRAINING,
            default_by=("framework", FRAMEWORKS),
        ),
    )
    batch_size: int = setting(16, Option("Batch size over all ranks. Run one search per batch size.", _ARM))
    temperature: float = setting(0.5, Option("Temperature of the loss.", _ARM, within=Range(above=0)))
    weight: float = setting(0.0, Option("Weight of VRN; 0 switches VRN off.", _ARM, within=Range(least=0)))
    epochs: int = setting(20, Option("Epochs of every trial.", _TRAINING, within=_COUNT, excludes="steps"))
    base_lr: float = setting(0.15, Option("Learning rate at batch size 256.", _TRAINING, within=Range(above=0)))
    lr_rule: str = setting(
        "linear",
        Option(
            "Learning rate at batch size B: base_lr * B/256 (linear), base_lr * sqrt(B/256) (sqrt) or base_lr (constant).",
            _TRAINING,
            choices=LR_RULES,
        ),
    )
    warmup: float = setting(
        0.1,
        Option(
            "Fraction of the steps over which the learning rate rises linearly from 0.", _TRAINING, within=_FRACTION
        ),
    )
    weight_warmup: float = setting(
        0.0,
        Option(
            "Fraction of the steps over which the VRN weight rises linearly from 0; 0.5 helps large batches with few steps.",
            _TRAINING,
            within=Range(least=0, most=1),
        ),
    )
    weight_decay: float = setting(
        1e-4, Option("Weight decay of SGD, for weights with two axes or more.", _TRAINING, within=Range(least=0))
    )
    fused: bool = setting(
        True,
        Option(
            "Both views in one forward pass (BatchNorm sees 2B rows), or one pass each. solo-learn only supports one pass each.",
            _TRAINING,
            switch=("fused", "split"),
            default_by=("framework", {"lightly": True, "solo": False}),
        ),
    )
    queue_size: int = setting(
        0,
        Option(
            "Length of MoCo's queue; 0 is the largest power of two up to 4096 and half of the training samples.",
            _TRAINING,
            within=Range(least=0),
        ),
    )
    key_momentum: float = setting(0.99, Option("Momentum of MoCo's key encoder.", _TRAINING, within=_FRACTION))
    evaluate_on: str = setting(
        "test",
        Option(
            "Split for the metrics, which are computed once after the last epoch; val is for choosing weight and temperature.",
            _DATA,
            choices=EVALUATION_SPLITS,
        ),
    )
    device: str = setting(
        "cpu",
        Option("Device; auto is cuda where there is one.", _RUNNING, choices=("auto", "cpu", "cuda"), asked="auto"),
    )
    steps: int = setting(
        0,
        Option(
            "Equal optimiser steps for all trials instead of equal epochs; small batches then see less data.",
            _TRAINING,
            within=_COUNT,
            excludes="epochs",
        ),
        later=True,
    )
    negatives: str | None = setting(
        None,
        Option(
            f"Views whose rows are negatives, for {', '.join(methods_with_negatives())}. Default: the method's own, both.",
            _TRAINING,
            choices=NEGATIVES,
        ),
        later=True,
    )
    head_batch_norm: bool | None = setting(
        None,
        Option(
            "BatchNorm in the projection head. Default: the method's own; all methods except MoCo have it.", _TRAINING
        ),
        later=True,
    )
    vrn_against: str = setting(
        "queries",
        Option(
            "What VRN pairs each view with: the other view by the trained encoder, or, for MoCo, the queue, which carries no "
            "gradient (1 of 4 such runs collapsed).",
            _TRAINING,
            choices=VRN_AGAINST,
        ),
        later=True,
    )
    precision: str = setting(
        "32",
        Option(
            "Precision of the networks, by Lightning's name; losses and evaluation always compute in fp32.",
            _TRAINING,
            choices=PRECISIONS,
        ),
        later=True,
    )
    devices: int = setting(
        1,
        Option(
            "Processes per machine that share the batch of each trial, one per GPU, or on the CPU.",
            _RUNNING,
            within=_COUNT,
        ),
        later=True,
    )
    nodes: int = setting(
        1,
        Option("Machines with --devices processes each; needs --cluster slurm.", _RUNNING, within=_COUNT),
        later=True,
    )
    strategy: str = setting(
        "auto", Option("Lightning's strategy for several processes.", _RUNNING, choices=STRATEGIES), later=True
    )
    framework: str = setting(
        "lightly",
        Option(
            "What trains. For solo, SOLO_LEARN_ROOT names an unmodified checkout of solo-learn and SOLO_LEARN_PYTHON the "
            "Python of its environment.",
            _TRAINING,
            choices=tuple(FRAMEWORKS),
        ),
        later=True,
    )
    num_train: int | None = setting(
        None, Option("Training samples. Default: the data set's own number.", _DATA), later=True
    )
    num_val: int | None = setting(
        None, Option("Validation samples. Default: the data set's own number.", _DATA), later=True
    )
    num_test: int | None = setting(None, Option("Test samples. Default: the data set's own number.", _DATA), later=True)
    official_test: bool = setting(
        False,
        Option(
            "Test on the split published with the data, or on a part of its training images that the seed draws.",
            _DATA,
            switch=("official-test", "drawn-test"),
        ),
        later=True,
    )
    image_size: int | None = setting(
        None, Option("Side in pixels of the images of an imagefolder. Default: 32.", _DATA), later=True
    )
    hidden_dim: int = setting(
        256, Option("Width of the projection head's hidden layer.", _TRAINING, within=_COUNT), later=True
    )
    output_dim: int = setting(64, Option("Width of the projections.", _TRAINING, within=Range(least=2)), later=True)
    raw_pixels_side: int | None = dataclasses.field(default=None, metadata={"later": True})

    @property
    def equal(self) -> str:
        """The unit of the length that all trials of a sweep share: `"epochs"` or `"steps"`."""
        return "steps" if self.steps else "epochs"

    def passes(self, num_train: int) -> int:
        """Number of epochs that are started, also if the length is given in steps."""
        return math.ceil(self.steps / (num_train // self.batch_size)) if self.steps else self.epochs

    def total_steps(self, num_train: int) -> int:
        """Number of optimiser steps: `steps` if it is set, otherwise the steps of the epochs."""
        return self.steps or num_train // self.batch_size * self.epochs

    def device_of(self, rank: int) -> str:
        """The device of a rank, by torch's name."""
        return f"cuda:{rank % self.devices}" if self.device == "cuda" else self.device

    @property
    def ranks(self) -> int:
        """Processes that share each batch."""
        return self.devices * self.nodes

    @property
    def has_head_batch_norm(self) -> bool:
        """Whether the projection head has BatchNorm, by the option or by the method's default."""
        return METHODS[self.method].head_batch_norm if self.head_batch_norm is None else self.head_batch_norm

    def canonical(self) -> "TrialConfig":
        """The same trial with options that have no effect set to their defaults, so that equal trials have one key."""
        changes: dict[str, Any] = {}
        method = METHODS[self.method]
        if self.negatives == method.negatives and method.negatives_can_be_chosen:
            changes["negatives"] = None
        if self.head_batch_norm == method.head_batch_norm and method.trained:
            changes["head_batch_norm"] = None
        if not self.weight:
            changes["vrn_against"] = "queries"
        if self.ranks == 1:
            changes["strategy"] = "auto"
        return dataclasses.replace(self, **changes)

    @property
    def arm(self) -> "Arm":
        """The trial without its seed; arms are what is compared."""
        return Arm(self.method, self.batch_size, self.temperature, self.weight)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        ratio = self.batch_size / 256
        return self.base_lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "constant": 1.0}[self.lr_rule]

    def key(self, protocol: int = PROTOCOL) -> str:
        """Name of the trial: 16 hexadecimal digits of the SHA-256 of the canonical JSON of everything above.

        A field that was added later (`later`) only counts if it is not at its default, so older trials keep their names.
        With an older `protocol` it is the name in records of that protocol.
        """
        decisive = {name: value for name, value in self.to_dict().items() if value != _added_later().get(name, ...)}
        canonical = json.dumps({"protocol": protocol, **decisive}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def file_stem(self) -> str:
        """A readable name, made unique by the key."""
        return f"{self.arm.slug()}-s{self.seed}-{self.key()}"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, as stored."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """The inverse of `to_dict`, also for older records; unknown or missing names raise `TypeError`."""
        missing = {field.name for field in dataclasses.fields(cls)} - set(values) - set(_added_later())
        if missing:
            raise TypeError(f"trial configuration lacks {sorted(missing)}")
        return cls(**values)


def _added_later() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(TrialConfig) if "later" in field.metadata}


@dataclass(frozen=True, order=True)
class Arm:
    """One row of the table: the trials that are averaged over seeds."""

    method: str
    batch_size: int
    temperature: float
    weight: float

    @property
    def trained(self) -> bool:
        """Whether the row comes from training."""
        return self.method in METHODS and METHODS[self.method].trained

    def slug(self) -> str:
        """The arm's name in file names."""
        if not self.trained:
            return self.method
        return f"{self.method}-b{self.batch_size}-t{self.temperature:g}-w{self.weight:g}"

    def group_label(self) -> str:
        """Method and batch size, within which arms are compared: `SimCLR, B=16`."""
        return f"{display_name(self.method)}, B={self.batch_size}" if self.trained else "without training"

    def short_label(self) -> str:
        """Label beside the name of its group: `t=0.5 + VRN 3`, or `t=0.5` without VRN."""
        if not self.trained:
            return display_name(self.method)
        return f"t={self.temperature:g}" + (f" + VRN {self.weight:g}" if self.weight else "")

    def label(self) -> str:
        """Complete label: `SimCLR, B=16, t=0.5 + VRN 3`."""
        return f"{self.group_label()}, {self.short_label()}" if self.trained else self.short_label()


# Fields that differ between the trials of a sweep.
ARM_AND_SEED = frozenset({field.name for field in dataclasses.fields(Arm)} | {"seed"})


def queue_length(asked: int, num_samples: int) -> int:
    """Length of MoCo's queue: `asked`, or for 0 the largest power of two up to n/2 and 4096.

    Raises:
        ValueError: `asked` is larger than n/2, so the queue would hold the anchors' own samples.
    """
    if asked > num_samples // 2:
        raise ValueError(f"queue_size must be at most half of the {num_samples} training samples, got {asked}")
    return asked or min(4096, 2 ** ((num_samples // 2).bit_length() - 1))
