"""A folder of images with one subfolder per class; the images are held in memory as bytes."""

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
# Without subfolders for splits: the fraction of training images; validation and test share the rest equally.
TRAIN_SHARE = 0.6
# Two copies in single precision and one in double.
_RAW_PIXEL_BYTES = 4 + 4 + 8


def image_folder(request: Request) -> Source:
    """Class folders of images that PIL reads. Each image is scaled by its shorter side, cropped to a square and made RGB.

    The layout is PATH/CLASS/*.png, or PATH/train/CLASS/*.png with PATH/test or PATH/val as the published test split.

    Raises:
        DataError: The folder does not exist, has fewer than two classes, has a class without images or an image that cannot
            be read (the message names it), or has more pixels than fit into half of the memory.
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
    """The folders of the classes: the folder itself, or its `train` and `test` or `val` if it has no other subfolders."""
    names = {folder.name for folder in _subfolders(root)}
    if "train" in names and names <= {"train", "val", "test"}:
        return root / "train", next((root / name for name in ("test", "val") if name in names), None)
    return root, None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path) -> dict[str, list[Path]]:
    """Image files by class, both sorted by name, so the order is the same on every machine."""
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
            raise DataError(f"class {name} of {root} has no images; remove its folder or add images")
    return found


def _require_memory(root: Path, count: int, size: int) -> None:
    """Raise `DataError` if the peak memory of a worker process exceeds half of the machine's memory.

    The peak is two copies of the images as bytes (whole and split), and the raw-pixels row as floats, as standardised floats and
    in double precision, which the regression uses.
    """
    side = size if size <= LARGEST_RAW_SIDE else POOLED_RAW_SIDE
    needed, there = count * 3 * (2 * size**2 + _RAW_PIXEL_BYTES * side**2), _memory()
    if there is not None and needed > there / 2:
        raise DataError(
            f"{count} images of {root} at {size} x {size} pixels need {needed / 2**30:.1f} GiB of memory in each worker "
            f"process, and this machine has {there / 2**30:.1f} GiB; use a smaller --image-size"
        )


def _memory() -> int | None:
    """Bytes of memory of this machine; None if `sysconf` is not available (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _read(files: dict[str, list[Path]], size: int) -> Split:
    paths: Sequence[Path] = [path for of_class in files.values() for path in of_class]
    labels = [label for label, of_class in enumerate(files.values()) for _ in of_class]
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    # Threads suffice, because PIL releases the interpreter's lock while it decodes.
    with ThreadPoolExecutor() as pool:
        for image, pixels in zip(images, pool.map(partial(_read_image, size=size), paths), strict=True):
            image.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
    return Split(images, torch.tensor(labels))


def _read_image(path: Path, size: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """(size, size, 3) bytes; grey becomes RGB, transparency is dropped."""
    try:
        with Image.open(path) as image:
            # A copy, because torch needs a writable array and a view of PIL's buffer is read-only.
            return np.array(ImageOps.fit(_in_bytes(image).convert("RGB"), (size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}. Repair the file, or exclude it by changing its extension "
            f"({path.name}.broken)"
        ) from error


def _in_bytes(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel. 16-bit grey images are scaled here; PIL would clip all values above 255 to white.

    Raises:
        ValueError: The greys are 32-bit integers or floats, for which files do not define white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    # Some versions of PIL use mode I for 16-bit PNG and PGM; all versions use it for 32-bit or signed TIFF.
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise ValueError(
            f"its greys are of mode {image.mode} (32-bit integers or floats), for which no white is defined; save it with 8 "
            "or 16 bits"
        )
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # scanners and microscopes may use only 12 of the 16 bits
        (bits, *_) = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    white = 2**bits - 1
    greys = np.asarray(image).astype(np.int64)
    return Image.fromarray(((greys * 255 + white // 2) // white).clip(0, 255).astype(np.uint8))
