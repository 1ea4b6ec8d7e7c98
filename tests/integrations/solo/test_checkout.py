"""The flag in an unmodified solo-learn: every form of it, its methods, ranks, checkpoints and evaluation scripts.

Needs a checkout (SOLO_LEARN_ROOT) and the interpreter of an environment that runs it (SOLO_LEARN_PYTHON, by default this
one), with varloss installed. Images are synthetic; networks and scripts are solo-learn's.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from support.solo.page import on_the_page
from support.solo.runs import Run, drive, environment

from varloss import functional as F
from varloss_solo import spelling

pytestmark = [pytest.mark.solo_root, pytest.mark.slow]

IMAGES = 64
CPU = [
    "accelerator=cpu",
    "strategy=auto",
    "sync_batchnorm=False",
    "precision=32",
    "devices='1'",
    "wandb.enabled=False",
    "auto_resume.enabled=False",
    "checkpoint.dir={out}",
    "+default_root_dir={out}",
    "+enable_progress_bar=False",
    "+enable_model_summary=False",
    "+log_every_n_steps=1",
]
# main_pretrain.py with SimCLR's outputs in training written down, one file a process. It is no runpy, which would show Lightning
# the name of the script in place of this file's when it starts the second process.
SHIM = """
import atexit, os, sys
import torch
{blocked}
sys.path.insert(0, os.getcwd())
from solo.methods.simclr import SimCLR
seen, plain = [], SimCLR.forward
def forward(self, X):
    out = plain(self, X)
    if self.training:
        seen.append(out["z"].detach().clone())
    return out
SimCLR.forward = forward
here = os.path.dirname(os.path.abspath(__file__))
atexit.register(lambda: torch.save(seen, os.path.join(here, "seen" + os.environ.get("LOCAL_RANK", "0") + ".pt")))
exec(compile(open("main_pretrain.py").read(), os.path.abspath("main_pretrain.py"), "exec"))
"""
WITHOUT_PLUGIN = "sys.modules['hydra_plugins'] = None"


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images of noise, eight classes (main_linear.py needs five), as data.dataset=custom reads it."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 16)):
        for number in range(count):
            place = folder / split / f"class{number % 8}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def configs(checkout, tmp_path_factory):
    """A copy of solo-learn's CIFAR configurations and some of ours that name varloss in YAML."""
    folder = tmp_path_factory.mktemp("configs") / "cifar"
    shutil.copytree(checkout / "scripts" / "pretrain" / "cifar", folder)
    plain = (folder / "simclr.yaml").read_text()
    (folder / "block.yaml").write_text(plain + "\nvarloss:\n  weight: 3\n")
    (folder / "listed.yaml").write_text(plain.replace("  - augmentations", "  - varloss: vrn\n  - augmentations"))
    (folder / "fork.yaml").write_text(plain + f"\nadd_vrn_loss_term:\n  enabled: True\n  weight: 3\n  k: {IMAGES}\n")
    small = (folder / "augmentations" / "symmetric.yaml").read_text().replace("crop_size: 32", "crop_size: 24")
    both = (folder / "augmentations" / "symmetric.yaml").read_text() + "\n" + small
    (folder / "augmentations" / "multicrop.yaml").write_text(both)
    return folder


@pytest.fixture(scope="session")
def line(configs, images):
    """Arguments of main_pretrain.py for one step a batch of 16 in one epoch."""

    def make(config="simclr", *more):
        return [
            "--config-path",
            str(configs),
            "--config-name",
            f"{config}.yaml",
            "data.dataset=custom",
            f"data.train_path={images / 'train'}",
            f"data.val_path={images / 'val'}",
            "data.num_workers=0",
            "optimizer.batch_size=16",
            "max_epochs=1",
            *CPU,
            *more,
        ]

    return make


