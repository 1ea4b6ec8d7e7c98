"""The committed recipes: options that exist, data that is asked for clearly, a grid that is what their README says."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_archives import accept, write_cifar
from torchvision import datasets
from typer.testing import CliRunner

from varloss_bench.cli import app

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"
# What a machine without a GPU changes; --dump-config checks everything and runs nothing.
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


def test_imagenet_recipe_runs_on_a_folder_of_that_layout(tmp_path):
    for part, count in (("train", 12), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((40, 50, 3), 9 * i, np.uint8)).save(folder / f"{i}.png")
    small = ["--image-size", "32", "--num-train", "24", "--batch-size", "8", "--backbone", "resnet18"]
    result = dump("imagenet100", "--data", f"imagefolder:{tmp_path}", *small)
    assert result.exit_code == 0, result.output
    effective = yaml.safe_load(result.output)
    assert (effective["data"], effective["output-dim"], effective["fused"]) == (f"imagefolder:{tmp_path}", 128, False)
