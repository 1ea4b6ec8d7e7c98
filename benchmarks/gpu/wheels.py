"""Packages that a visit compares with and a bare machine lacks: downloaded beforehand, installed beside the checkout there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# Distribution -> module. What else they ask for is not imported by what is used of them.
PACKAGES = {
    "lightly": "lightly",
    "pytorch-metric-learning": "pytorch_metric_learning",
    "memeff": "memeff",
    "inf-cl": "inf_cl",
    "siglip-kernel": "siglip_kernel",
    "pytest-xdist": "xdist",
    "execnet": "execnet",
}
# These make the tests run side by side.
FOR_TESTS = {"pytest-xdist", "execnet"}
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "any")
PIP_SECONDS = 60


def prepare(folder: Path) -> list[str]:
    """Download the packages' wheels for Python 3.12 on Linux; returns those that could not be had."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["download", "--no-deps", "--only-binary=:all:", "--python-version", "312", "--dest", str(folder)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    return [name for name in PACKAGES if _pip([*command, name])]


def install(folder: Path, target: Path) -> list[str]:
    """Install the folder's wheels into ``target``; returns a sentence for each package that will be missing."""
    wheels = sorted(folder.glob("*.whl"))
    command = ["install", "--no-index", "--no-deps", "--quiet", "--target", str(target)]
    # All at once is quickest; one by one shows which is bad.
    reasons: dict[str, str] = {}
    if wheels and _pip([*command, *map(str, wheels)]):
        reasons = {_module(wheel): reason for wheel in wheels if (reason := _pip([*command, "--upgrade", str(wheel)]))}
    missing = []
    for name, module in PACKAGES.items():
        if (target / module).exists() or (module not in reasons and find_spec(module) is not None):
            continue
        reason = reasons.get(module, f"no wheel in {folder}")
        lost = "the tests run one after another" if name in FOR_TESTS else "its rows are left out"
        missing.append(f"{name} is missing, {lost}: {reason}")
    return missing


def _module(wheel: Path) -> str:
    distribution = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
    return PACKAGES.get(distribution, distribution)


def _pip(arguments: list[str]) -> str:
    """What went wrong; empty if nothing did."""
    if find_spec("pip") is None:
        return f"{sys.executable} has no pip"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired:
        return f"pip took more than {PIP_SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or ["pip failed"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1])