def launch(checkout, python, folder, arguments, code=None):
    """One process of its own: main_pretrain.py, or ``code`` that runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    script = "main_pretrain.py"
    if code is not None:
        script = folder / "shim.py"
        script.write_text(code)
    arguments = [part.replace("{out}", str(folder)) for part in arguments]
    done = subprocess.run(
        [python, script, *arguments], cwd=checkout, env=environment(), capture_output=True, text=True, check=False
    )
    return Run(done.returncode, done.stdout, done.stderr, folder)


@pytest.fixture(scope="session")
def plain(checkout, solo_python, tmp_path_factory, line):
    """solo-learn's own SimCLR in an environment where Hydra sees no plugin at all."""
    code = SHIM.format(blocked=WITHOUT_PLUGIN)
    run = launch(checkout, solo_python, tmp_path_factory.mktemp("plain"), line(), code)
    assert run.rc == 0, run.err
    assert run.said == []
    return run


@pytest.fixture(scope="session")
def with_vrn(checkout, solo_python, tmp_path_factory, line):
    """The first form of the flag, with the projections written down."""
    code = SHIM.format(blocked="")
    run = launch(checkout, solo_python, tmp_path_factory.mktemp("vrn"), line("simclr", "+varloss=vrn"), code)
    assert run.rc == 0, run.err
    return run


def without_vrn(rows):
    return [{key: row[key] for key in row if "vrn" not in key and "sim_" not in key} for row in rows]


ON = f"varloss: VRN on, method=simclr, weight=3, n={IMAGES} (size of the training set), target=-0.01587, pairs=cross z1·z2"


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("simclr", ["+varloss=vrn"]),
        ("simclr", ["+varloss=paper", "varloss.weight=3"]),
        ("simclr", ["+varloss.weight=3"]),
        ("simclr", ["++varloss.weight=3"]),
        ("block", []),
        ("block", ["varloss.weight=3.0"]),
        ("listed", []),
    ],
)
def test_every_form_of_the_flag_trains_the_same_network(
    checkout, solo_python, tmp_path, line, with_vrn, plain, config, arguments
):
    run = launch(checkout, solo_python, tmp_path, line(config, *arguments))
    assert run.rc == 0, run.err
    assert run.said == [ON]
    assert run.rows == with_vrn.rows
    assert run.steps("train_nce_loss")[1:] != plain.steps("train_nce_loss")[1:]


def test_logged_vrn_is_the_cores_on_the_same_projections(with_vrn):
    seen = torch.load(with_vrn.folder / "seen0.pt")
    # Two crops a batch; solo-learn's validation passes are not in training mode.
    values = [F.vrn(seen[i], seen[i + 1], num_samples=IMAGES).item() for i in range(0, len(seen), 2)]
    assert with_vrn.steps("train_vrn") == pytest.approx(values, rel=1e-6)
    assert len(values) == IMAGES // 16


def test_a_sweep_runs_every_weight(checkout, solo_python, tmp_path, line):
    arguments = ["-m", *line("simclr", "+varloss=vrn", "varloss.weight=0,3", "hydra.sweep.dir={out}")]
    run = launch(checkout, solo_python, tmp_path, arguments)
    assert run.rc == 0, run.err
    assert [said.split(",")[0] for said in run.said] == ["varloss: VRN measured", "varloss: VRN on"]


def test_the_sweep_of_the_page_runs(checkout, solo_python, tmp_path, line):
    (sweep,) = [words for words in on_the_page() if "-m" in words]
    short = ["+seed=0,1" if word.startswith("+seed=") else word for word in sweep[2:]]
    # Later values win; the page's file of settings is the one that ``line`` names.
    arguments = [*line()[4:], "hydra.sweep.dir={out}"]
    run = launch(checkout, solo_python, tmp_path, [*short, *arguments])
    assert run.rc == 0, run.err
    assert [said.split(",")[0] for said in run.said] == ["varloss: VRN measured", "varloss: VRN on"] * 2


def test_configurations_of_solo_learn_are_not_taken_for_misspelt(checkout):
    found = [OmegaConf.load(path) for path in sorted((checkout / "scripts").rglob("*.y*ml"))]
    configs = [cfg for cfg in found if OmegaConf.is_dict(cfg)]  # augmentations are lists
    assert len(configs) > 80
    for cfg in configs:
        spelling.refuse_misspelt(cfg)


