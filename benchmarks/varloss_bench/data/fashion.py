"""Fashion-MNIST from its original files, and pairs of its garments as a data set with many classes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from varloss_bench.data.types import DataError, Request, Source, Split, download_folder
from varloss_bench.methods import load

# The folder of Debian's package dataset-fashion-mnist.
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")

HINT = (
    "With a network, run the same command again; without one, point --data-dir at a folder with Fashion-MNIST's original .gz "
    "files, or install Debian's package: apt-get install dataset-fashion-mnist"
)

# Two garments of half the size, 14 x 14, one in the upper and one in the lower half of the canvas; each has 3 x 5 positions.
PAIR_CANVAS, GARMENT = (32, 18), 14
# Pairs and positions define the data set, so they do not depend on a trial's seed.
PAIRING_SEED = 0


def fashion_mnist(request: Request) -> Source:
    """The original training files; each seed draws 5000 / 2000 / 2000 of their 60000 images."""
    images, labels = _read_files(request, "train")
    test = Split(*_read_files(request, "t10k")) if request.official_test else None
    return Source(
        images, labels, 10, (5000, 2000, 2000), rotation=10.0, scale=(0.7, 1.1), flip=True, official_test=test
    )


def fashion_pairs(request: Request) -> Source:
    """Two garments, one above the other, at random positions. The 100 classes are the ordered pairs of garment classes.

    Every image of Fashion-MNIST's training files is in one pair only, so splits of 5000 / 2000 / 2000 of the 30000 pairs
    never share a garment. The garments are not side by side, so a mirror image has the same class. The official test set
    is made in the same way from the 10000 test images.
    """
    train = _pairs(*_read_files(request, "train"))
    test = _pairs(*_read_files(request, "t10k")) if request.official_test else None
    sizes = (5000, 2000, 2000)
    return Source(
        train.images, train.labels, 100, sizes, rotation=10.0, scale=(0.8, 1.15), flip=True, official_test=test
    )


def _pairs(images: Tensor, labels: Tensor) -> Split:
    generator = torch.Generator().manual_seed(PAIRING_SEED)
    garments = functional.avg_pool2d(images, 2)
    upper, lower = torch.randperm(len(garments) // 2 * 2, generator=generator).chunk(2)
    height, width = PAIR_CANVAS
    canvas = torch.zeros(len(upper), 1, height, width)
    for top, ids in ((0, upper), (height // 2, lower)):
        rows = top + torch.randint(height // 2 - GARMENT + 1, (len(ids),), generator=generator)
        columns = torch.randint(width - GARMENT + 1, (len(ids),), generator=generator)
        _place(canvas, garments[ids], rows, columns)
    return Split(canvas, 10 * labels[upper] + labels[lower])


def _place(canvas: Tensor, patches: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Write each patch (N, 1, h, w) into its image of the canvas, with its upper left corner at the given row and column."""
    height, width = patches.shape[2:]
    y = rows.view(-1, 1, 1) + torch.arange(height).view(1, -1, 1)
    x = columns.view(-1, 1, 1) + torch.arange(width).view(1, 1, -1)
    canvas[torch.arange(len(patches)).view(-1, 1, 1), 0, y, x] = patches[:, 0]


def _read_files(request: Request, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) in [0, 1] and labels (N,) of "train" or "t10k", from `request.folder`, Debian's folder or a download."""
    names = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
    folder = _folder_of(names, request.folder)
    images = torch.from_numpy(_read_idx(folder / names[0]).astype(np.float32) / 255.0)
    labels = torch.from_numpy(_read_idx(folder / names[1]).astype(np.int64))
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise DataError(
            f"{folder}: expected N images of 28 x 28 and N labels, got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return images.unsqueeze(1), labels


def _folder_of(names: tuple[str, ...], asked: Path | None) -> Path:
    """The folder of these files: `asked` or torchvision's subfolder of it, into which missing files are downloaded.

    Without `asked` it is Debian's folder if it exists, otherwise the folder for downloads.
    """
    if asked is None and FASHION_MNIST_DIR.is_dir():
        return FASHION_MNIST_DIR
    root = asked or download_folder()
    downloaded = root / "FashionMNIST" / "raw"
    # If one of the files is in the folder, the user means this folder, and the error names the missing file. If one of them is in
    # torchvision's subfolder, a download was interrupted.
    if any((root / name).exists() for name in names):
        return root
    if all((downloaded / name).is_file() for name in names):
        return downloaded
    try:
        root.mkdir(parents=True, exist_ok=True)
        load("torchvision.datasets:FashionMNIST")(root, download=True)
    except (OSError, RuntimeError) as error:
        places = f"in {root}" if asked else f"in {FASHION_MNIST_DIR} or {root}"
        raise DataError(
            f"Fashion-MNIST ({' and '.join(names)}) is not {places}, and it could not be downloaded: "
            f"{' '.join(str(error).split())}. {HINT}"
        ) from error
    return downloaded


def _read_idx(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """A gzipped IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist)."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. {HINT}") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    zeros, kind, dimensions = struct.unpack(">HBB", content[:4]) if len(content) >= 4 else (1, 0, 0)
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else ()
    if zeros != 0 or kind != 8 or len(content) - header != int(np.prod(shape)):
        raise DataError(f"{path} is not a complete IDX file of unsigned bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
