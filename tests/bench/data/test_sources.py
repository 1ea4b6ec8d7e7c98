"""Data sets from files: torchvision's archives, folders of images, official test splits, other sizes."""

import dataclasses
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_archives import accept, md5, pixels_of, write_cifar
from torchvision import datasets

from varloss_bench.config import TrialConfig
from varloss_bench.data import fashion as data_fashion
from varloss_bench.data import folder as data_folder
from varloss_bench.data import loading
from varloss_bench.data import types as data_types
from varloss_bench.grid import untrained
from varloss_bench.records import provenance
from varloss_bench.training import augment, evaluate
from varloss_bench.training.trial import run_trial
from varloss_bench.training.untrained import features as features_without_training


@pytest.fixture(
    params=[("cifar10", datasets.CIFAR10, "labels", 10), ("cifar100", datasets.CIFAR100, "fine_labels", 100)]
)
def cifar(request, tmp_path, monkeypatch):
    name, dataset, label_name, classes = request.param
    train_labels, test_labels = [i * 3 % classes for i in range(40)], [i % classes for i in range(7)]
    base, train, test = write_cifar(tmp_path / "data", dataset, label_name, train_labels, test_labels)
    accept(monkeypatch, dataset, base)
    return name, dataset, tmp_path / "data", (train, train_labels), (test, test_labels)


SIZES = (20, 10, 10)


def test_cifar_is_read_from_its_files(cifar):
    name, _dataset, folder, (pixels, labels), (test_pixels, test_labels) = cifar
    source = loading.load(name, str(folder), sizes=SIZES)
    assert source.images.dtype == torch.uint8
    assert torch.equal(source.images, torch.from_numpy(pixels))
    assert source.labels.tolist() == labels
    assert (source.labels.dtype, source.num_classes) == (torch.int64, int(name.removeprefix("cifar")))
    assert source.official_test is None
    tested = loading.load(name, str(folder), sizes=(30, 10, None), official_test=True)
    assert tested.sizes == (30, 10, 7)
    assert torch.equal(tested.official_test.images, torch.from_numpy(test_pixels))
    assert tested.official_test.labels.tolist() == test_labels


def test_cifar_is_downloaded_where_it_is_not(cifar, served, tmp_path, monkeypatch):
    name, dataset, folder, (pixels, _), _ = cifar
    archive = served[0] / dataset.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / dataset.base_folder, arcname=dataset.base_folder)
    monkeypatch.setattr(dataset, "url", f"{served[1]}/{dataset.filename}")
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert torch.equal(loading.load(name, sizes=SIZES).images, torch.from_numpy(pixels))
    assert (data_types.download_folder() / dataset.base_folder).is_dir()
    archive.unlink()  # the second time nothing is downloaded
    assert torch.equal(loading.load(name, sizes=SIZES).images, torch.from_numpy(pixels))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_neither_files_nor_network(name, tmp_path, monkeypatch):
    monkeypatch.setattr(getattr(datasets, name.upper()), "url", (tmp_path / "nowhere.tar.gz").as_uri())
    with pytest.raises(loading.DataError, match=rf"{name} is not in .*could not be downloaded.*\.tar\.gz .*--data-dir"):
        loading.load(name, str(tmp_path / "empty"))