@pytest.fixture(scope="session")
def many(checkout, solo_python, tmp_path_factory, line):
    """Further runs, one after the other in one interpreter."""
    lines = {
        "unused": line(),
        "weight0": line("simclr", "+varloss.weight=0"),
        "off": line("simclr", "+varloss=off"),
        "fork": line("fork"),
        "fraction": line("simclr", "+varloss=vrn", "+data.fraction=0.5"),
        "warmup": line("simclr", "+varloss=vrn", "varloss.warmup_fraction=0.5"),
        "bf16": line("simclr", "+varloss=vrn", "precision=bf16-mixed"),
        "accumulate": line("simclr", "+varloss=vrn_both", "+accumulate_grad_batches=2"),
        "multicrop": line("simclr", "+varloss=vrn", "augmentations=multicrop"),
        "multicrop_dcl": line("simclr", "method=dcl", "augmentations=multicrop"),
        "dcl": line("simclr", "method=dcl", "+varloss=vrn"),
        "dhel": line("simclr", "method=dhel"),
        "nt_xent": line("simclr", "method=nt_xent"),
        "within": line("simclr", "+varloss.negatives=within"),
        "cross": line("simclr", "+varloss.negatives=cross"),
        "simclr": line("simclr", "+varloss=vrn"),
        "supcon": line("supcon", "+varloss=vrn"),
        "mocov2plus": line("mocov2plus", "+varloss=vrn", "method_kwargs.queue_size=32"),
        "mocov2plus_keys": line("mocov2plus", "+varloss=vrn", "varloss.between=keys", "method_kwargs.queue_size=32"),
        "mocov2plus_queue": line("mocov2plus", "+varloss=vrn", "varloss.between=queue", "method_kwargs.queue_size=32"),
        "mocov3": line("mocov3", "+varloss=vrn"),
        "mocov3_keys": line("mocov3", "+varloss=vrn", "varloss.between=keys"),
        "nnclr": line("nnclr", "+varloss=vrn", "method_kwargs.queue_size=32"),
        "byol": line("byol", "+varloss=vrn", "varloss.between=views"),
        "nnbyol": line("nnbyol", "+varloss=vrn", "varloss.between=views", "method_kwargs.queue_size=32"),
        "simsiam": line("simsiam", "+varloss=vrn", "varloss.between=targets"),
        "nnsiam": line("nnsiam", "+varloss=vrn", "varloss.between=targets", "method_kwargs.queue_size=32"),
        "barlow": line("barlow", "+varloss=vrn", "varloss.between=views"),
        "vicreg": line("vicreg", "+varloss=vrn", "varloss.between=views"),
        "vibcreg": line("vibcreg", "+varloss=vrn", "varloss.between=views"),
        **{f"refused {name}": line(name, "+varloss=vrn") for name in REFUSED},
        "typo": line("simclr", "+varloss.wieght=3"),
        "misspelt": line("simclr", "+varlos=vrn"),
        "nested": line("vicreg", "+method_kwargs.varloss.weight=3"),
        "bar": [part for part in line("simclr", "+varloss=vrn") if "progress_bar" not in part],
        "negative": line("simclr", "+varloss.weight=-1"),
        "nan": line("simclr", "+varloss.weight=nan"),
        "n1": line("simclr", "+varloss=vrn", "varloss.num_samples=1"),
        "bare byol": line("byol", "+varloss=vrn"),
        "no plus": line("simclr", "varloss=vrn"),
    }
    return drive(checkout, solo_python, tmp_path_factory.mktemp("many") / "runs", lines)


REFUSED = ("ressl", "wmse", "all4one", "swav", "deepclusterv2", "dino", "mae")


@pytest.mark.parametrize("name", ["unused", "off", "weight0"])
def test_unused_off_and_weight_0_leave_every_digit_of_the_plain_run(many, plain, name):
    assert many[name].rc == 0, many[name].err
    assert without_vrn(many[name].rows) == plain.rows
    assert (many[name].rows == plain.rows) == (name != "weight0")
    assert (
        many[name].said
        == {
            "unused": [],
            "off": ["varloss: off"],
            "weight0": [ON.replace("VRN on", "VRN measured, not added").replace("weight=3", "weight=0")],
        }[name]
    )


