"""The checks of ``varloss-solo doctor``. Standard library only, because it must run where other packages are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIREMENTS = 'pip install -r requirements.txt "setuptools<82"'
CLONE = "git clone https://github.com/vturrisi/solo-learn && cd solo-learn"
_NEEDED = {
    "torch": (2, 4),
    "torchvision": (),
    "lightning": (2, 0),
    "hydra-core": (1, 2),
    "timm": (),
    "torchmetrics": (),
}
_HYDRA = 'pip install "hydra-core<1.4"'
_CURES = {
    "version_base": _HYDRA,
    "pkg_resources": 'pip install "setuptools<82"',
    "No module named": REQUIREMENTS,
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``ok``, ``note`` or ``FAIL``, and the command that fixes it."""

    state: str
    text: str
    cure: str = ""


def run(root: Path, *, dry_run: bool = True) -> int:
    """Prints the findings for the checkout ``root``; returns 0 if it is ready and 1 if something fails."""
    failed = False
    print(f"varloss {_version('varloss') or '(not installed as a package)'} and solo-learn in {root}{_commit(root)}")
    for finding in _findings(root, dry_run):
        print(f"[{finding.state:>4}] {finding.text}", flush=True)
        if finding.cure:
            print(f"       type: {finding.cure}", flush=True)
        failed |= finding.state == "FAIL"
    print("Not ready." if failed else "Ready: add +varloss=vrn to your main_pretrain.py command.")
    return int(failed)


def _findings(root: Path, dry_run: bool) -> Iterator[Finding]:
    versions = list(_versions())
    yield from versions
    here = _checkout(root)
    yield here
    if any(finding.state == "FAIL" for finding in [*versions, here]):
        return
    answer = _probe_in(root)
    yield from _installed(answer)
    if "error" not in answer and answer["plugin"] and dry_run:
        yield _training_step(root)


def _versions() -> Iterator[Finding]:
    yield Finding("ok", f"Python {sys.version.split()[0]}")
    for name, least in _NEEDED.items():
        version = _version(name)
        if version is None:
            yield Finding("FAIL", f"{name} is not installed", REQUIREMENTS)
        elif _numbers(version) < least:
            wanted = ".".join(map(str, least))
            yield Finding(
                "FAIL", f"{name} {version} is older than {wanted}", f'pip install --upgrade "{name}>={wanted}"'
            )
        elif name == "hydra-core" and _numbers(version) >= (1, 4):
            yield Finding("note", f"hydra-core {version} refuses main_pretrain.py's version_base='1.2'", _HYDRA)
        elif name == "torchmetrics" and _numbers(version) >= (0, 12):
            yield Finding(
                "note",
                f"torchmetrics {version}: knn_eval and main_knn.py need 0.11.4",
                'pip install "torchmetrics<0.12"',
            )
        else:
            yield Finding("ok", f"{name} {version}")
    yield Finding(
        "ok" if _version("setuptools") else "note", f"setuptools {_version('setuptools') or 'is not installed'}"
    )
    published = _version("solo-learn")
    if published is not None and _numbers(published) < (1, 0, 5):
        yield Finding(
            "FAIL",
            f"solo-learn {published} from PyPI (2021) is installed; it has no Hydra configuration to hook into",
            f"pip uninstall -y solo-learn && {CLONE} && {REQUIREMENTS}",
        )


def _checkout(root: Path) -> Finding:
    if (root / "main_pretrain.py").is_file() and (root / "solo" / "methods" / "__init__.py").is_file():
        return Finding("ok", "this is a solo-learn checkout")
    return Finding(
        "FAIL", f"no main_pretrain.py and solo/methods in {root}", f"{CLONE}, or varloss-solo doctor --root DIR"
    )


def _probe_in(root: Path) -> dict[str, Any]:
    """The result of `probe` in a fresh interpreter in the checkout, because importing a broken solo-learn may end the process."""
    command = [sys.executable, "-W", "ignore", "-c", "from varloss_solo.doctor import probe; probe()"]
    done = subprocess.run(command, cwd=root, env=_environment(), capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        answer = {"error": _last_line(done.stderr), "during": "importing solo-learn"}
    return answer


def probe() -> None:
    """Prints as JSON whether solo-learn's methods import, whether Hydra finds the plugin, and which methods are patched."""
    during = "importing solo-learn"
    answer: dict[str, Any]
    try:
        import solo.methods  # type: ignore[import-not-found]  # noqa: PLC0415  (run inside a checkout)
        from hydra.core.plugins import Plugins  # noqa: PLC0415
        from hydra.plugins.search_path_plugin import SearchPathPlugin  # noqa: PLC0415

        during = "looking for the plugin"
        plugin = any(found.__name__ == "VarlossSearchPath" for found in Plugins.instance().discover(SearchPathPlugin))
        during = "patching solo-learn's methods"
        from varloss_solo import patch  # noqa: PLC0415

        patch.install()
        patched = [name for name, method in solo.methods.METHODS.items() if "WithVRN" in method.__name__]
        answer = {"plugin": plugin, "patched": patched}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}", "during": during}
    print(json.dumps(answer))


