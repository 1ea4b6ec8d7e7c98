"""Runs tests against the INSTALLED varloss, in a folder that holds the tests and nothing else of the checkout.

python .github/test_wheel.py                          # the core: what needs torch, numpy and scipy only
python .github/test_wheel.py tests/integrations/lightly -x         # or pytest's arguments
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ["additive", "conventions", "fused", "memory_bank", "metrics", "nt_xent", "vrn"]
WHERE = "import varloss; print(varloss.__file__, varloss.__version__)"


def main(arguments: list[str]) -> int:
    """Copies, runs, and returns pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tests", Path(folder, "tests"), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)  # pytest's settings
        where = subprocess.run(
            [sys.executable, "-c", WHERE], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        print(f"testing {where}", flush=True)
        if Path(where.rsplit(" ", 1)[0]).resolve().is_relative_to(ROOT.resolve()):
            print(
                "this is the checkout, not an installed wheel: use an environment without an editable install.",
                file=sys.stderr,
            )
            return 2
        if not any(argument.startswith("tests/") for argument in arguments):
            arguments = [*(f"tests/core/test_{name}.py" for name in CORE), *arguments]
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