def test_a_changed_file_is_not_taken_for_the_data_set(cifar, monkeypatch, tmp_path):
    name, dataset, folder, *_ = cifar
    monkeypatch.setattr(dataset, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    with (folder / dataset.base_folder / dataset.train_list[0][0]).open("ab") as file:
        file.write(b"!")
    with pytest.raises(loading.DataError, match=f"{name} is not in"):
        loading.load(name, str(folder))


def test_stl10_is_read_upright(tmp_path, monkeypatch):
    base = tmp_path / datasets.STL10.base_folder
    base.mkdir()
    train, test = pixels_of(12, 96, 1), pixels_of(4, 96, 2)
    for part, images in (("train", train), ("test", test)):
        images.transpose(0, 1, 3, 2).tofile(base / f"{part}_X.bin")  # its files go down the columns, from class 1
        (np.arange(len(images), dtype=np.uint8) % 10 + 1).tofile(base / f"{part}_y.bin")
    (base / "unlabeled_X.bin").write_bytes(b"")
    accept(monkeypatch, datasets.STL10, base)
    source = loading.load("stl10", str(tmp_path), sizes=(8, 2, 3), official_test=True)
    assert torch.equal(source.images, torch.from_numpy(train))
    assert torch.equal(source.official_test.images, torch.from_numpy(test))
    assert source.labels.tolist() == [*range(10), 0, 1]


def test_sizes_and_official_test_of_fashion_mnist():
    folder = data_fashion.FASHION_MNIST_DIR
    if not folder.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    source = loading.load("fashion-mnist", sizes=(59000, 1000, None), official_test=True)
    assert (source.sizes, len(source.labels), len(source.official_test)) == ((59000, 1000, 10000), 60000, 10000)
    splits = loading.split(source, 0)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [59000, 1000, 10000]
    assert splits.test.labels.bincount().tolist() == [1000] * 10
    assert not torch.equal(source.images[:10000], source.official_test.images)


def numbered(count, sizes, official=None):
    test = (
        None
        if official is None
        else loading.Split(torch.arange(1000, 1000 + official).view(-1, 1, 1, 1), torch.zeros(official))
    )
    return loading.Source(
        torch.arange(count).view(-1, 1, 1, 1), torch.zeros(count).long(), 1, sizes, 0.0, (1.0, 1.0), False, test
    )


def test_an_official_test_split_is_tested_on_and_never_trained_on():
    source = numbered(30, (20, 10, 4), official=6)
    splits = loading.split(source, 0)
    drawn = torch.cat([splits.train.images, splits.val.images]).flatten()
    assert sorted(drawn.tolist()) == list(range(30))
    tested = splits.test.images.flatten().tolist()
    assert len(set(tested)) == 4
    assert set(tested) <= set(range(1000, 1006))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((1700, None, None), {}, "digits has 1797 samples, its splits need 2500"),
        ((1, None, None), {}, "--num-train must be at least 2"),
        ((None, -1, None), {}, "--num-val and --num-test at least 0, got 997, -1, 500"),
        ((None, None, None), {"official_test": True}, "digits have no official test split"),
        ((None, None, None), {"image_size": 32}, "--image-size is for imagefolder:PATH"),
    ],
)
def test_sizes_that_cannot_be(sizes, options, message):
    with pytest.raises(loading.DataError, match=message):
        loading.load("digits", sizes=sizes, **options)


def test_sizes_are_those_asked_for():
    source = loading.load("digits", sizes=(1200, None, 100))
    assert source.sizes == (1200, 300, 100)
    # With more images, the first ones that a seed draws stay the same.
    assert torch.equal(
        loading.split(source, 3).train.images[:997], loading.split(loading.load("digits"), 3).train.images
    )


def test_a_class_too_small_for_the_probes_is_known_before_training():
    source = loading.load("digits", sizes=(120, None, None))
    with pytest.raises(loading.DataError, match=r"need 10 training samples of every class, but of the 120 that seed 5"):
        loading.check_labels(source, 5, 10)
    loading.check_labels(loading.load("digits"), 5, 10)


# Folders of images


