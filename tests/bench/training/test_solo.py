"""Training with solo-learn, as far as it can be tested without it; see tests/integrations/solo/test_bench.py for the rest."""

import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import varloss_solo
from varloss_bench.cli import app
from varloss_bench.compare import cost
from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.execution.execute import execute
from varloss_bench.grid import grid
from varloss_bench.records import provenance
from varloss_bench.training import augment, estimates
from varloss_bench.training.errors import TrainingDivergedError
from varloss_bench.training.solo import config as solo_config
from varloss_bench.training.solo import guard as solo_guard
from varloss_bench.training.solo import install as solo_install
from varloss_bench.training.solo import net as solo_net
from varloss_bench.training.solo import run as solo_run

CONFIG = TrialConfig(framework="solo", backbone="resnet18", fused=False, weight=3.0, epochs=5, seed=7, temperature=0.2)
DIGITS = loading.load("digits")


def changed(**values):
    return dataclasses.replace(CONFIG, **values)


def made(config, tmp_path, num_train=997):
    return solo_config.configuration(
        config, DIGITS, images=tmp_path / "images", output=tmp_path / "out", num_train=num_train
    )


def test_framework_is_part_of_the_key_and_lightly_keeps_the_old_one():
    assert changed().key() != changed(framework="lightly").key()
    assert TrialConfig(framework="lightly").key() == TrialConfig().key()


def test_only_the_row_without_training_that_has_a_net_belongs_to_the_framework():
    trials = grid(
        CONFIG,
        methods=["simclr"],
        batch_sizes=[16],
        weights=[3.0],
        temperatures=[0.5],
        control_temperatures=[],
        seeds=[0],
    )
    frameworks = {trial.method: (trial.framework, trial.backbone) for trial in trials}
    assert frameworks == {
        "raw-pixels": ("lightly", "small"),
        "random-init": ("solo", "resnet18"),
        "simclr": ("solo", "resnet18"),
    }


def test_configuration_says_what_the_trial_says(tmp_path):
    config = made(changed(batch_size=32, lr_rule="sqrt"), tmp_path)
    assert (config["method"], config["seed"], config["max_epochs"]) == ("simclr", 7, 5)
    assert config["method_kwargs"]["temperature"] == 0.2
    # solo-learn multiplies by batch size / 256 on its own.
    assert config["optimizer"]["lr"] * 32 / 256 == pytest.approx(changed(batch_size=32, lr_rule="sqrt").learning_rate)
    assert (config["wandb"]["enabled"], config["auto_resume"]["enabled"]) == (False, False)
    assert "varloss" not in config
    json.dumps(config, allow_nan=False)


@pytest.mark.parametrize("epochs", [1, 2, 3, 20])
def test_the_last_epoch_is_among_those_that_are_saved(tmp_path, epochs):
    frequency = made(changed(epochs=epochs), tmp_path)["checkpoint"]["frequency"]
    saved = [epoch for epoch in range(epochs) if epoch % frequency == 0]
    assert saved[-1] == epochs - 1
    assert len(saved) <= 2


def test_moco_gets_its_queue_and_a_momentum_that_does_not_move(tmp_path):
    config = made(changed(method="moco", key_momentum=0.98), tmp_path)
    assert config["method"] == "mocov2plus"
    assert config["method_kwargs"]["queue_size"] == 256
    assert config["momentum"] == {"base_tau": 0.98, "final_tau": 0.98}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["+varloss=vrn", "varloss.weight=3.0"]),
        ({"weight": 0.0}, []),
        ({"weight": 0.0, "method": "dhel"}, []),
        ({"weight_warmup": 0.5}, ["+varloss=vrn", "varloss.weight=3.0", "varloss.warmup_fraction=0.5"]),
        ({"weight": 0.0, "negatives": "within"}, ["++varloss.negatives=within"]),
        ({"method": "moco", "vrn_against": "queue"}, ["+varloss=vrn", "varloss.weight=3.0", "varloss.between=queue"]),
    ],
)
def test_overrides_and_none_for_the_plain_baseline(values, expected):
    assert solo_config.overrides(changed(**values)) == expected


