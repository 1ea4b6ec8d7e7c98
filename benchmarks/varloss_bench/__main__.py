"""Entry point of `varloss-bench` and `python -m varloss_bench`."""

import sys
from importlib import import_module

# Package -> the extra that installs it. A missing package that is not listed is a bug and keeps its traceback.
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
    """Run the command line; exit with 2 and the pip command if an extra is not installed."""
    try:
        import_module("varloss_bench.cli").app()  # imported here, because typer and rich belong to the extra
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF:
            raise
        print(
            f"varloss-bench needs the package '{package}', which is not installed. Install it with\n"
            f'    pip install "varloss[{_EXTRA_OF[package]}]"     or, in a checkout:  pip install ".[{_EXTRA_OF[package]}]"',
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