METHODS = {
    "simclr": ("simclr", "z1·z2", IMAGES),
    "supcon": ("supcon", "z1·z2", 8),
    "mocov2plus": ("mocov2plus", "z1·z2", IMAGES),
    "mocov2plus_keys": ("mocov2plus", "z·sg(z), momentum keys", IMAGES),
    "mocov2plus_queue": ("mocov2plus", "z·queue", IMAGES),
    "mocov3": ("mocov3", "q1·q2", IMAGES),
    "mocov3_keys": ("mocov3", "q·sg(k), momentum keys", IMAGES),
    "nnclr": ("nnclr", "z1·z2", IMAGES),
    "byol": ("byol", "p1·p2", IMAGES),
    "nnbyol": ("nnbyol", "p1·p2", IMAGES),
    "simsiam": ("simsiam", "p·sg(z)", IMAGES),
    "nnsiam": ("nnsiam", "p·sg(z)", IMAGES),
    "barlow": ("barlow_twins", "z1·z2", IMAGES),
    "vicreg": ("vicreg", "z1·z2", IMAGES),
    "vibcreg": ("vibcreg", "z1·z2", IMAGES),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_with_pairs_trains_with_vrn(many, name):
    run, (method, pair, n) = many[name], METHODS[name]
    assert run.rc == 0, run.err
    (said,) = run.said
    assert f"VRN on, method={method}, weight=3, n={n} (" in said
    assert said.endswith(f"pairs=cross {pair}")
    values = run.steps("train_vrn")
    assert len(values) == 4
    # While the queue is empty there is no pair; every other value is a mean of squares.
    assert all(value > 0 for value in values[name == "mocov2plus_queue" :])


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_method_refuses(many, name):
    run = many[f"refused {name}"]
    assert run.rc == 1
    assert f"ValueError: method={name} has no pairs for VRN: " in run.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("typo", "unknown key varloss.wieght: did you mean weight?"),
        ("misspelt", "unknown key varlos: did you mean varloss?"),
        ("nested", "unknown key method_kwargs.varloss: did you mean varloss at the top level?"),
        ("negative", "ValueError: varloss: weight"),
        ("nan", "ValueError: varloss: weight"),
        ("n1", "ValueError: varloss: num_samples"),
        ("bare byol", "VRN is added only on request: varloss.between=views (p1·p2)"),
        ("no plus", "use +varloss=vrn"),
    ],
)
def test_bad_input_stops_the_run(many, name, message):
    assert many[name].rc == 1
    assert message in many[name].err


def test_the_line_comes_before_the_progress_bar(many):
    before, line, after = many["bar"].out.partition(ON + "\n")
    assert line
    assert before.endswith("\n") or not before
    assert "Training" not in before
    assert "Epoch 0: 100%" in after


def test_n_is_the_number_of_images_trained_on(many):
    assert f"n={IMAGES // 2} (size of the training set)" in many["fraction"].said[0]


def test_the_forks_configuration_is_understood(many, with_vrn):
    assert "read from add_vrn_loss_term" in many["fork"].said[0]
    assert many["fork"].rows == with_vrn.rows


def test_warm_up_counts_optimizer_steps(many):
    assert many["warmup"].steps("train_vrn_weight") == pytest.approx([0, 1.5, 3, 3])
    assert many["accumulate"].rc == 0, many["accumulate"].err


@pytest.mark.parametrize("name", ["bf16", "multicrop", "multicrop_dcl"])
def test_low_precision_and_small_crops(many, name):
    assert many[name].rc == 0, many[name].err
    assert all(np.isfinite(value) for value in many[name].steps("train_nce_loss"))


def test_nt_xent_with_both_negatives_is_solo_learns_simclr(many, plain):
    assert many["nt_xent"].steps("train_nce_loss")[0] == pytest.approx(plain.steps("train_nce_loss")[0], rel=1e-6)
    first = {name: many[name].steps("train_nce_loss")[0] for name in ("nt_xent", "within", "cross", "dcl", "dhel")}
    # Fewer terms in the denominator, smaller loss, on one and the same first batch.
    assert first["dhel"] < first["within"] < first["nt_xent"]
    assert first["cross"] < first["nt_xent"]
    assert first["dcl"] < first["nt_xent"]


