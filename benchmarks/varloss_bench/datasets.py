"""The data sets, one row each: what the rest of the harness knows of a data set before it is read, it reads here.

Imports nothing heavy, so that `--help` answers at once. Loaders are named as `"package.module:function"`, as the code of
`methods` is.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One row.

    Attributes:
        name: On the command line and in records.
        loader: Called with a `data.types.Request`, returns a `data.types.Source`.
        help: What `--help` says of it beside its name; may be empty.
        published: Training and test images that were published; None where the data have no published test split, or sizes that
            are not known before they are read.
        is_folder: Whether it is named with the path of a folder, `NAME:PATH`, and its images are brought to `image_size`.
    """

    name: str
    loader: str
    help: str = ""
    published: tuple[int, int] | None = None
    is_folder: bool = False

    @property
    def typed(self) -> str:
        """As it is typed."""
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
    """All data sets with their help."""
    return ", ".join(f"{row.typed} ({row.help})" if row.help else row.typed for row in DATASETS.values())


def published_sizes(name: str) -> tuple[int | None, int | None]:
    """Training and test images of a trial's `data` that were published, None where the row has no number."""
    row = DATASETS.get(name.partition(":")[0])
    return (row.published if row else None) or (None, None)
