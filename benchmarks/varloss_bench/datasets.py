"""The table of data sets, with one row each. It has everything that the harness knows about a data set before reading it.

The module imports nothing heavy, so `--help` is fast. Loaders are named as `"package.module:function"`, like the code in
`methods`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One row.

    Attributes:
        name: Name on the command line and in records.
        loader: Called with a `data.types.Request`, returns a `data.types.Source`.
        help: Description after its name in `--help`; may be empty.
        published: Numbers of published training and test images; None if the data have no published test split, or if their sizes
            are unknown before they are read.
        is_folder: Whether its name includes the path of a folder, `NAME:PATH`, and its images are resized to `image_size`.
    """

    name: str
    loader: str
    help: str = ""
    published: tuple[int, int] | None = None
    is_folder: bool = False

    @property
    def typed(self) -> str:
        """The name as it is typed."""
        return f"{self.name}:PATH" if self.is_folder else self.name


_ROWS = (
    Dataset(name="digits", loader="varloss_bench.data.digits:digits", help="part of scikit-learn"),
    Dataset(name="fashion-mnist", loader="varloss_bench.data.fashion:fashion_mnist", published=(60000, 10000)),
    Dataset(
        name="fashion-pairs",
        loader="varloss_bench.data.fashion:fashion_pairs",
        help="100 classes",
        published=(30000, 5000),
    ),
    Dataset(name="cifar10", loader="varloss_bench.data.torchvision:cifar10", published=(50000, 10000)),
    Dataset(name="cifar100", loader="varloss_bench.data.torchvision:cifar100", published=(50000, 10000)),
    Dataset(name="stl10", loader="varloss_bench.data.torchvision:stl10", published=(5000, 8000)),
    Dataset(
        name="imagefolder",
        loader="varloss_bench.data.folder:image_folder",
        help="a folder with one folder per class",
        is_folder=True,
    ),
)
DATASETS = {row.name: row for row in _ROWS}


def listed() -> str:
    """List of all data sets with their help."""
    return ", ".join(f"{row.typed} ({row.help})" if row.help else row.typed for row in DATASETS.values())


def published_sizes(name: str) -> tuple[int | None, int | None]:
    """Numbers of published training and test images of a trial's `data`; None if the row has no number."""
    row = DATASETS.get(name.partition(":")[0])
    return (row.published if row else None) or (None, None)
