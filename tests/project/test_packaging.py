"""The built wheel: what is in it, and that it works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: the build backend is in the test extra, and nothing is downloaded.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("varloss-*.whl"))


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    adapters = {path.parent.name for path in (ROOT / "integrations").glob("*/__init__.py")}
    assert {"varloss_lightly", "varloss_solo"} <= adapters
    assert tops == {"varloss", "varloss_bench", "hydra_plugins"} | adapters
    assert {f"{package}/py.typed" for package in tops - {"hydra_plugins"}} <= set(names)
    assert not [name for name in names if "results" in name or name.startswith(("tests", "hydra_plugins/__init__"))]


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    """Unpacked ahead of everything else on the path, as an installation would be, from an empty folder."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import torch, varloss, varloss_lightly, varloss_bench\n"
        f"assert varloss.__file__.startswith({str(site)!r}), varloss.__file__\n"
        "loss = varloss_lightly.NTXentLoss(vrn_weight=3, num_samples=50)(torch.randn(4, 8), torch.randn(4, 8))\n"
        "assert loss.isfinite()\n"
        "print(varloss.__version__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == wheel.name.split("-")[1]


def test_version_is_the_changelogs_newest():
    import varloss

    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{varloss.__version__}]" in changelog
