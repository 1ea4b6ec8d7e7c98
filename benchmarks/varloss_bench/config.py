"""What one trial is: its full configuration, the hash that names it, and the grid of a sweep."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Raise this whenever a change of the harness changes the numbers a configuration leads to (augmentation, evaluation,
# schedule, ...): it is hashed into every trial's key, so old results are then run again instead of silently mixed in.
PROTOCOL = 2

CONTRASTIVE = ("simclr", "dcl", "dhel", "moco")
UNTRAINED = ("raw-pixels", "random-init")
LR_RULES = ("linear", "sqrt", "constant")
# What trains: this package with lightly's heads, or solo-learn; with the backbone that is meant where none is named.
FRAMEWORKS = {"lightly": "small", "solo": "resnet18"}
EVALUATION_SPLITS = ("test", "val")
# Methods whose negatives can be chosen, with their own. DHEL is what it is by its negatives, MoCo's come from the queue.
NEGATIVES_OF = {"simclr": "both", "dcl": "both"}
NEGATIVES = ("cross", "within", "both")
HEAD_BATCH_NORM_OF = {"simclr": True, "dcl": True, "dhel": True, "moco": False}
VRN_AGAINST = ("queries", "queue")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
# Those of Lightning's that keep all parameters on every rank (the evaluation reads them) and launch nothing themselves.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")

# An embedding whose held-out negatives are this similar on average has collapsed; its small variance is then no success.
COLLAPSE_MEAN = 0.9

# Passes over the training images that have augmentations of their own (`augment.epoch_seed`); the next is the evaluation's.
MAX_EPOCHS = 9999

# Images of a folder above the first side length are averaged to the second one for the raw-pixels row: at 224 pixels the
# regression would have 150528 coefficients per class, and its input would be 76 GB for the 126700 images of ImageNet-100.
LARGEST_RAW_SIDE, POOLED_RAW_SIDE = 64, 32


def _later(default: Any) -> Any:
    """A field of `TrialConfig` that was added within a protocol; its default is what trials did before, for ever."""
    return dataclasses.field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that decides a trial's numbers. Two equal configurations give equal numbers on one CPU.

    Attributes:
        data: Data set name (see `data.py`) and, in `data_dir`, where its files are when they are not part of a package.
        method: One of `CONTRASTIVE`, or of `UNTRAINED` for a row without training.
        seed: Decides split, labelled subsets, initial weights, order and augmentations: all of them, so that trials of
            one seed differ in nothing but the arm, and the spread over seeds includes that of the split.
        backbone: `"small"` or the name of a timm model.
        batch_size, temperature, weight: The arm. `weight` is that of VRN, 0 is without.
        epochs: Passes over the training split; trials of one sweep have equal epochs, hence not equal steps.
        steps: Optimiser steps instead, where not 0; `epochs` is then 0. Equal steps are not equal data.
        base_lr, lr_rule: Learning rate is base_lr * B/256 (linear), base_lr * sqrt(B/256) (sqrt) or base_lr (constant).
        warmup: Fraction of the steps over which the learning rate rises linearly.
        weight_warmup: Fraction of the steps over which the VRN weight rises linearly from 0.
        fused: Both views in one forward pass (BatchNorm sees 2B rows) or one pass each.
        queue_size, key_momentum: MoCo only. A queue of 0 means the largest power of two up to n/2 and 4096.
        evaluate_on: The split the metrics are read on, once, after the last epoch.
        device: `"cpu"` or `"cuda"`.
        negatives: `"cross"`, `"within"` or `"both"` views' rows are negatives; None for the method's own (`NEGATIVES_OF`).
        head_batch_norm: BatchNorm in the projection head; None for the method's own (`HEAD_BATCH_NORM_OF`).
        vrn_against: MoCo only. `"queries"`: VRN between the two views by the trained encoder. `"queue"`: between each of
            them and the queue, which carries no gradient and may collapse.
        precision: Lightning's name of it. Evaluation and the losses' insides are in fp32 whatever it is.
        devices, nodes, strategy: Ranks per node, nodes, and Lightning's strategy. `batch_size` is that of all ranks.
        framework: One of `FRAMEWORKS`.
        num_train, num_val, num_test: Samples in the splits; None for the data set's own numbers.
        official_test: The test split is the one published with the data, not a part of its training images.
        image_size: Side in pixels that the images of an `imagefolder` are brought to; None for its default.
        hidden_dim, output_dim: Widths of the projection head.
        raw_pixels_side: Side in pixels that images are averaged to for the raw-pixels row, None where they are taken as they
            are. No option: `untrained` sets it for the large images of an `imagefolder`.
    """

    data: str = "digits"
    data_dir: str | None = None
    method: str = "simclr"
    seed: int = 0
    backbone: str = "small"
    batch_size: int = 16
    temperature: float = 0.5
    weight: float = 0.0
    epochs: int = 20
    base_lr: float = 0.15
    lr_rule: str = "linear"
    warmup: float = 0.1
    weight_warmup: float = 0.0
    weight_decay: float = 1e-4
    fused: bool = True
    queue_size: int = 0
    key_momentum: float = 0.99
    evaluate_on: str = "test"
    device: str = "cpu"
    steps: int = _later(0)
    negatives: str | None = _later(None)
    head_batch_norm: bool | None = _later(None)
    vrn_against: str = _later("queries")
    precision: str = _later("32")
    devices: int = _later(1)
    nodes: int = _later(1)
    strategy: str = _later("auto")
    framework: str = _later("lightly")
    num_train: int | None = _later(None)
    num_val: int | None = _later(None)
    num_test: int | None = _later(None)
    official_test: bool = _later(False)
    image_size: int | None = _later(None)
    hidden_dim: int = _later(256)
    output_dim: int = _later(64)
    raw_pixels_side: int | None = _later(None)

    @property
    def equal(self) -> str:
        """What all trials of a sweep have equally many of: `"epochs"` or `"steps"`."""
        return "steps" if self.steps else "epochs"

    def passes(self, num_train: int) -> int:
        """Epochs that are begun, in steps too."""
        return math.ceil(self.steps / (num_train // self.batch_size)) if self.steps else self.epochs

    @property
    def ranks(self) -> int:
        """Processes that share each batch."""
        return self.devices * self.nodes

    @property
    def has_head_batch_norm(self) -> bool:
        """Whether the projection head has BatchNorm, asked for or by the method's own choice."""
        return HEAD_BATCH_NORM_OF[self.method] if self.head_batch_norm is None else self.head_batch_norm

    def canonical(self) -> "TrialConfig":
        """The same trial with choices that change nothing left at their defaults, so that it has one key, not several."""
        changes: dict[str, Any] = {}
        if self.negatives == NEGATIVES_OF.get(self.method):
            changes["negatives"] = None
        if self.head_batch_norm == HEAD_BATCH_NORM_OF.get(self.method):
            changes["head_batch_norm"] = None
        if not self.weight:
            changes["vrn_against"] = "queries"
        if self.ranks == 1:
            changes["strategy"] = "auto"
        return dataclasses.replace(self, **changes)

    @property
    def arm(self) -> "Arm":
        """The trial without its seed: what is compared."""
        return Arm(self.method, self.batch_size, self.temperature, self.weight)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        ratio = self.batch_size / 256
        return self.base_lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "constant": 1.0}[self.lr_rule]

    def key(self, protocol: int = PROTOCOL) -> str:
        """Name of the trial: 16 hexadecimal digits of the SHA-256 of the canonical JSON of everything above.

        A field that was added later (`_later`) counts once it is set: what was run before it existed keeps its name.
        Under an older `protocol` it is the name that records of then have.
        """
        decisive = {name: value for name, value in self.to_dict().items() if value != _added_later().get(name, ...)}
        canonical = json.dumps({"protocol": protocol, **decisive}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def file_stem(self) -> str:
        """A name that people can read, made unique by the key."""
        return f"{self.arm.slug()}-s{self.seed}-{self.key()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """The inverse of `to_dict`, also of an older one; unknown or missing names raise `TypeError`."""
        missing = {field.name for field in dataclasses.fields(cls)} - set(values) - set(_added_later())
        if missing:
            raise TypeError(f"trial configuration lacks {sorted(missing)}")
        return cls(**values)


def _added_later() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(TrialConfig) if "later" in field.metadata}


@dataclass(frozen=True, order=True)
class Arm:
    """One row of the table: what is averaged over seeds."""

    method: str
    batch_size: int
    temperature: float
    weight: float

    @property
    def trained(self) -> bool:
        """Whether the row comes from training."""
        return self.method in CONTRASTIVE

    def slug(self) -> str:
        """For file names."""
        if not self.trained:
            return self.method
        return f"{self.method}-b{self.batch_size}-t{self.temperature:g}-w{self.weight:g}"

    def label(self) -> str:
        """For tables and figures."""
        if not self.trained:
            return self.method
        return f"{self.method} B={self.batch_size} t={self.temperature:g} " + (
            f"VRN {self.weight:g}" if self.weight else "no VRN"
        )


# Fields of a trial that are not common to all trials of a sweep.
ARM_AND_SEED = frozenset({field.name for field in dataclasses.fields(Arm)} | {"seed"})


def grid(
    base: TrialConfig,
    *,
    methods: Sequence[str],
    batch_sizes: Sequence[int],
    weights: Sequence[float],
    temperatures: Sequence[float],
    control_temperatures: Sequence[float],
    seeds: Sequence[int],
) -> list[TrialConfig]:
    """All trials of a sweep: methods x batch sizes x temperatures x weights, the controls, the untrained rows.

    Weight 0 is always among the weights (there is nothing to compare with otherwise) and the control temperatures run at
    weight 0 only. Seed by seed, so that an interrupted sweep has whole seeds to compare.
    """
    weights = sorted({0.0, *weights})
    arms = [
        (method, batch_size, temperature, weight)
        for method in methods
        for batch_size in batch_sizes
        for temperature, arm_weights in [
            *((temperature, weights) for temperature in temperatures),
            *((control, [0.0]) for control in control_temperatures if control not in temperatures),
        ]
        for weight in arm_weights
    ]
    trials: list[TrialConfig] = []
    for seed in seeds:
        trials += [untrained(base, name, seed) for name in UNTRAINED]
        for method, batch_size, temperature, weight in arms:
            trials.append(
                dataclasses.replace(
                    base, method=method, batch_size=batch_size, temperature=temperature, weight=weight, seed=seed
                ).canonical()
            )
    return list(dict.fromkeys(trials))


def untrained(base: TrialConfig, method: str, seed: int) -> TrialConfig:
    """A row without training; what it does not depend on is left at fixed values, so that sweeps share its result."""
    large = method == "raw-pixels" and (base.image_size or 0) > LARGEST_RAW_SIDE
    return TrialConfig(
        data=base.data,
        data_dir=base.data_dir,
        num_train=base.num_train,
        num_val=base.num_val,
        num_test=base.num_test,
        official_test=base.official_test,
        image_size=base.image_size,
        method=method,
        seed=seed,
        backbone=base.backbone if method == "random-init" else "small",
        framework=base.framework if method == "random-init" else "lightly",
        epochs=0,
        evaluate_on=base.evaluate_on,
        device=base.device,
        raw_pixels_side=POOLED_RAW_SIDE if large else None,
    )


def queue_length(asked: int, num_samples: int) -> int:
    """Length of MoCo's queue: as asked, or for 0 the largest power of two up to n/2 and 4096.

    Raises:
        ValueError: More than n/2 asked for: the queue would hold the anchors' own samples.
    """
    if asked > num_samples // 2:
        raise ValueError(f"queue_size must be at most half of the {num_samples} training samples, got {asked}")
    return asked or min(4096, 2 ** ((num_samples // 2).bit_length() - 1))
