"""A trial as a solo-learn run: its configuration file, its overrides, and the options that solo-learn does not support."""

import math
from pathlib import Path
from typing import Any

from varloss_bench.config import TrialConfig, queue_length
from varloss_bench.data.types import Source
from varloss_bench.methods import METHODS
from varloss_bench.training.backbones import SMALL_IMAGE

# The backbones of solo-learn that can be rebuilt here: torchvision's, without their classifier.
BACKBONES = ("resnet18", "resnet50")
# Smaller images are enlarged to this side. The stem divides it by 4; solo-learn uses a smaller stem only for its CIFAR data.
SMALLEST_SIDE = 32
# A crop of three quarters of the side can shift by an eighth of the image in each direction, like the harness's shift.
CROP_MIN_SCALE = 0.75**2
# solo-learn always multiplies its learning rate by batch size / 256.
_LR_BATCH = 256


def image_side(source: Source) -> int:
    """Side of the square images for solo-learn."""
    height, width = source.images.shape[2:]
    return max(SMALLEST_SIDE, height, width)


def check(config: TrialConfig, num_train: int) -> None:
    """Raise `ValueError` for an option of a trained trial that solo-learn does not support.

    Args:
        config: The trial.
        num_train: Images in its training split.
    """
    prefix = "--framework solo"
    method = METHODS[config.method]
    if method.solo is None:
        raise ValueError(f"{prefix}: solo-learn does not train {config.method}")
    if config.backbone not in BACKBONES:
        raise ValueError(f"{prefix}: --backbone must be one of {', '.join(BACKBONES)}, got {config.backbone!r}")
    if config.fused:
        raise ValueError(f"{prefix}: solo-learn encodes each view in a separate forward pass; --fused is not possible")
    if config.steps:
        raise ValueError(f"{prefix}: solo-learn keeps checkpoints at the end of epochs; use --epochs, not --steps")
    if config.head_batch_norm:
        raise ValueError(f"{prefix}: the projection heads of simclr and mocov2plus have no BatchNorm in solo-learn")
    if config.ranks > 1:
        raise ValueError(f"{prefix}: one device and one node only, got {config.ranks} ranks")
    if method.momentum_queue:
        size = queue_length(config.queue_size, num_train)
        if size % config.batch_size:
            raise ValueError(
                f"{prefix}: {method.solo} needs a queue that is a multiple of the batch size, got a queue of {size} and "
                f"--batch-size {config.batch_size}"
            )


