"""Entry point of `varloss-bench` and `python -m varloss_bench`."""

import sys
from importlib import import_module

# What a command of ours may fail to import -> the extra that brings it. Anything else is a bug and keeps its traceback.
_EXTRA_OF = dict.fromkeys(
    (
        "jinja2",
        "filelock",
        "kornia",
        "lightly",
        "matplotlib",
        "numpy",
        "optuna",
        "pandas",
        "pyarrow",
        "pytorch_lightning",
        "rich",
        "scipy",
        "sklearn",
        "timm",
        "torchmetrics",
        "torchvision",
        "typer",
        "yaml",
    ),
    "bench",
) | {"submitit": "cluster"}


def main() -> None:
    """Run the command line; exit 2 with the pip line that helps when an extra is not installed."""
    try:
        import_module("varloss_bench.cli").app()  # in here: typer and rich belong to the extra
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF:
            raise
        print(
            f"varloss-bench needs the package '{package}', which is not installed. Install what it needs with\n"
            f'    pip install "varloss[{_EXTRA_OF[package]}]"     or, in a checkout:  pip install ".[{_EXTRA_OF[package]}]"',
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
