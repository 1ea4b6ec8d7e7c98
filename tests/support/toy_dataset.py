"""A data set that a contributor would add: a loader and a row. Run as a script, the harness with it."""

import sys
from multiprocessing.connection import Connection

import torch

from varloss_bench.data import loading
from varloss_bench.data.types import Request, Source, Split
from varloss_bench.datasets import DATASETS, Dataset


def toy(request: Request) -> Source:
    """200 grey images of 8 x 8, the upper or the lower half bright, drawn 120 / 40 / 40; 50 test images."""
    images, labels = _halves(250)
    test = Split(images[200:], labels[200:]) if request.official_test else None
    return Source(
        images[:200], labels[:200], 2, (120, 40, 40), rotation=5.0, scale=(0.9, 1.1), flip=True, official_test=test
    )


def _halves(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 2
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    for label in (0, 1):
        images[labels == label, :, 4 * label : 4 * label + 4] += 0.5
    return images, labels


ROW = Dataset(name="toy", loader="support.toy_dataset:toy", help="bright halves", published=(200, 50))


def send_size(connection: Connection) -> None:
    """Body of a process: load the data set by its name and send the number of its images."""
    connection.send(len(loading.load("toy").labels))


if __name__ == "__main__":
    DATASETS["toy"] = ROW
    from varloss_bench.__main__ import main  # it reads the registry

    sys.exit(main())