def _installed(answer: dict[str, Any]) -> Iterator[Finding]:
    if "error" in answer:
        cure = next((cure for sign, cure in _CURES.items() if sign in answer["error"]), REQUIREMENTS)
        yield Finding("FAIL", f"{answer['during']}: {answer['error']}", cure)
        return
    yield Finding("ok", "solo-learn's methods import")
    if answer["plugin"]:
        yield Finding("ok", "Hydra finds the plugin hydra_plugins.varloss_searchpath")
    else:
        yield Finding(
            "FAIL",
            "Hydra does not find the plugin, so +varloss=vrn would be unknown or ignored",
            "pip install --force-reinstall --no-deps /path/to/varloss",
        )
    yield Finding("ok", f"{len(answer['patched'])} methods patched: {', '.join(answer['patched'])}")


def _training_step(root: Path) -> Finding:
    """main_pretrain.py with ``+varloss=vrn``, one step of SimCLR on eight synthetic images, on the CPU."""
    with tempfile.TemporaryDirectory(prefix="varloss-doctor-") as scratch:
        here = Path(scratch)
        _write_images(here / "images")
        # JSON is YAML; the package marker of Hydra is not needed for a primary configuration.
        (here / "doctor.yaml").write_text(json.dumps(_configuration(here)))
        command = [sys.executable, "main_pretrain.py", "--config-path", scratch, "--config-name", "doctor.yaml"]
        done = subprocess.run(
            [*command, "+varloss=vrn"], cwd=root, env=_environment(), capture_output=True, text=True, check=False
        )
    said = next((line for line in done.stdout.splitlines() if line.startswith("varloss: ")), None)
    if done.returncode != 0:
        cure = next((cure for sign, cure in _CURES.items() if sign in done.stderr), "")
        return Finding("FAIL", f"a training step with +varloss=vrn ends in: {_last_line(done.stderr)}", cure)
    if said is None:
        return Finding(
            "FAIL",
            "a training step with +varloss=vrn ran without varloss",
            "pip install --force-reinstall /path/to/varloss",
        )
    return Finding("ok", f"one training step on synthetic images; it said\n       {said}")


def _write_images(folder: Path) -> None:
    from PIL import Image  # noqa: PLC0415  (comes with torchvision; not needed to report that torchvision is missing)

    for number in range(8):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 128)).save(place / f"{number}.png")


def _configuration(here: Path) -> dict[str, Any]:
    off = {"prob": 0.0}
    crop = {
        "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0},
        "color_jitter": {"prob": 0.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
        **dict.fromkeys(("grayscale", "gaussian_blur", "solarization", "equalization", "horizontal_flip"), off),
        "crop_size": 32,
        "num_crops": 2,
    }
    return {
        "hydra": {"output_subdir": None, "run": {"dir": str(here)}},
        "name": "varloss-doctor",
        "method": "simclr",
        "backbone": {"name": "resnet18"},
        "method_kwargs": {"proj_hidden_dim": 32, "proj_output_dim": 16, "temperature": 0.5},
        "data": {"dataset": "custom", "train_path": str(here / "images"), "format": "image_folder", "num_workers": 0},
        "augmentations": [crop],
        "optimizer": {"name": "sgd", "batch_size": 8, "lr": 0.1, "classifier_lr": 0.1, "weight_decay": 0.0},
        "scheduler": {"name": "none"},
        "max_epochs": 1,
        "max_steps": 1,
        "devices": "1",
        "accelerator": "cpu",
        "strategy": "auto",
        "precision": 32,
        "enable_progress_bar": False,
        "default_root_dir": str(here),
    }


def _environment() -> dict[str, str]:
    """This process's environment; Python writes no compiled files into the checkout."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Hydra's last line is advice about HYDRA_FULL_ERROR, not the cause.
    return next((line for line in reversed(lines) if "HYDRA_FULL_ERROR" not in line), "no message")


def _commit(root: Path) -> str:
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "log", "-1", "--format=%h of %cs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return f" (commit {done.stdout.strip()})" if done.returncode == 0 else ""