def test_two_processes_share_their_negatives(checkout, solo_python, tmp_path, line):
    code = SHIM.format(blocked="")
    arguments = line(
        "simclr", "method=dhel", "+varloss=vrn_both", "optimizer.batch_size=8", "strategy=ddp", "devices='2'"
    )
    run = launch(checkout, solo_python, tmp_path, [part for part in arguments if part != "devices='1'"], code)
    assert run.rc == 0, run.err
    (said,) = run.said
    assert "over 2 ranks, objective dhel" in said
    ranks = [torch.load(tmp_path / f"seen{rank}.pt") for rank in (0, 1)]
    for step, logged in enumerate(run.steps("train_vrn")):
        views = [torch.cat([seen[2 * step + view] for seen in ranks]) for view in (0, 1)]
        assert logged == pytest.approx(F.vrn(*views, num_samples=IMAGES, pairs="both").item(), rel=1e-5)
        loss = F.nt_xent(*views, temperature=0.2, negatives="within", decoupled=True)
        assert run.steps("train_nce_loss")[step] == pytest.approx(loss.item(), rel=1e-5)


@pytest.fixture(scope="session")
def checkpoints(checkout, solo_python, tmp_path_factory, line):
    """Checkpoints of a VRN run of dhel that trained two epochs."""
    folder = tmp_path_factory.mktemp("checkpoints")
    arguments = line("simclr", "method=dhel", "+varloss=vrn", "max_epochs=2", "name=kept", "auto_resume.enabled=True")
    run = launch(checkout, solo_python, folder, [part for part in arguments if part != "auto_resume.enabled=False"])
    assert run.rc == 0, run.err
    return folder


def test_checkpoints_have_the_plain_methods_keys_and_name(checkpoints, plain):
    (ours,), (theirs,) = checkpoints.rglob("*.ckpt"), plain.folder.rglob("*.ckpt")
    assert ours.parts[-3] == "simclr"
    saved = json.loads((ours.parent / "args.json").read_text())
    assert (saved["method"], saved["objective"], saved["varloss"]["weight"]) == ("simclr", "dhel", 3.0)
    keys = [list(torch.load(path, weights_only=False)["state_dict"]) for path in (ours, theirs)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("change", "resumes"),
    [
        (["method=dhel", "+varloss=vrn"], True),
        (["method=dhel", "+varloss.weight=3"], True),
        (["method=dhel", "+varloss=vrn", "varloss.weight=5"], False),
        (["method=dhel"], False),
        (["+varloss=vrn"], False),
        ([], False),
    ],
)
def test_auto_resume_tells_runs_apart(checkout, solo_python, tmp_path, line, checkpoints, change, resumes):
    shutil.copytree(checkpoints, tmp_path / "out")
    arguments = line("simclr", *change, "max_epochs=2", "name=kept", "auto_resume.enabled=True")
    arguments = [part for part in arguments if part != "auto_resume.enabled=False"]
    run = launch(checkout, solo_python, tmp_path / "out", arguments)
    assert run.rc == 0, run.err
    assert ("Resuming from previous checkpoint" in run.out) == resumes


def linear_line(configs, images, out, checkpoint):
    """Arguments of main_linear.py for one epoch on the CPU."""
    source = configs.parent / "linear.yaml"
    source.write_text(
        "defaults:\n  - _self_\n  - override hydra/hydra_logging: disabled\n  - override hydra/job_logging: disabled\n"
        "hydra: {output_subdir: null, run: {dir: .}}\n"
        "name: linear\nbackbone: {name: resnet18}\npretrain_method: simclr\n"
        "data: {dataset: custom, format: image_folder, num_workers: 0, train_path: '???', val_path: '???'}\n"
        "optimizer: {name: sgd, batch_size: 16, lr: 0.1, weight_decay: 0}\n"
        "scheduler: {name: none}\nmax_epochs: 1\naccelerator: cpu\nstrategy: auto\nprecision: 32\ndevices: '1'\n"
        "auto_resume: {enabled: false}\n"
    )
    return [
        *("--config-path", str(source.parent), "--config-name", source.name),
        *(f"data.train_path={images / 'train'}", f"data.val_path={images / 'val'}"),
        *(f"+pretrained_feature_extractor='{checkpoint}'", f"+default_root_dir={out}", "+enable_progress_bar=False"),
    ]