def configuration(config: TrialConfig, source: Source, *, images: Path, output: Path, num_train: int) -> dict[str, Any]:
    """solo-learn's configuration of a trial, without VRN; as JSON it is a Hydra file.

    Args:
        config: The trial.
        source: The data set.
        images: Folder with one subfolder of images.
        output: Folder for checkpoint and logs.
        num_train: Images in the folder.
    """
    steps_per_epoch = num_train // config.batch_size
    warmup_steps = int(config.warmup * steps_per_epoch * config.epochs)
    method_kwargs: dict[str, Any] = {
        "proj_hidden_dim": config.hidden_dim,
        "proj_output_dim": config.output_dim,
        "temperature": config.temperature,
    }
    made: dict[str, Any] = {
        "defaults": [
            "_self_",
            {"override hydra/hydra_logging": "disabled"},
            {"override hydra/job_logging": "disabled"},
        ],
        "hydra": {"output_subdir": None, "run": {"dir": "."}},
        "name": "trial",
        "method": METHODS[config.method].solo,
        "seed": config.seed,
        "backbone": {"name": config.backbone},
        "method_kwargs": method_kwargs,
        # Not no_labels: that dataset reads files in the order of the file system, which does not depend on the seed, and
        # its labels of -1 make the loss of the online classifier NaN. With one class that loss is 0.
        "data": {"dataset": "custom", "train_path": str(images), "format": "image_folder", "num_workers": 0},
        "augmentations": [augmentation(source)],
        "optimizer": {
            "name": "sgd",
            "batch_size": config.batch_size,
            "lr": config.learning_rate * _LR_BATCH / config.batch_size,
            "classifier_lr": 0.0,
            "weight_decay": config.weight_decay,
            "exclude_bias_n_norm_wd": True,
        },
        "scheduler": {
            "name": "warmup_cosine",
            "warmup_epochs": warmup_epochs(warmup_steps, steps_per_epoch),
            # The harness's learning rate at the first step; with solo-learn's own start value this step would hardly train.
            "warmup_start_lr": config.learning_rate / max(1, warmup_steps),
        },
        "max_epochs": config.epochs,
        # solo-learn saves epoch 0 and multiples of the frequency; this frequency includes the last epoch.
        "checkpoint": {"enabled": True, "dir": str(output), "frequency": max(1, config.epochs - 1)},
        "auto_resume": {"enabled": False},
        "wandb": {"enabled": False},
        "accelerator": "gpu" if config.device == "cuda" else "cpu",
        "devices": "1",
        "strategy": "auto",
        "sync_batchnorm": False,
        "precision": config.precision,
        "default_root_dir": str(output),
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if METHODS[config.method].momentum_queue:
        method_kwargs["queue_size"] = queue_length(config.queue_size, num_train)
        made["momentum"] = {"base_tau": config.key_momentum, "final_tau": config.key_momentum}
    return made


def warmup_epochs(steps: int, steps_per_epoch: int) -> float:
    """The warm-up in epochs, for solo-learn's configuration.

    solo-learn multiplies it by the steps per epoch and compares the product with whole steps. If rounding makes the product
    larger than `steps`, the warm-up has one step more and the learning rate stays above its peak. A slightly smaller product
    is harmless.
    """
    epochs = steps / steps_per_epoch
    return epochs if epochs * steps_per_epoch <= steps else math.nextafter(epochs, 0.0)


def augmentation(source: Source) -> dict[str, Any]:
    """The harness's augmentation (`augment.build_augmentation`) as far as solo-learn's configuration can express it.

    For colour images that is nearly all of it. Grey images have no rotation and no noise, and a crop replaces shift and zoom.
    """
    if source.images.shape[1] == 3:
        strength = 0.5 if min(source.images.shape[2:]) < SMALL_IMAGE else 1.0
        crop_min, crop_max = source.scale
        jitter = dict.fromkeys(("brightness", "contrast", "saturation"), 0.8 * strength) | {"hue": 0.2 * strength}
        gray, blur = 0.2, 0.5
    else:
        crop_min, crop_max = CROP_MIN_SCALE, 1.0
        jitter = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.0, "hue": 0.0}
        gray, blur = 0.0, 0.0
    return {
        "rrc": {"enabled": True, "crop_min_scale": crop_min, "crop_max_scale": crop_max},
        "color_jitter": {"prob": 0.8, **jitter},
        "grayscale": {"prob": gray},
        "gaussian_blur": {"prob": blur},
        "solarization": {"prob": 0.0},
        "equalization": {"prob": 0.0},
        "horizontal_flip": {"prob": 0.5 if source.flip else 0.0},
        # Images in [0, 1], as in the harness's own training.
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "crop_size": image_side(source),
        "num_crops": 2,
    }


def overrides(config: TrialConfig) -> list[str]:
    """The options for VRN and negatives, as a user of solo-learn would write them on the command line; empty without either.

    At weight 0 the option is absent: the baseline is solo-learn's own loss.
    """
    said: list[str] = []
    if config.weight:
        said += ["+varloss=vrn", f"varloss.weight={config.weight!r}"]
        if config.weight_warmup:
            said.append(f"varloss.warmup_fraction={config.weight_warmup!r}")
        if config.vrn_against == "queue":
            said.append("varloss.between=queue")
    if config.negatives is not None:
        said.append(f"++varloss.negatives={config.negatives}")
    return said


def confounds(config: TrialConfig) -> dict[str, Any]:
    """The differences between solo-learn's trials and the harness's own. Only rows of the same framework are compared."""
    found = {
        "framework": "solo-learn's main_pretrain.py in a process of its own",
        "forward": "one pass per view",
        "head_batch_norm": False,
        "stem": f"ImageNet's, on images enlarged to a side of at least {SMALLEST_SIDE}: solo-learn has its small stem for "
        "CIFAR only",
        "augmentation": f"grey images: crops of {CROP_MIN_SCALE:g} to 1 of the area, aspect ratio 3/4 to 4/3, brightness and "
        "contrast; no rotation, no noise, which the similarities are evaluated with. Colour: the same strengths by other code",
        "pairing": "arms of one seed and method share split, initial weights, order and augmentations; methods share split "
        "and initial backbone",
    }
    if METHODS[config.method].momentum_queue:
        found["queue"] = "one for each view, at first filled with random unit vectors that count as negatives"
    return found
