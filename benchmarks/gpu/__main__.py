"""``python benchmarks/gpu``: varloss need not be installed, the folders of this checkout go on the path."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
# In place of this folder, whose files are modules of the package `gpu`.
sys.path[:1] = [str(_ROOT / name) for name in ("", "integrations", "benchmarks")]

from gpu.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
