"""The committed recipes: their options exist, missing data gives a clear error, the grids match their README, and they train."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.tiny_archives import accept, write_cifar
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets
from typer.testing import CliRunner

from varloss_bench.cli import app
from varloss_bench.execution import workers
from varloss_bench.execution.execute import execute
from varloss_bench.training import backbones
from varloss_bench.training.trial import _load

RECIPES = Path(__file__).parents[3] / "benchmarks" / "recipes"
# Changes for a machine without a GPU; --dump-config checks everything and runs nothing.
HERE = ["--device", "cpu", "--precision", "32", "--dump-config"]


def dump(name, *options):
    return CliRunner().invoke(app, ["compare", "--config", str(RECIPES / f"{name}.yaml"), *HERE, *options])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_recipes_ask_for_the_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(getattr(datasets, name.upper()), "url", (tmp_path / "nowhere").as_uri())
    result = dump(name, "--data-dir", str(tmp_path))
    assert result.exit_code == 2
    assert f"{name} is not in {tmp_path}" in result.output
    assert "--data-dir" in result.output


def test_imagenet_recipe_asks_for_the_folder():
    result = dump("imagenet100", "--data", "imagefolder:/not/here")
    assert result.exit_code == 2
    assert "imagefolder needs a folder, got '/not/here'" in result.output


def test_cifar_recipe_is_the_papers(tmp_path, monkeypatch):
    labels = [i % 10 for i in range(200)]
    base, *_ = write_cifar(tmp_path, datasets.CIFAR10, "labels", labels, labels[:50])
    accept(monkeypatch, datasets.CIFAR10, base)
    result = dump("cifar10", "--data-dir", str(tmp_path), "--num-train", "200", "--batch-size", "16")
    assert result.exit_code == 0, result.output
    effective = yaml.safe_load(result.output)
    paper = {"base-lr": 0.3, "weight-decay": 1e-4, "hidden-dim": 512, "output-dim": 128, "epochs": 200, "fused": False}
    assert {name: effective[name] for name in paper} == paper
    assert effective["epochs"] * effective["warmup"] == 10
    assert (effective["weight"], effective["temperature"], effective["num-val"]) == ("0,30", "0.2", 0)


def write_imagenet(path):
    """The folder layout of the recipe, with two classes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 3)):
        for name, colour in (("cat", 60), ("dog", 180)):
            folder = path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(colour, 40, (80, 100, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.JPEG")


def test_imagenet_recipe_runs_on_a_folder_of_that_layout(tmp_path):
    write_imagenet(tmp_path)
    small = ["--image-size", "32", "--num-train", "24", "--batch-size", "8", "--backbone", "resnet18"]
    result = dump("imagenet100", "--data", f"imagefolder:{tmp_path}", *small)
    assert result.exit_code == 0, result.output
    effective = yaml.safe_load(result.output)
    assert (effective["data"], effective["output-dim"], effective["fused"]) == (f"imagefolder:{tmp_path}", 128, False)


# One seed whose accuracies do not differ: the figure's axis of differences then has no extent.
no_extent = pytest.mark.filterwarnings("ignore:Attempting to set identical low and high xlims:UserWarning")


@pytest.fixture
def in_this_process(monkeypatch):
    """Trials run in this process, because workers would not use the tiny archives."""

    def run_trials(configs, folder, command, _):
        for config in configs:
            yield workers.Event(config, 1.0, *execute(config, folder, command))

    monkeypatch.setattr(workers, "run_trials", run_trials)


def trained(name, results, *options):
    """Records of the recipe's trials, by method and weight, from one seed of two steps."""
    short = ["--steps", "2", "--seeds", "1", "--no-interval", "--device", "cpu", "--precision", "32"]
    result = CliRunner().invoke(
        app, ["compare", "--config", str(RECIPES / f"{name}.yaml"), *short, *options, "--output", str(results)]
    )
    assert result.exit_code == 0, result.output
    records = [json.loads(path.read_text()) for path in (results / "trials").glob("*.json")]
    assert {record["status"] for record in records} == {"finished"}, [record["reason"] for record in records]
    rows = json.loads((results / "summary.json").read_text())["rows"]
    assert [(row["method"], row["weight"]) for row in rows] == [
        ("raw-pixels", 0), ("random-init", 0), ("simclr", 0), ("simclr", 30),
    ]  # fmt: skip
    return {(record["config"]["method"], record["config"]["weight"]): record for record in records}


@pytest.mark.slow
@no_extent
@pytest.mark.usefixtures("trains", "in_this_process")
@pytest.mark.parametrize(
    ("name", "label_name", "classes", "backbone"),
    # 100 classes need 1000 images for the probes, for which a ResNet-18 is too slow here.
    [("cifar10", "labels", 10, "resnet18"), ("cifar100", "fine_labels", 100, "small")],
)
def test_cifar_recipes_train(name, label_name, classes, backbone, tmp_path, monkeypatch):
    dataset = getattr(datasets, name.upper())
    labels = [i % classes for i in range(10 * classes)]
    base, *_ = write_cifar(tmp_path / "data", dataset, label_name, labels, 2 * labels[:10])
    accept(monkeypatch, dataset, base)
    _load.cache_clear()
    small = ["--num-train", str(len(labels)), "--batch-size", "8", "--backbone", backbone]
    records = trained(name, tmp_path / "results", "--data-dir", str(tmp_path / "data"), *small)
    vrn = records["simclr", 30.0]
    assert (vrn["num_train"], vrn["num_evaluated"], vrn["steps"]) == (len(labels), 20, 2)
    assert vrn["learning_rate"] == pytest.approx(0.3 * 8 / 256)
    if backbone == "resnet18":
        assert "stem" in vrn["backbone_changed"]


@pytest.mark.slow
@no_extent
@pytest.mark.usefixtures("trains", "in_this_process")
def test_imagenet_recipe_trains(tmp_path):
    write_imagenet(tmp_path / "data")
    small = [
        "--data",
        f"imagefolder:{tmp_path / 'data'}",
        "--image-size",
        "72",
        "--batch-size",
        "4",
        "--temperature",
        "0.2",
        "--num-train",
        "24",
    ]
    records = trained("imagenet100", tmp_path / "results", *small)
    vrn, pixels = records["simclr", 30.0], records["raw-pixels", 0.0]
    assert (vrn["num_train"], vrn["num_evaluated"], vrn["steps"]) == (24, 6, 2)
    assert vrn["parameters"] == 23508032  # a ResNet-50 without its classifier, nothing changed
    assert vrn["backbone_changed"] == "nothing"
    assert pixels["confounds"] == {"raw_pixels": "averaged to 32 x 32 before the probes"}


def test_the_work_of_a_recipe_is_what_its_readme_says():
    """PFLOP of a training and of all of them, of the table's columns, recomputed."""
    rows = {}
    for line in (RECIPES / "README.md").read_text().splitlines():
        if match := re.match(r"\| (CIFAR|ImageNet-100)[^|]*\|([^|]+)\|([^|]+)\|([^|]+)\|([^|]+)\|([^|]+)\|", line):
            name, *cells = match.groups()
            rows.setdefault(name, [float(cell.replace(",", "")) for cell in cells])
    shapes = {"CIFAR": ("resnet18", (3, 32, 32)), "ImageNet-100": ("resnet50", (3, 224, 224))}
    assert rows.keys() == shapes.keys()
    for name, (images, per_view, views, one, everything) in rows.items():
        net = backbones.build(*shapes[name]).net
        pixels = torch.zeros(2, *shapes[name][1])
        with FlopCounterMode(display=False) as counter:
            net(pixels).sum().backward()
        flops = counter.get_total_flops() / 2
        assert per_view == pytest.approx(flops / 1e9, abs=0.05)
        assert views == pytest.approx(200 * 2 * images / 1e6, rel=0.01)
        assert one == pytest.approx(200 * 2 * images * flops / 1e15, rel=0.01)
        assert everything == pytest.approx(one * {"CIFAR": 40, "ImageNet-100": 20}[name], rel=0.01)