def save(path, pixels, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    image.convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, all modes and shapes; `square` is what its images become at 8 pixels."""
    square = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    save(tmp_path / "b" / "1.png", square)
    save(tmp_path / "b" / "2.png", square[:, :, 0], "L")
    save(tmp_path / "a" / "transparent.png", np.dstack([square, np.full((8, 8), 9, np.uint8)]), "RGBA")
    save(tmp_path / "a" / "deep" / "wide.png", np.hstack([np.zeros((8, 4, 3)), square, np.zeros((8, 4, 3))]))
    save(tmp_path / "a" / "tall.bmp", np.full((60, 20, 3), 77))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path, torch.from_numpy(square).permute(2, 0, 1)


def test_images_of_all_kinds_become_squares_in_colour(folder):
    path, square = folder
    source = loading.load(f"imagefolder:{path}", image_size=8)
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert (source.images.shape, source.images.dtype, source.num_classes) == ((5, 3, 8, 8), torch.uint8, 2)
    wide, tall, transparent, plain, grey = source.images
    assert torch.equal(wide, square)  # centre cropped
    assert torch.equal(tall, torch.full((3, 8, 8), 77, dtype=torch.uint8))  # shrunk
    assert torch.equal(transparent, square)
    assert torch.equal(plain, square)
    assert torch.equal(grey, square[:1].expand(3, -1, -1))
    assert source.sizes == (3, 1, 1)
    assert loading.load(f"imagefolder:{path}").images.shape == (5, 3, 32, 32)


def test_official_test_of_a_folder_with_train_and_val(folder):
    path, _ = folder
    root = path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (path / name).rename(root / name)
    whole = path / "both"
    (whole / "train").mkdir(parents=True)
    for name in ("a", "b"):
        (root / name).rename(whole / "train" / name)
        save(whole / "val" / name / "x.png", np.full((8, 8, 3), 5 if name == "a" else 6))
    source = loading.load(f"imagefolder:{whole}", image_size=8, sizes=(3, 2, None), official_test=True)
    assert source.sizes == (3, 2, 2)
    assert source.official_test.images[:, 0, 0, 0].tolist() == [5, 6]
    assert len(loading.load(f"imagefolder:{whole}", image_size=8).labels) == 5
    save(whole / "val" / "c" / "x.png", np.zeros((8, 8, 3)))
    with pytest.raises(loading.DataError, match="different classes: c"):
        loading.load(f"imagefolder:{whole}", image_size=8, official_test=True)


def test_a_corrupt_image_is_named(folder):
    path, _ = folder
    bad = path / "a" / "tall.bmp"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(loading.DataError, match=r"a/tall\.bmp cannot be read as an image.*tall\.bmp\.broken"):
        loading.load(f"imagefolder:{path}")
    bad.write_bytes(b"not an image")
    with pytest.raises(loading.DataError, match=r"a/tall\.bmp cannot be read"):
        loading.load(f"imagefolder:{path}")
    bad.rename(f"{bad}.broken")
    assert len(loading.load(f"imagefolder:{path}").labels) == 4


DEEP = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)


@pytest.mark.parametrize("name", ["16.png", "16.tif", "16.pgm", "big-endian.tif", "12.tif"])
def test_16_bit_greys_are_scaled_and_not_cut_to_white(folder, name):
    path, _ = folder
    file = path / "a" / "tall.bmp"
    file.unlink()
    file = file.with_name(f"tall.{name}")  # last of its class
    if name == "16.pgm":
        file.write_bytes(b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes())
    elif name == "big-endian.tif":
        file.write_bytes(tiff(DEEP.astype(">u2").tobytes(), 16))
    elif name == "12.tif":
        # Two greys in three bytes.
        pairs = (DEEP.reshape(-1, 2) // 16).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        file.write_bytes(tiff(b"".join(int(value).to_bytes(3, "big") for value in packed), 12, "<"))
    else:
        Image.fromarray(DEEP).save(file)
    with Image.open(file) as image:
        assert image.mode.startswith("I")
    grey = loading.load(f"imagefolder:{path}", image_size=8).images[1]
    expected = torch.from_numpy(np.round(DEEP / 65535 * 255).astype(np.uint8))
    if name == "12.tif":
        expected = torch.from_numpy(np.round(DEEP // 16 / 4095 * 255).astype(np.uint8))
    assert torch.equal(grey, expected.expand(3, -1, -1))


def tiff(pixels, bits, order=">"):
    """A grey TIFF of 8 x 8 as PIL reads and does not write it; `order` is that of the bytes in its tags."""
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(pixels)}
    directory = struct.pack(f"{order}H", len(tags))
    for tag, value in tags.items():
        directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    start = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return start + pixels + directory + struct.pack(f"{order}I", 0)


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_greys_without_a_defined_white_are_refused(folder, kind, mode):
    path, _ = folder
    Image.fromarray(DEEP.astype(kind)).save(path / "b" / "deep.tif")
    with pytest.raises(
        loading.DataError, match=rf"b/deep\.tif cannot be read.* mode {mode} .*save it with 8 or 16 bits"
    ):
        loading.load(f"imagefolder:{path}")


def test_folders_that_are_no_data_set(folder, tmp_path):
    path, _ = folder
    with pytest.raises(loading.DataError, match="needs a folder, got '/does/not/exist'"):
        loading.load("imagefolder:/does/not/exist")
    with pytest.raises(loading.DataError, match=r"unknown data set 'imagefolder'; known data sets: .*imagefolder:PATH"):
        loading.load("imagefolder")
    with pytest.raises(loading.DataError, match=r"a has only the class deep; probes need at least two"):
        loading.load(f"imagefolder:{path / 'a'}")
    with pytest.raises(loading.DataError, match="b has no folders"):
        loading.load(f"imagefolder:{path / 'b'}")
    with pytest.raises(loading.DataError, match="--official-test needs the folders train and test"):
        loading.load(f"imagefolder:{path}", official_test=True)
    with pytest.raises(loading.DataError, match="at least 8 pixels, got 4"):
        loading.load(f"imagefolder:{path}", image_size=4)
    (path / "c").mkdir()
    with pytest.raises(loading.DataError, match=r"class c of .* has no images"):
        loading.load(f"imagefolder:{path}")


@pytest.mark.parametrize(
    ("size", "gib"),
    # Bytes twice, and pixels as features in 16 bytes, of at most 32 x 32 above 64 pixels: an ImageNet-100 and half of one.
    [(224, 126700 * 3 * (2 * 224**2 + 16 * 32**2) / 2**30), (64, 126700 * 3 * 18 * 64**2 / 2**30)],
)
def test_memory_is_that_of_bytes_and_of_the_raw_pixels_row(size, gib, monkeypatch, tmp_path):
    monkeypatch.setattr(data_folder, "_memory", lambda: int(2 * gib * 2**30) + 2)
    data_folder._require_memory(tmp_path, 126700, size)
    monkeypatch.setattr(data_folder, "_memory", lambda: int(2 * gib * 2**30) - 2)
    with pytest.raises(loading.DataError, match=f"need {gib:.1f} GiB of memory in each worker process"):
        data_folder._require_memory(tmp_path, 126700, size)


def test_where_memory_is_not_told_nothing_is_refused_for_it(folder, monkeypatch):
    path, _ = folder
    monkeypatch.delattr(data_folder.os, "sysconf")
    assert data_folder._memory() is None
    assert len(loading.load(f"imagefolder:{path}", image_size=8).labels) == 5


def test_more_pixels_than_memory_are_refused_before_they_are_read(folder, monkeypatch):
    path, _ = folder
    monkeypatch.setattr(data_folder, "_read", None)  # calling it would fail
    with pytest.raises(loading.DataError, match=r"5 images .* need [\d.]+ GiB of memory .* smaller --image-size"):
        loading.load(f"imagefolder:{path}", image_size=10**6)


# Images as bytes


def test_bytes_are_the_floats_they_stand_for():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = torch.from_numpy(np.arange(256).astype(np.float32) / 255.0).view(1, 1, 16, 16)
    assert torch.equal(loading.as_float(values), floats)
    assert loading.as_float(floats) is floats
    assert torch.equal(evaluate.encode(torch.nn.Flatten(), values), floats.flatten(1))


@pytest.fixture(scope="module")
def colourful():
    images = torch.from_numpy(pixels_of(64, 32))
    return loading.Source(images, torch.arange(64) % 2, 2, (32, 16, 16), 0.0, (0.08, 1.0), flip=True)


def test_colour_views_are_cropped_coloured_and_each_their_own(colourful):
    augmentation = augment.build_augmentation(colourful)
    one = colourful.images[:1].expand(200, -1, -1, -1)
    first, second = augment.two_views(one, augmentation, seed=0)
    views = torch.cat([first, second])
    assert views.shape == (400, 3, 32, 32)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    assert len(views.flatten(1).unique(dim=0)) == 400
    grey = (views - views.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.1 < float(grey.double().mean()) < 0.3  # p = .2
    again = augment.two_views(loading.as_float(one), augmentation, seed=0)
    assert torch.equal(again[0], first)


def test_jitter_is_stronger_on_large_images_and_grey_has_none():
    def jitter(size, channels):
        images = torch.zeros(2, channels, size, size)
        source = loading.Source(images, torch.arange(2), 2, (2, 0, 0), 0.0, (0.5, 1.0), flip=True)
        return [step for step in augment.build_augmentation(source) if type(step).__name__ == "ColorJitter"]

    assert "hue=0.1" in str(jitter(32, 3)[0])
    assert "hue=0.2" in str(jitter(64, 3)[0])
    assert jitter(32, 1) == []


def test_bytes_are_augmented_as_the_floats_in_any_blocks(colourful):
    split = loading.split(colourful, 0).train
    floats = loading.Split(loading.as_float(split.images), split.labels)
    augmentation = augment.build_augmentation(colourful)
    limit = 8 * 3 * 32 * 32 * 4 * 16  # of 16 images

    def epoch(part):
        return list(augment.TwoViewLoader(part, augmentation, 8, 0, max_block_bytes=limit))

    for ours, theirs in zip(epoch(split), epoch(floats), strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.usefixtures("trains")
def test_trials_of_a_folder_in_colour(tmp_path):
    random = np.random.default_rng(0)
    for name, colour in (("green", (40, 200, 40)), ("red", (200, 40, 40))):
        for i in range(40):
            save(tmp_path / name / f"{i}.png", (random.normal(colour, 30, (20, 24, 3))).clip(0, 255))
    base = TrialConfig(data=f"imagefolder:{tmp_path}", image_size=16, epochs=1, batch_size=8, weight=3.0)
    for method in ("raw-pixels", "random-init", "simclr"):
        outcome = run_trial(dataclasses.replace(base, method=method))
        assert (outcome["num_train"], outcome["num_evaluated"]) == (48, 16)
        # Red and green stay different under every augmentation.
        assert outcome["metrics"]["few_label_probe"] > 95
        assert outcome["metrics"]["knn"] > 95
    assert outcome["steps"] == 6
    assert outcome["timing"]["augmented_images_per_second"] > 0


def test_raw_pixels_of_large_images_are_averaged_and_the_row_says_so(tmp_path):
    images = torch.from_numpy(pixels_of(20, 96))
    splits = loading.Split(images[:12], torch.arange(12) % 2), loading.Split(images[12:], torch.arange(8) % 2)
    source = loading.Source(images, torch.arange(20) % 2, 2, (12, 0, 8), 0.0, (0.08, 1.0), flip=True)
    row = untrained(TrialConfig(data=f"imagefolder:{tmp_path}", image_size=96), "raw-pixels", seed=0)
    assert row.raw_pixels_side == 32
    assert provenance.confounds(row) == {"raw_pixels": "averaged to 32 x 32 before the probes"}
    for features, split in zip(features_without_training(row, source, *splits), splits, strict=True):
        averaged = loading.as_float(split.images).reshape(-1, 3, 32, 3, 32, 3).mean((3, 5)).flatten(1)
        torch.testing.assert_close(features, averaged)


@pytest.mark.parametrize(
    "base",
    [
        TrialConfig(),
        TrialConfig(data="stl10"),  # of 96 pixels, but never more than 5000
        TrialConfig(data="imagefolder:x"),
        TrialConfig(data="imagefolder:x", image_size=64),
    ],
)
def test_raw_pixels_of_all_others_are_taken_as_they_are(base):
    row = untrained(base, "raw-pixels", seed=0)
    assert row.raw_pixels_side is None
    assert provenance.confounds(row) is None
    assert dataclasses.replace(row, raw_pixels_side=32).key() != row.key()
    large = dataclasses.replace(base, image_size=224)
    assert untrained(large, "random-init", seed=0).raw_pixels_side is None


def test_raw_pixels_are_of_the_same_scale_as_bytes_and_as_floats(colourful):
    split = loading.split(colourful, 0)
    config = TrialConfig(method="raw-pixels")
    features, held_out = features_without_training(config, colourful, split.train, split.test)
    assert torch.equal(features, loading.as_float(split.train.images).flatten(1))
    assert torch.equal(held_out, loading.as_float(split.test.images).flatten(1))