def test_warm_up_never_exceeds_its_steps_by_a_rounding():
    for per_epoch in range(1, 130):
        for steps in range(3 * per_epoch):
            product = solo_config.warmup_epochs(steps, per_epoch) * per_epoch
            assert steps * (1 - 1e-15) <= product <= steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "small"}, "--backbone must be one of resnet18, resnet50, got 'small'"),
        ({"fused": True}, "--fused is not possible"),
        ({"steps": 10, "epochs": 0}, "use --epochs, not --steps"),
        ({"head_batch_norm": True}, "no BatchNorm"),
        ({"devices": 2}, "got 2 ranks"),
        ({"method": "moco", "batch_size": 24}, "a queue of 256 and --batch-size 24"),
    ],
)
def test_what_solo_learn_cannot_do_is_refused(values, message):
    solo_config.check(CONFIG, 997)
    with pytest.raises(ValueError, match=message):
        solo_config.check(changed(**values), 997)


def test_exported_images_are_the_split_in_order(tmp_path):
    split = loading.split(DIGITS, 3).train
    few = loading.Split(split.images[:12], split.labels[:12])
    folder = solo_net.export_images(few, DIGITS, tmp_path / "images")
    paths = sorted(folder.rglob("*.png"))
    assert [path.parent for path in paths] == [folder / "all"] * 12
    expected = solo_net.ToSolo(32)(few.images)
    for path, image in zip(paths, expected, strict=True):
        with Image.open(path) as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1) / 255
        assert torch.allclose(pixels, image, atol=0.51 / 255)


def test_larger_images_keep_their_size_and_other_channels_are_refused():
    images = torch.rand(2, 3, 40, 40)
    assert solo_config.image_side(dataclasses.replace(DIGITS, images=images)) == 40
    assert torch.equal(solo_net.ToSolo(40)(images), images)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        solo_net.ToSolo(40)(images[:, :2])


def checkpoint_state(hidden=256, output=64):
    """Weights with the names of solo-learn's SimCLR."""
    backbone = solo_net.build_backbone("resnet18", DIGITS)[1]
    head = torch.nn.Sequential(torch.nn.Linear(512, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, output))
    named = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    named |= {f"projector.{name}": value for name, value in head.state_dict().items()}
    return backbone, head, named | {"classifier.weight": torch.zeros(1, 512)}


def test_rebuilt_net_computes_what_the_trained_one_did():
    backbone, head, state = checkpoint_state()
    encoder = solo_net.rebuild(CONFIG, DIGITS, state).eval()
    images = DIGITS.images[:4]
    expected = head(backbone.eval()(solo_net.ToSolo(32)(images)))
    assert torch.equal(encoder(images), expected)


def test_the_widths_of_the_head_are_those_of_the_trial(tmp_path):
    config = changed(hidden_dim=96, output_dim=24)
    said = made(config, tmp_path)["method_kwargs"]
    assert (said["proj_hidden_dim"], said["proj_output_dim"]) == (96, 24)
    assert solo_net.rebuild(config, DIGITS, checkpoint_state(96, 24)[2])(DIGITS.images[:2]).shape == (2, 24)
    with pytest.raises(RuntimeError, match="size mismatch"):
        solo_net.rebuild(CONFIG, DIGITS, checkpoint_state(96, 24)[2])


