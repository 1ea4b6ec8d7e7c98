"""``varloss-solo doctor``: is this environment ready for ``+varloss=vrn``?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from varloss_solo import doctor


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command ``varloss-solo``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="varloss-solo", description="varloss inside an unmodified solo-learn checkout."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("doctor", help="checks this environment, ends with a training step on synthetic images")
    check.add_argument("--root", type=Path, default=Path(), help="the solo-learn checkout (default: this directory)")
    check.add_argument("--no-run", action="store_true", help="leave the training step out")
    options = parser.parse_args(arguments)
    return doctor.run(options.root.resolve(), dry_run=not options.no_run)


if __name__ == "__main__":
    sys.exit(main())
