"""Where a row comes from: versions, machine, git state, and the choices that confound comparisons."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import varloss
from varloss_bench import measures
from varloss_bench.config import TrialConfig
from varloss_bench.methods import METHODS
from varloss_bench.records import redraws
from varloss_bench.training.solo import config as solo_config
from varloss_bench.training.solo import install as solo_install

_DISTRIBUTIONS = (
    "varloss",
    "torch",
    "lightly",
    "pytorch-lightning",
    "kornia",
    "scikit-learn",
    "scipy",
    "numpy",
    "timm",
    "torchvision",
    "pillow",
)


PACKAGE = Path(__file__).parents[1]


def trial_sources() -> list[Path]:
    """The files of this package that determine a trial's numbers; the folder layout defines them."""
    folders = [path for folder in ("data", "training") for path in (PACKAGE / folder).rglob("*.py")]
    return sorted(
        [
            *folders,
            *(
                PACKAGE / name
                for name in ("config.py", "datasets.py", "grid.py", "measures.py", "methods.py", "options.py")
            ),
        ]
    )


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions, machine and git state, as far as they are known."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _DISTRIBUTIONS}
    return {
        "versions": versions,
        "varloss_source": _digest(Path(varloss.__file__).parent.rglob("*.py")),
        "varloss_bench_source": _digest(trial_sources()),
        "machine": _machine(),
        "cuda": _cuda(),
        "git": _git(),
    }


def _digest(files: Iterable[Path]) -> str:
    """Digest of source files, because the code of a checkout, and thus its rounding, changes without a new version number."""
    sha = hashlib.sha256()
    for path in sorted(files):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, Any]:
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": name,
        "cores": os.cpu_count(),
        "threads_per_worker": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cuda() -> dict[str, Any] | None:
    """Versions of what computes on a GPU besides torch; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call,unused-ignore]
    return {
        "driver": driver,
        "runtime": torch.version.cuda,
        "cudnn": cudnn,
        "devices": torch.cuda.device_count(),
    }


def commit(file: Path = Path(__file__)) -> str:
    """Commit of the checkout that contains a file, marked where it has changes since; empty where there is none."""
    found = _git(file)
    return "" if found is None else f"{found['commit']}{'+changes' if found['dirty'] else ''}"


def _git(file: Path = Path(__file__)) -> dict[str, Any] | None:
    """State of the checkout that contains a file; None if the file is installed elsewhere or git is missing."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # Only a checkout that tracks the file is its own; site-packages may lie inside another repository.
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def confounds(config: TrialConfig) -> dict[str, Any] | None:
    """Choices that affect such comparisons and that papers often omit; None if nothing was chosen."""
    if not config.arm.trained:
        side = config.raw_pixels_side
        return {"raw_pixels": f"averaged to {side} x {side} before the probes"} if side else None
    return {
        "forward": "both views in one pass" if config.fused else "one pass per view",
        "head_batch_norm": config.has_head_batch_norm,
        "negatives": config.negatives or METHODS[config.method].negatives,
        "vrn_between": "query and queue" if config.vrn_against == "queue" else "the two views by the trained encoder",
        "learning_rate_rule": f"{config.lr_rule}: base {config.base_lr:g} at batch 256, momentum 0.9, cosine",
        "equal": config.equal,
        "precision": f"{config.precision}, evaluation in fp32",
        "batch_norm_statistics": _batch_norm_statistics(config),
        "evaluated": f"{config.evaluate_on} split, last epoch",
        "seed_redraws": ", ".join(redraws.redraws(config)),
        "few_label_probe": f"mean of {measures.FEW_LABEL_DRAWS} draws of {measures.FEW_LABELS} labels per class",
        "knn": f"k={measures.KNN_K}, t={measures.KNN_TEMPERATURE}, cosine",
        "similarities": "held-out images, two augmented views, evaluation mode, all cross-view pairs of different images",
        "augmentation_block_bytes": measures.MAX_BLOCK_BYTES,
        **(solo_config.confounds(config) if config.framework == "solo" else {}),
    }


def confounds_by_method(trials: Iterable[TrialConfig]) -> dict[str, dict[str, Any]]:
    """The confounds of each method of a sweep; methods differ in BatchNorm of the head and in negatives, for example.

    They are taken from a trial with VRN if there is one, because trials without VRN do not show what VRN is taken between.
    """
    chosen: dict[str, TrialConfig] = {}
    for trial in trials:
        if trial.method not in chosen or trial.weight > chosen[trial.method].weight:
            chosen[trial.method] = trial
    return {method: found for method, trial in chosen.items() if (found := confounds(trial)) is not None}


def _batch_norm_statistics(config: TrialConfig) -> str:
    if config.ranks == 1:
        return "of the batch"
    return "of the batch over all ranks" if config.device == "cuda" else f"of each of {config.ranks} ranks' rows"


def record_of(config: TrialConfig, command: list[str]) -> dict[str, Any]:
    """The part of a stored record that describes its origin."""
    return {
        "key": config.key(),
        "config": config.to_dict(),
        "confounds": confounds(config),
        "environment": {**environment(), **_solo_source(config)},
        "command": command,
        "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _solo_source(config: TrialConfig) -> dict[str, str]:
    """For trials that solo-learn trains: digest of varloss_solo as installed for solo-learn's interpreter."""
    if config.framework != "solo" or not config.arm.trained:
        return {}
    try:
        return {"varloss_solo_source": solo_install.SoloLearn.from_variables().described()["varloss_solo_source"]}
    except ValueError:  # no checkout, or no answer from its interpreter: the trial has crashed for this reason
        return {}


def command_line() -> list[str]:
    """What the user typed, in a form that runs anywhere."""
    return ["varloss-bench", *sys.argv[1:]]