def test_colour_is_augmented_as_in_the_harness_and_bytes_are_exported_as_they_are(tmp_path):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    source = dataclasses.replace(DIGITS, images=images, scale=(0.2, 1.0), flip=True)
    said = solo_config.augmentation(source)
    theirs = {type(step).__name__: step for step in augment.build_augmentation(source)}
    assert said["rrc"]["crop_min_scale"] == theirs["RandomResizedCrop"]._param_generator.scale[0]
    assert said["grayscale"]["prob"] == theirs["RandomGrayscale"].p
    assert said["gaussian_blur"]["prob"] == theirs["RandomGaussianBlur"].p
    assert said["horizontal_flip"]["prob"] == theirs["RandomHorizontalFlip"].p
    jitter = theirs["ColorJitter"]
    assert [said["color_jitter"][name] for name in ("prob", "brightness", "contrast", "saturation", "hue")] == [
        jitter.p,
        *(getattr(jitter, name) for name in ("brightness", "contrast", "saturation", "hue")),
    ]
    folder = solo_net.export_images(loading.Split(images, torch.zeros(3)), source, tmp_path / "images")
    for path, image in zip(sorted(folder.rglob("*.png")), images, strict=True):
        with Image.open(path) as file:
            assert np.array_equal(np.array(file), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("broken", ["backbone.layer1.0.conv1.weight", "projector.2.bias"])
def test_a_missing_weight_is_an_error(broken):
    state = checkpoint_state()[2]
    del state[broken]
    with pytest.raises(RuntimeError, match="Missing key"):
        solo_net.rebuild(CONFIG, DIGITS, state)


@pytest.fixture
def place(tmp_path):
    """The files that solo-learn writes in two steps."""
    found = solo_run.Workplace(tmp_path / "run", tmp_path / "run.log")
    out = found.folder / "out" / "simclr" / "0"
    out.mkdir(parents=True)
    args = {
        "method": "simclr",
        "seed": 7,
        "method_kwargs": {"temperature": 0.2},
        "optimizer": {"batch_size": 16, "lr": CONFIG.learning_rate},
    }
    (out / "args.json").write_text(json.dumps(args))
    found.log.write_text("varloss: VRN on, method=simclr, weight=3, n=997 (size of the training set), target=-0.001\n")
    return found


def test_a_run_as_asked_for_is_believed(place):
    assert solo_run._ran_with(place, CONFIG, 997)["vrn"].startswith("varloss: VRN on, method=simclr, weight=3, n=997")


@pytest.mark.parametrize(
    ("values", "num_train", "message"),
    [
        ({"weight": 5.0}, 997, "expected VRN 5 with n=997"),
        ({"weight": 0.0}, 997, "expected VRN 0"),
        ({}, 500, "expected VRN 3 with n=500"),
        ({"temperature": 0.5}, 997, "temperature=0.2 instead of 0.5"),
        ({"seed": 8}, 997, "seed=7 instead of 8"),
        ({"base_lr": 0.3}, 997, "learning_rate="),
    ],
)
def test_a_run_of_something_else_is_not(place, values, num_train, message):
    with pytest.raises(solo_run.SoloLearnError, match=message):
        solo_run._ran_with(place, changed(**values), num_train)


def test_a_run_without_the_plugin_does_not_count_as_vrn(place):
    place.log.write_text("Epoch 0\n")
    with pytest.raises(solo_run.SoloLearnError, match="no line of varloss"):
        solo_run._ran_with(place, CONFIG, 997)


HEADER = "epoch,train_nce_loss_step,train_vrn_step,train_nce_loss_epoch\n"


def write_metrics(place, *rows):
    (place.folder / "out" / "metrics.csv").write_text(HEADER + "".join(rows))


def test_losses_are_what_was_trained_on_and_the_first_is_solo_learns_own(place):
    write_metrics(place, "0,3.0,0.5,\n", "0,2.0,0.1,\n", "0,,,2.5\n", "1,1.0,0.0,\n")
    found = solo_run._losses(place, changed(epochs=2))
    assert found["epoch_losses"] == pytest.approx([((3 + 3 * 0.5) + (2 + 3 * 0.1)) / 2, 1.0])
    assert found["paired"] == {"first_own_loss": "3.0"}


def test_a_loss_that_is_not_finite_is_a_divergence(place):
    write_metrics(place, "0,3.0,0.5,\n", "1,nan,0.1,\n")
    with pytest.raises(TrainingDivergedError, match="epoch 2 is nan"):
        solo_run._losses(place, changed(epochs=2))


def test_no_csv_is_no_loss_and_no_error(place):
    assert solo_run._losses(place, CONFIG) == {}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder like a checkout, whose main_pretrain.py runs the given code."""

    def make(script):
        root = tmp_path / "checkout"
        (root / "solo" / "methods").mkdir(parents=True)
        (root / "main_pretrain.py").write_text(script)
        monkeypatch.setenv("SOLO_LEARN_ROOT", str(root))
        monkeypatch.setenv("SOLO_LEARN_PYTHON", sys.executable)
        return root

    return make


def test_a_failing_run_is_a_crashed_trial_with_its_last_lines_and_its_log(checkout, tmp_path):
    checkout("import sys; print('loading'); sys.exit('RuntimeError: out of disk')")
    status, reason = execute(CONFIG, tmp_path / "results", ["varloss-bench"])
    assert status == "crashed"
    assert "exit status 1" in reason
    assert reason.endswith("RuntimeError: out of disk")
    (record,) = (tmp_path / "results" / "trials").glob("*.json")
    assert "loading" in record.with_suffix(".log").read_text()
    # Images and checkpoint are removed; only the record and the log remain.
    assert len(list(record.parent.iterdir())) == 2


def test_a_record_has_the_digest_of_what_brings_the_losses_into_solo_learn(checkout):
    checkout("")
    sha = hashlib.sha256()
    folder = Path(varloss_solo.__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".yaml"}):
        sha.update(path.read_bytes())
    environment = provenance.record_of(CONFIG, [])["environment"]
    assert environment == {**provenance.environment(), "varloss_solo_source": sha.hexdigest()[:12]}
    for other in (changed(framework="lightly"), changed(method="random-init")):
        assert provenance.record_of(other, [])["environment"] == provenance.environment()


def test_a_trial_that_found_no_solo_learn_has_a_record(monkeypatch):
    monkeypatch.delenv("SOLO_LEARN_ROOT", raising=False)
    assert provenance.record_of(CONFIG, [])["environment"] == provenance.environment()


def test_a_run_that_leaves_nothing_is_a_crashed_trial(checkout, tmp_path):
    checkout("")
    status, reason = execute(CONFIG, tmp_path / "results", ["varloss-bench"])
    assert (status, "solo-learn left no args.json" in reason) == ("crashed", True)


SLEEPS = """
import sys, time
(asked,) = [word for word in sys.argv if word.startswith("+max_steps=")]
assert "checkpoint.enabled=False" in sys.argv
time.sleep(0.5 + 0.1 * int(asked.partition("=")[2]))
"""


def test_a_dry_run_times_short_runs_and_says_what_it_did_not_time(checkout):
    checkout(SLEEPS)
    start, step = estimates.measure_solo(CONFIG)
    assert step == pytest.approx(0.1, rel=0.6)
    assert start > 0.4


def test_the_estimate_counts_the_start_of_every_run(checkout, monkeypatch):
    monkeypatch.setattr(estimates, "measure_solo", lambda config: (7.0, 0.5))
    monkeypatch.setattr(estimates, "measure_evaluation_seconds", lambda config: 1.0)
    console = Console(file=io.StringIO(), width=120)
    cost.show_cost([CONFIG], 1, console)
    shown = console.file.getvalue()
    # 62 steps in each of 5 epochs: 1 + 7 + 310 * .5.
    assert "163.0" in shown
    assert "not measured" in shown


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)])
def test_the_guard_passes_on_the_exit_status(script, status):
    command = [sys.executable, solo_guard.__file__, "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:
        assert guard.wait(30) == status


def test_the_guard_ends_everything_when_its_parent_is_gone(tmp_path):
    note = tmp_path / "pids"
    script = f"sleep 600 & echo $! > {note}; sleep 600"
    guard = subprocess.Popen([sys.executable, solo_guard.__file__, "sh", "-c", script], stdin=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(note.read_text())
    os.kill(child, 0)
    guard.stdin.close()
    assert guard.wait(30) == 128 + signal.SIGKILL
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.02)
    assert not _alive(child)


def _alive(pid):
    """Whether a process runs; a process that has ended but was not waited for does not count."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "needs a checkout of solo-learn: git clone"),
        ({"SOLO_LEARN_ROOT": "/nowhere"}, "SOLO_LEARN_ROOT=/nowhere is not a checkout"),
    ],
)
def test_no_checkout_is_said_with_what_to_do(variables, message):
    with pytest.raises(ValueError, match=message):
        solo_install.SoloLearn.from_variables(variables)


