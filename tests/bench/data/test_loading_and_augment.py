"""Data sets, splits, labelled subsets, and the two augmented views."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest
import torch
from support.tiny_archives import md5
from torchvision import datasets

from varloss_bench.commands import checks
from varloss_bench.config import MAX_EPOCHS, TrialConfig
from varloss_bench.data import fashion as data_fashion
from varloss_bench.data import loading
from varloss_bench.training import augment


@pytest.fixture(scope="module")
def digits():
    return loading.load("digits")


def test_digits_are_whole_and_scaled(digits):
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (float(digits.images.min()), float(digits.images.max())) == (0.0, 1.0)
    assert sum(digits.sizes) == len(digits.labels)


def test_splits_are_disjoint_whole_and_drawn_by_the_seed(digits):
    marked = loading.Source(
        torch.arange(1797.0).reshape(-1, 1, 1, 1), digits.labels, 10, digits.sizes, digits.rotation, digits.scale, False
    )
    first, again, other = loading.split(marked, 0), loading.split(marked, 0), loading.split(marked, 1)
    ids = torch.cat([part.images.flatten() for part in (first.train, first.val, first.test)])
    assert sorted(ids.tolist()) == list(range(1797))
    assert [len(part) for part in (first.train, first.val, first.test)] == [997, 300, 500]
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    assert torch.equal(first.test.labels, digits.labels[first.test.images.flatten().long()])


def test_few_labels_are_balanced_and_drawn_by_the_seed(digits):
    labels = loading.split(digits, 0).train.labels
    subsets = loading.few_labels(labels, 10, seed=3, draws=5)
    assert len(subsets) == 5
    for subset in subsets:
        assert labels[subset].bincount().tolist() == [10] * 10
        assert len(subset.unique()) == 100
    assert not torch.equal(subsets[0], subsets[1])
    assert all(torch.equal(a, b) for a, b in zip(subsets, loading.few_labels(labels, 10, 3, 5), strict=True))


def test_too_few_labels_is_an_error():
    with pytest.raises(loading.DataError, match="class 1 has only 2"):
        loading.few_labels(torch.tensor([0] * 10 + [1] * 2), 5, seed=0, draws=1)


def test_unknown_data_set():
    with pytest.raises(
        loading.DataError, match="unknown data set 'cifar'; known data sets: digits, fashion-mnist, fashion-pairs"
    ):
        loading.load("cifar")


def write_idx(path, values):
    values = np.asarray(values, dtype=np.uint8)
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def test_fashion_mnist_reads_idx_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 28, 28))
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(20) % 10)
    source = loading.load("fashion-mnist", str(tmp_path), sizes=(10, 5, 5))
    assert torch.equal((source.images * 255).round().long(), torch.from_numpy(pixels).unsqueeze(1))
    assert source.labels.tolist() == [i % 10 for i in range(20)]


def test_pairs_use_every_garment_once_whole_and_half_its_size(tmp_path):
    # Each image has a different uniform grey, so that pixels identify a garment.
    pixels = np.broadcast_to(np.arange(1, 241).reshape(-1, 1, 1), (240, 28, 28))
    garment_labels = torch.arange(240) * 7 % 10
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", garment_labels)
    source = loading.load("fashion-pairs", str(tmp_path), sizes=(60, 30, 30))
    assert source.images.shape == (120, 1, 32, 18)
    used, places = [], set()
    for image, label in zip((source.images[:, 0] * 255).round().long(), source.labels, strict=True):
        ids = []
        for half in (image[:16], image[16:]):
            grey = half.max()
            assert torch.equal(half.unique(), torch.tensor([0, int(grey)]))
            rows, columns = (half == grey).nonzero().unbind(1)
            assert len(rows) == 14 * 14
            assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (13, 13)
            places.add((int(rows.min()), int(columns.min())))
            ids.append(int(grey) - 1)
        assert label == 10 * garment_labels[ids[0]] + garment_labels[ids[1]]
        used += ids
    assert sorted(used) == list(range(240))
    assert places == {(row, column) for row in range(3) for column in range(5)}
    assert torch.equal(source.images, loading.load("fashion-pairs", str(tmp_path), sizes=(60, 30, 30)).images)


def test_pairs_are_halved_by_averaging(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(4, 28, 28))
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([3, 3, 3, 3]))
    source = loading.load("fashion-pairs", str(tmp_path), sizes=(2, 0, 0))
    assert source.labels.tolist() == [33, 33]
    averaged = pixels.reshape(4, 14, 2, 14, 2).mean((2, 4)) / 255
    assert float(source.images.sum()) == pytest.approx(averaged.sum())


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Debian's files are missing, and downloads fail."""
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{(tmp_path / 'mirror').as_uri()}/"])
    monkeypatch.setattr(data_fashion, "FASHION_MNIST_DIR", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_fashion_mnist(folder, parts=("train", "t10k")):
    """Twenty images of each part, and their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = {part: np.random.default_rng(i).integers(0, 256, size=(20, 28, 28)) for i, part in enumerate(parts)}
    for part in parts:
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels[part])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(20) % 10)
    return pixels


@pytest.fixture
def published(nowhere, served, monkeypatch):
    """Pixels of files that torchvision accepts as the published ones, and their folder."""
    folder, address = served
    pixels = write_fashion_mnist(folder)
    resources = [(name, md5(folder / name)) for name, _ in datasets.FashionMNIST.resources]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{address}/"])
    return pixels, folder


def load_tiny(folder=None, **options):
    source = loading.load("fashion-mnist", folder and str(folder), sizes=(10, 5, 5), **options)
    return (source.images[:, 0] * 255).round().long().numpy()


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-pairs"])
@pytest.mark.usefixtures("nowhere")
def test_missing_fashion_mnist_says_where_to_get_it(name, tmp_path):
    names = r"\(train-images-idx3-ubyte\.gz and train-labels-idx1-ubyte\.gz\)"
    rest = r"it could not be downloaded: .*--data-dir.*apt-get install dataset-fashion-mnist"
    with pytest.raises(loading.DataError, match=rf"{names} is not in {tmp_path}/here, and {rest}"):
        loading.load(name, str(tmp_path / "here"))
    with pytest.raises(
        loading.DataError, match=rf"is not in {tmp_path}/debian or {tmp_path}/cache/varloss-bench, and {rest}"
    ):
        loading.load(name)
    write_fashion_mnist(tmp_path / "half")
    (tmp_path / "half" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(loading.DataError, match=r"half/train-labels-idx1-ubyte\.gz does not exist\. .*apt-get"):
        loading.load(name, str(tmp_path / "half"))
    (tmp_path / "file").touch()
    with pytest.raises(loading.DataError, match=r"could not be downloaded: .*Not a directory"):
        loading.load(name, str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("asked", [True, False])
def test_fashion_mnist_is_downloaded_where_it_is_not(asked, tmp_path, published):
    pixels, mirror = published
    folder = tmp_path / "here" / "and" / "new" if asked else None
    assert np.array_equal(load_tiny(folder), pixels["train"])
    assert ((folder or tmp_path / "cache" / "varloss-bench") / "FashionMNIST" / "raw").is_dir()
    assert (tmp_path / "cache").is_dir() != asked
    for file in mirror.iterdir():  # the second time nothing is downloaded
        file.unlink()
    assert np.array_equal(load_tiny(folder), pixels["train"])


@pytest.mark.usefixtures("nowhere")
def test_fashion_mnist_that_is_there_is_not_downloaded(tmp_path):
    debian, named = write_fashion_mnist(tmp_path / "debian"), write_fashion_mnist(tmp_path / "named", ["t10k", "train"])
    assert np.array_equal(load_tiny(), debian["train"])  # found by itself
    assert np.array_equal(load_tiny(tmp_path / "named"), named["train"])  # a folder named wins
    assert not np.array_equal(debian["train"], named["train"])
    assert not (tmp_path / "named" / "FashionMNIST").exists()


@pytest.mark.usefixtures("nowhere")
def test_only_the_files_that_are_needed_are_asked_for(tmp_path):
    train = write_fashion_mnist(tmp_path / "named", ["train"])
    assert np.array_equal(load_tiny(tmp_path / "named"), train["train"])
    with pytest.raises(loading.DataError, match=r"\(t10k-images-idx3-ubyte\.gz and .* is not in"):
        load_tiny(tmp_path / "named", official_test=True)


def test_only_the_files_that_lack_are_downloaded(tmp_path, published):
    train = write_fashion_mnist(tmp_path / "named", ["t10k", "train"])["train"]
    for file in (tmp_path / "named").glob("t10k*"):
        file.unlink()
    source = loading.load("fashion-mnist", str(tmp_path / "named"), sizes=(10, 5, 5), official_test=True)
    assert np.array_equal((source.images[:, 0] * 255).round().long().numpy(), train)
    assert np.array_equal((source.official_test.images[:, 0] * 255).round().long().numpy(), published[0]["t10k"])


@pytest.mark.parametrize("cut", [3, 30, 200])
def test_cut_idx_file_is_named(tmp_path, cut):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((20, 28, 28)))
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:cut]))
    with pytest.raises(loading.DataError, match=r"train-images-idx3-ubyte\.gz is not a complete IDX file"):
        loading.load("fashion-mnist", str(tmp_path))
    path.write_bytes(b"not gzip")
    with pytest.raises(loading.DataError, match="cannot be read"):
        loading.load("fashion-mnist", str(tmp_path))


def make_loader(digits, batch_size=16, seed=0, **changes):
    return augment.TwoViewLoader(
        loading.split(digits, seed).train, augment.build_augmentation(digits), batch_size, seed, **changes
    )


def test_every_sample_and_every_view_has_its_own_parameters(digits):
    image = digits.images[:1].expand(64, -1, -1, -1)
    first, second = augment.two_views(image, augment.build_augmentation(digits), seed=0)
    flat = torch.cat([first, second]).flatten(1)
    assert len(flat.unique(dim=0)) == 128


def test_views_depend_on_the_seed_alone_and_leave_the_global_state(digits):
    augmentation, images = augment.build_augmentation(digits), digits.images[:32]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    views = augment.two_views(images, augmentation, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert all(map(torch.equal, views, augment.two_views(images, augmentation, seed=5)))
    assert not torch.equal(views[0], augment.two_views(images, augmentation, seed=6)[0])


def test_epochs_are_whole_differ_and_do_not_depend_on_what_training_draws(digits):
    quiet, noisy = make_loader(digits), make_loader(digits)
    for _ in range(2):
        for a, b in zip(quiet, noisy, strict=True):
            torch.rand(7)  # dropout, say
            assert all(map(torch.equal, a, b))
    assert len(quiet) == 997 // 16 == len(list(quiet))
    assert not torch.equal(quiet.order(0), quiet.order(1))
    assert sorted(quiet.order(0).tolist()) == list(range(997))


def test_batches_follow_the_order_and_both_views_are_of_one_image(digits):
    split = loading.split(digits, 0).train
    loader = augment.TwoViewLoader(split, torch.nn.Identity(), 16, 0)
    for epoch in range(2):
        order = loader.order(epoch)
        for number, (first, second) in enumerate(loader):
            assert torch.equal(first, split.images[order[16 * number : 16 * (number + 1)]])
            assert torch.equal(first, second)


def test_blocks_cut_an_epoch_without_losing_a_batch(digits):
    whole, pieces = make_loader(digits), make_loader(digits, max_block_bytes=8 * 64 * 4 * 100)
    batches = list(pieces)
    assert len(batches) == len(whole)
    # The first block is drawn by the same seed; sizes differ, so only shapes and order can be compared.
    assert {tuple(view.shape) for batch in batches for view in batch} == {(16, 1, 8, 8)}


def test_seeds_of_augmentations_never_meet_within_what_is_allowed():
    last = augment.epoch_seed(3, MAX_EPOCHS - 1, block=9999)
    assert last < augment.epoch_seed(3, MAX_EPOCHS) < augment.epoch_seed(4, 0)
    trial = TrialConfig(batch_size=128)
    checks.check_trials([dataclasses.replace(trial, epochs=MAX_EPOCHS)])
    checks.check_trials([dataclasses.replace(trial, epochs=0, steps=7 * MAX_EPOCHS)])
    for length in ({"epochs": 10000}, {"epochs": 0, "steps": 7 * MAX_EPOCHS + 1}):
        with pytest.raises(
            ValueError, match=r"--epochs, or the epochs that --steps needs, must be at most 9999, got 10000"
        ):
            checks.check_trials([dataclasses.replace(trial, **length)])


def test_solo_learn_may_train_for_longer(monkeypatch):
    monkeypatch.delenv("SOLO_LEARN_ROOT", raising=False)
    trial = TrialConfig(framework="solo", backbone="resnet18", fused=False, batch_size=128, epochs=10000)
    with pytest.raises(ValueError, match="needs a checkout of solo-learn"):  # the last thing that is looked at
        checks.check_trials([trial])


@pytest.mark.parametrize("batch_size", [1, 998])
def test_batch_size_that_gives_no_batch(digits, batch_size):
    with pytest.raises(ValueError, match=f"from 2 to the 997 samples, got {batch_size}"):
        make_loader(digits, batch_size=batch_size)