@pytest.mark.parametrize("blocked", ["", WITHOUT_PLUGIN], ids=["with the plugin", "without"])
def test_main_linear_loads_the_checkpoint(checkout, solo_python, tmp_path, configs, images, checkpoints, blocked):
    (checkpoint,) = checkpoints.rglob("*.ckpt")
    link = tmp_path / "kept.ckpt"  # the name has an equals sign, which Hydra would parse
    link.symlink_to(checkpoint)
    code = f"import runpy, sys, os\n{blocked}\nsys.path.insert(0, os.getcwd())\nsys.argv = ['main_linear.py', *sys.argv[1:]]\n"
    code += "runpy.run_path('main_linear.py', run_name='__main__')"
    arguments = linear_line(configs, images, tmp_path, link)
    done = subprocess.run(
        [solo_python, "-c", code, *arguments],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert any("val_acc1" in row for row in Run(0, "", "", tmp_path).rows)


def test_main_linear_refuses_the_flag(checkout, solo_python, tmp_path, configs, images, checkpoints):
    (checkpoint,) = checkpoints.rglob("*.ckpt")
    (tmp_path / "kept.ckpt").symlink_to(checkpoint)
    arguments = linear_line(configs, images, tmp_path, tmp_path / "kept.ckpt")
    done = subprocess.run(
        [solo_python, "main_linear.py", *arguments, "+varloss=vrn"],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "varloss belongs to main_pretrain.py" in done.stderr


def test_main_knn_runs_on_the_checkpoint(checkout, solo_python, images, checkpoints):
    (checkpoint,) = checkpoints.rglob("*.ckpt")
    # Upstream's script moves images to the GPU and leaves the model where load_from_checkpoint put it. Without a GPU the one
    # thing changed is that move.
    code = (
        "import os, runpy, sys, torch, torchmetrics\n"
        "print('torchmetrics', torchmetrics.__version__)\n"
        "if not torch.cuda.is_available(): torch.Tensor.cuda = lambda self, *args, **kwargs: self\n"
        "sys.path.insert(0, os.getcwd())\nsys.argv = ['main_knn.py', *sys.argv[1:]]\n"
        "runpy.run_path('main_knn.py', run_name='__main__')"
    )
    arguments = {
        "--pretrained_checkpoint_dir": [checkpoint.parent],
        "--dataset": ["custom"],
        "--train_data_path": [images / "train"],
        "--val_data_path": [images / "val"],
        "--num_workers": ["0"],
        "--k": ["5"],
        "--distance_function": ["cosine"],
        "--temperature": ["0.1"],
        "--feature_type": ["backbone", "projector"],
    }
    words = [str(word) for name, values in arguments.items() for word in (name, *values)]
    done = subprocess.run(
        [solo_python, "-c", code, *words], cwd=checkout, env=environment(), capture_output=True, text=True, check=False
    )
    version = tuple(int(part) for part in done.stdout.split()[1].split(".")[:2])
    if version < (0, 12):
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Result: acc@1=") == 2
    else:
        # solo-learn's own kNN needs an older torchmetrics. It is built after the checkpoint has given its features.
        assert "### BACKBONE ###" in done.stdout, done.stderr
        assert "ValueError: Unexpected keyword arguments: `compute_on_step`" in done.stderr


def test_the_doctor_finds_this_checkout_ready(checkout, solo_python):
    done = subprocess.run(
        [solo_python, "-m", "varloss_solo", "doctor"],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "[  ok] one training step on synthetic images; it said\n       varloss: VRN on, method=simclr" in done.stdout


def test_the_checkout_is_left_as_it_was(checkout):
    """Last in the file: none of the runs above wrote into the checkout."""
    if not (checkout / ".git").exists():
        pytest.skip("the checkout is no git repository")
    done = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout == ""