def test_an_interpreter_that_is_none_or_lacks_packages_is_said(checkout, tmp_path):
    root = checkout("")
    with pytest.raises(ValueError, match="SOLO_LEARN_PYTHON=/nowhere/python cannot be run"):
        solo_install.SoloLearn(root, "/nowhere/python").check()
    # The doctor of this environment runs; solo/methods is a folder and not a package.
    with pytest.raises(
        ValueError, match=r"(?s)solo-learn cannot run in .*no main_pretrain.py and solo/methods in .*; type: "
    ):
        solo_install.SoloLearn(root, sys.executable).check()


def test_failures_of_the_doctor_with_their_cures():
    report = "[  ok] torch\n[FAIL] timm is missing\n       type: pip install timm\n[FAIL] no methods\nNot ready.\n"
    assert solo_install._failures(report) == ["timm is missing; type: pip install timm", "no methods"]


def test_confounds_name_what_differs():
    ours = provenance.confounds(changed(framework="lightly"))
    theirs = provenance.confounds(CONFIG)
    assert (ours.get("framework"), theirs["head_batch_norm"], theirs["forward"]) == (None, False, "one pass per view")
    assert "queue" in provenance.confounds(changed(method="moco"))


def test_the_command_says_what_is_missing_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.delenv("SOLO_LEARN_ROOT", raising=False)
    result = CliRunner().invoke(app, ["compare", "--framework", "solo", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "needs a checkout of solo-learn" in result.output
    assert not list((tmp_path / "out").rglob("*.json"))


def test_the_learning_rate_survives_the_way_through_solo_learn(tmp_path):
    for batch_size in (16, 48, 100):
        config = changed(batch_size=batch_size)
        assert math.isclose(made(config, tmp_path)["optimizer"]["lr"] * batch_size / 256, config.learning_rate)
