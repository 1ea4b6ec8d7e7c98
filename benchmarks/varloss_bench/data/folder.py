"""A folder of images, one subfolder for each class, in memory as bytes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from varloss_bench.data.types import CROP_AREA, DataError, Request, Source, Split
from varloss_bench.grid import LARGEST_RAW_SIDE, POOLED_RAW_SIDE

DEFAULT_IMAGE_SIZE = 32
# Of the images without names of splits: trained on, and of what is left one half for choosing, one for the test.
TRAIN_SHARE = 0.6
# Two copies in single precision, one in double.
_RAW_PIXEL_BYTES = 4 + 4 + 8


def image_folder(request: Request) -> Source:
    """Class folders of images that PIL reads, brought to a square: shorter side to size, centre cropped, RGB.

    PATH/CLASS/*.png, or PATH/train/CLASS/*.png beside PATH/test or PATH/val, which is then the published test split.

    Raises:
        DataError: No folder, fewer than two classes, a class without images, an image that cannot be read (it is named),
            or more pixels than half of the memory holds.
    """
    root = request.path
    if root is None or not root.is_dir():
        raise DataError(f"imagefolder needs a folder, got {str(root)!r}")
    size = request.image_size or DEFAULT_IMAGE_SIZE
    if size < 8:
        raise DataError(f"--image-size must be at least 8 pixels, got {size}")
    train_root, test_root = _parts(root)
    if request.official_test and test_root is None:
        raise DataError(f"--official-test needs the folders train and test (or val) in {root}")
    train_files = _files(train_root)
    classes = list(train_files)
    test_files = _files(test_root) if test_root is not None and request.official_test else None
    if test_files is not None and list(test_files) != classes:
        different = sorted(set(classes).symmetric_difference(test_files))
        raise DataError(f"{train_root} and {test_root} have different classes: {', '.join(different)}")
    count = sum(len(files) for part in (train_files, test_files or {}) for files in part.values())
    _require_memory(root, count, size)
    train = _read(train_files, size)
    held_out = round(len(train) * (1 - TRAIN_SHARE) / 2)
    return Source(
        train.images,
        train.labels,
        len(classes),
        (len(train) - 2 * held_out, held_out, held_out),
        rotation=0.0,
        scale=CROP_AREA,
        flip=True,
        official_test=None if test_files is None else _read(test_files, size),
    )


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Where the classes are: in the folder itself, or in its `train` and `test` or `val` if it has nothing else."""
    names = {folder.name for folder in _subfolders(root)}
    if "train" in names and names <= {"train", "val", "test"}:
        return root / "train", next((root / name for name in ("test", "val") if name in names), None)
    return root, None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path) -> dict[str, list[Path]]:
    """Image files by class, both in the order of their names: the same on every machine."""
    endings = set(Image.registered_extensions())
    found = {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
        for folder in _subfolders(root)
    }
    if len(found) < 2:
        has = f"only the class {next(iter(found))}" if found else "no folders"
        raise DataError(f"{root} has {has}; probes need at least two classes, each a folder of images")
    for name, files in found.items():
        if not files:
            raise DataError(f"class {name} of {root} has no images; remove its folder or fill it")
    return found


def _require_memory(root: Path, count: int, size: int) -> None:
    """Half of the memory has to hold what every worker process keeps at its largest moment.

    That is the images as bytes twice, whole and split, and the raw-pixels row: as floats, standardised, and as the double
    precision that the regression computes in.
    """
    side = size if size <= LARGEST_RAW_SIDE else POOLED_RAW_SIDE
    needed, there = count * 3 * (2 * size**2 + _RAW_PIXEL_BYTES * side**2), _memory()
    if there is not None and needed > there / 2:
        raise DataError(
            f"{count} images of {root} at {size} x {size} pixels need {needed / 2**30:.1f} GiB of memory in each worker "
            f"process, and this machine has {there / 2**30:.1f} GiB; ask for a smaller --image-size"
        )


def _memory() -> int | None:
    """Bytes of memory of this machine, None where it does not tell them so (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _read(files: dict[str, list[Path]], size: int) -> Split:
    paths: Sequence[Path] = [path for of_class in files.values() for path in of_class]
    labels = [label for label, of_class in enumerate(files.values()) for _ in of_class]
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    # Threads suffice: PIL decodes without holding the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        for image, pixels in zip(images, pool.map(partial(_read_image, size=size), paths), strict=True):
            image.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return Split(images, torch.tensor(labels))


def _read_image(path: Path, size: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """(size, size, 3) bytes; grey becomes RGB, transparency is dropped."""
    try:
        with Image.open(path) as image:
            # Writable, as torch wants it: a view of PIL's buffer is not.
            return np.array(ImageOps.fit(_in_bytes(image).convert("RGB"), (size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}. Mend it, or leave it out by giving it another ending "
            f"({path.name}.broken)"
        ) from error


def _in_bytes(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel. Those of 16-bit greys are scaled here: PIL would cut everything above 255 to white.

    Raises:
        ValueError: Greys of 32 bits or floats, of which no file says what white is.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    # PIL calls PNG and PGM of 16 bits I in some of its versions, and TIFF of 32 bits or with a sign always.
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise ValueError(
            f"its greys are of mode {image.mode} (32-bit integers or floats), for which no white is defined; save it with 8 "
            "or 16 bits"
        )
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # scanners and microscopes write 12 of them, too
        (bits, *_) = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    white = 2**bits - 1
    greys = np.asarray(image).astype(np.int64)
    return Image.fromarray(((greys * 255 + white // 2) // white).clip(0, 255).astype(np.uint8))
