"""VRN in front of a LightningModule like solo-learn's: the added term, the logs, and what stays unchanged.

Every run is a real Hydra application under a real Trainer; only the methods behind the mixin are small stand-ins.
"""

import math

import pytest
import torch

import varloss
from varloss import functional as F

N = 24
LINES = {
    "plain": [],
    "off": ["+varloss=off"],
    "weight0": ["+varloss.weight=0"],
    "vrn": ["+varloss=vrn"],
    "one_step": ["+varloss=vrn", "data.size=8"],
    "vrn_both": ["+varloss=vrn_both"],
    "within": ["+varloss=vrn", "varloss.pairs=within"],
    "paper": ["+varloss=paper"],
    "target": ["+varloss.weight=2", "+varloss.target=-0.25", "+varloss.exponent=3"],
    "n_given": ["+varloss=vrn", "varloss.num_samples=50000"],
    "warmup": ["+varloss=vrn", "varloss.warmup_fraction=1.0"],
    "warmup_steps": ["+varloss=vrn", "varloss.warmup_steps=2"],
    "warmup_long": ["+varloss=vrn", "varloss.warmup_steps=4"],
    "supcon": ["method=supcon", "+varloss=vrn"],
    "views": ["method=mocov2plus", "+varloss=vrn"],
    "keys": ["method=mocov2plus", "+varloss=vrn", "varloss.between=keys"],
    "queue": ["method=mocov2plus", "+varloss=vrn", "varloss.between=queue"],
    "byol": ["method=byol", "+varloss=vrn", "varloss.between=views"],
    "byol_bare": ["method=byol", "+varloss=vrn"],
    "simsiam": ["method=simsiam", "+varloss=vrn", "varloss.between=targets"],
    "mae": ["method=mae", "+varloss=vrn"],
    "dcl": ["method=dcl"],
    "dhel": ["method=dhel", "+varloss=vrn"],
    "nt_xent": ["method=nt_xent"],
    "nt_within": ["+varloss.negatives=within"],
    "dcl_cross": ["method=dcl", "+varloss.negatives=cross"],
    "one_image": ["+varloss=vrn", "data.size=1", "optimizer.batch_size=1"],
    "collapsed": ["+varloss=vrn", "data.shift=300", "optimizer.lr=0", "max_epochs=3"],
    "fork": ["+add_vrn_loss_term.enabled=true", "+add_vrn_loss_term.k=24", "+add_vrn_loss_term.weight=3"],
    "typo": ["+varloss.wieght=3"],
    "no_such_preset": ["+varloss=vnr"],
    "no_plus": ["varloss=vrn"],
    "no_plus_key": ["varloss.weight=3"],
    "forced": ["++varloss.weight=3"],
    "nan": ["+varloss.weight=nan"],
    "misspelt": ["+varlos=vrn"],
    "capital": ["+Varloss=vrn"],
    "misspelt_key": ["++varlos.weight=3"],
    "other_package": ["+varloss@other=vrn"],
    "in_method_kwargs": ["+varloss=vrn", "+method_kwargs.varloss.weight=5"],
    "null": ["+varloss=null"],
    "false": ["+varloss=false"],
    "upper": ["+varloss=VRN"],
    "tqdm": ["+varloss=vrn", "+enable_progress_bar=true", "+bar=TQDMProgressBar"],
    "rich": ["+varloss=vrn", "+enable_progress_bar=true", "+bar=RichProgressBar"],
    "no_batches": ["+varloss=vrn", "+limit_train_batches=0"],
    "repeats": ["+varloss=vrn", "+data.images=6"],
    "repeats_both": ["+varloss=vrn_both", "+data.images=6"],
    "repeats_within": ["+varloss=vrn", "varloss.pairs=within", "varloss.exponent=3", "+data.images=6"],
    "repeats_keys": ["method=mocov2plus", "+varloss=vrn", "varloss.between=keys", "+data.images=6"],
    "repeats_weight0": ["+varloss.weight=0", "+data.images=6"],
    "repeats_plain": ["+data.images=6"],
    "repeats_only": ["+varloss=vrn", "+data.images=1"],
    "own_keys": [
        *("method=mocov2plus", "+varloss=vrn", "varloss.between=queue"),
        *("+method_kwargs.queue_size=16", "+data.images=12"),
    ],
    "dali": ["+varloss=vrn", "+data.images=6", "+data.format=dali"],
    "dali_encoded": ["+varloss=vrn", "+data.images=6", "+data.format=dali", "+dali.encode_indexes_into_labels=true"],
}


@pytest.fixture(scope="module")
def runs(standin):
    return standin(LINES)


@pytest.fixture(scope="module")
def runs_on_two_ranks(standin):
    """Two processes of half the batch beside one of the whole; those in an interpreter of their own, as Lightning needs."""
    lines = {
        "dcl": ["method=dcl", "+varloss=vrn_both"],
        "dhel": ["method=dhel", "+varloss=vrn"],
        "supcon": ["method=supcon", "+varloss=vrn"],
        "repeats": ["method=dhel", "+varloss=vrn_both", "+data.images=6"],
    }
    alone = standin({name: [*line, "optimizer.batch_size=8"] for name, line in lines.items()})
    found = {(name, 1): run for name, run in alone.items()}
    for name, line in lines.items():
        two = [*line, "optimizer.batch_size=4", "+devices=2", "+strategy=ddp"]
        found[name, 2] = standin({name: two})[name]
    return found


def recorded(run, rank=0):
    return torch.load(run.folder / f"record-{rank}.pt")


def states(run):
    return torch.load(run.folder / "states.pt")


def losses(run, name):
    """A name's value at every step from the projections that the method itself computed."""
    return [name(step) for step in recorded(run)]


REFUSED = {
    "typo": "unknown key varloss.wieght: did you mean weight?",
    "no_such_preset": "Available options in 'varloss':\n\toff\n\tpaper\n\tvrn\n\tvrn_both",
    "no_plus": "To append to your default list use +varloss=vrn",
    "no_plus_key": "To append to your config use +varloss.weight=3",
    "nan": "varloss: weight must be",
    "misspelt": "unknown key varlos: did you mean varloss?",
    "capital": "unknown key Varloss: did you mean varloss?",
    "misspelt_key": "unknown key varlos: did you mean varloss?",
    "other_package": "unknown key other: did you mean varloss?",
    "in_method_kwargs": "unknown key method_kwargs.varloss: did you mean varloss at the top level?",
    "null": "Config group override must be a string or a list. Got NoneType",
    "false": "Config group override must be a string or a list. Got bool",
    "upper": "Could not find 'varloss/VRN'",
    "warmup_long": "varloss.warmup_steps=4 is longer than the training of 3 steps",
    "byol_bare": "method=byol has no negatives of its own",
    "mae": "method=mae has no pairs for VRN: it reconstructs pixels",
    "one_image": "VRN needs n >= 2, and the size of the training set is 1: set varloss.num_samples",
}


@pytest.mark.parametrize("name", [name for name in LINES if name not in REFUSED])
def test_every_form_runs(runs, name):
    assert runs[name].rc == 0, runs[name].err


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_bad_input_stops_the_run_and_names_the_cure(runs, name, message):
    assert runs[name].rc == 1
    assert message in runs[name].err


def test_an_unused_plugin_says_and_changes_nothing(runs):
    assert runs["plain"].said == []
    assert runs["off"].said == ["varloss: off"]
    assert runs["off"].rows == runs["plain"].rows
    assert not any("vrn" in name or "sim_" in name for row in runs["plain"].rows for name in row)


def test_weight_0_measures_and_leaves_every_number_as_it_was(runs):
    kept = [{key: row[key] for key in row if "vrn" not in key and "sim_" not in key} for row in runs["weight0"].rows]
    assert kept == runs["plain"].rows
    assert len(runs["weight0"].steps("train_vrn")) == 3
    assert "VRN measured, not added" in runs["weight0"].said[0]
    plain, measured = states(runs["plain"])["after"], states(runs["weight0"])["after"]
    assert all(torch.equal(plain[key], measured[key]) for key in plain)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vrn", "VRN on, method=simclr, weight=3, n=24 (size of the training set), target=-0.04348, pairs=cross z1·z2"),
        (
            "paper",
            "VRN on, method=simclr, weight=30, n=24 (size of the training set), target=-0.04348, pairs=cross z1·z2",
        ),
        ("target", "VRN on, method=simclr, weight=2, target=-0.25 (given), pairs=cross z1·z2, exponent=3"),
        ("n_given", "VRN on, method=simclr, weight=3, n=50000 (varloss.num_samples), target=-2e-05, pairs=cross z1·z2"),
        (
            "warmup",
            "VRN on, method=simclr, weight=3, n=24 (size of the training set), target=-0.04348, pairs=cross z1·z2, "
            "warm-up over 3 steps",
        ),
        (
            "supcon",
            "VRN on, method=supcon, weight=3, n=4 (number of classes, which are the samples of a supervised loss), "
            "target=-0.3333, pairs=cross z1·z2",
        ),
        (
            "keys",
            "VRN on, method=mocov2plus, weight=3, n=24 (size of the training set), target=-0.04348, pairs=cross z·sg(z), "
            "momentum keys",
        ),
        ("dcl", "no VRN; objective dcl with both negatives in simclr's place"),
        (
            "dhel",
            "VRN on, method=simclr, weight=3, n=24 (size of the training set), target=-0.04348, pairs=cross z1·z2, "
            "objective dhel with within negatives in simclr's place",
        ),
        (
            "fork",
            "VRN on, method=simclr, weight=3, n=24 (varloss.num_samples), target=-0.04348, pairs=cross z1·z2, "
            "read from add_vrn_loss_term",
        ),
    ],
)
def test_the_start_up_line(runs, name, line):
    assert runs[name].said == [f"varloss: {line}"]


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
def test_the_start_up_line_is_one_of_its_own_beside_a_progress_bar(runs, bar):
    run = runs[bar]
    assert {"tqdm": "Epoch 0: 100%", "rich": "Epoch 0/0"}[bar] in run.out
    # As grep '^varloss:' would find it in a file; a carriage return is no new line there.
    said = [line for line in run.out.split("\n") if line.startswith("varloss: ")]
    assert said == runs["vrn"].said
    # Nothing of the bar is on the screen yet that the line would leave behind.
    assert "Training" not in run.out.partition("varloss: ")[0]


def test_a_run_without_batches_is_left_alone(runs):
    assert runs["no_batches"].said == []


CASES = {
    "vrn": lambda s: F.vrn(*s["z"], num_samples=N),
    "weight0": lambda s: F.vrn(*s["z"], num_samples=N),
    "dali": lambda s: F.vrn(*s["z"], num_samples=N),
    "vrn_both": lambda s: F.vrn(*s["z"], num_samples=N, pairs="both"),
    "within": lambda s: F.vrn(*s["z"], num_samples=N, pairs="within"),
    "target": lambda s: F.vrn(*s["z"], target=-0.25, exponent=3),
    "n_given": lambda s: F.vrn(*s["z"], num_samples=50_000),
    "views": lambda s: F.vrn(*s["z"], num_samples=N),
    "keys": lambda s: (
        F.vrn(s["z"][0], s["momentum_z"][1], num_samples=N) + F.vrn(s["z"][1], s["momentum_z"][0], num_samples=N)
    ) / 2,
    "byol": lambda s: F.vrn(*s["p"], num_samples=N),
    "simsiam": lambda s: (F.vrn(s["p"][0], s["z"][1], num_samples=N) + F.vrn(s["p"][1], s["z"][0], num_samples=N)) / 2,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logged_vrn_is_the_cores_on_the_same_projections(runs, name):
    expected = [CASES[name](step).item() for step in recorded(runs[name])]
    assert runs[name].steps("train_vrn") == pytest.approx(expected, rel=1e-6)


def test_without_a_repeated_image_every_bit_is_the_cores(runs):
    expected = [CASES["vrn"](step).item() for step in recorded(runs["vrn"])]
    assert runs["vrn"].steps("train_vrn") == expected


def of_different_images(step, other="z", within=False, exponent=2):
    """VRN over the pairs of two images, each pair looked at on its own."""
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (step["z"][0], step[other][1]))
    apart = step["index"][:, None] != step["index"][None]
    similarities = torch.cat([(u @ u.T)[apart], (v @ v.T)[apart]]) if within else (u @ v.T)[apart]
    return (similarities + 1 / 23).abs().pow(exponent).mean().item()


def mirrored(step):
    return {**step, "z": step["z"].flip(0), "momentum_z": step["momentum_z"].flip(0)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repeats", of_different_images),
        ("repeats_weight0", of_different_images),
        ("dali_encoded", of_different_images),
        ("repeats_both", lambda s: (of_different_images(s) + of_different_images(s, within=True)) / 2),
        ("repeats_within", lambda s: of_different_images(s, within=True, exponent=3)),
        (
            "repeats_keys",
            lambda s: (of_different_images(s, "momentum_z") + of_different_images(mirrored(s), "momentum_z")) / 2,
        ),
    ],
)
def test_an_image_that_is_twice_in_a_batch_is_no_negative_of_itself(runs, name, value):
    steps = recorded(runs[name])
    assert all(len(step["index"].unique()) == 6 < len(step["index"]) for step in steps)
    assert runs[name].steps("train_vrn") == pytest.approx([value(step) for step in steps], rel=1e-5)


def test_a_step_of_one_image_has_no_negatives(runs):
    run = runs["repeats_only"]
    assert run.steps("train_vrn") == [0.0] * 3
    assert all(math.isnan(value) for value in run.steps("train_sim_negative_mean"))
    assert all(math.isfinite(value) for value in run.steps("train_sim_positive_mean"))


def test_weight_0_leaves_a_run_with_repeated_images_as_it_was(runs):
    plain, measured = states(runs["repeats_plain"])["after"], states(runs["repeats_weight0"])["after"]
    assert all(torch.equal(plain[key], measured[key]) for key in plain)


def test_the_keys_of_an_image_in_the_queue_are_no_negatives_of_it(runs):
    logged, images = runs["own_keys"].steps("train_vrn"), []
    for step, value in zip(recorded(runs["own_keys"]), logged, strict=True):
        held = len(images)
        apart = step["index"][:, None] != torch.tensor(images, dtype=torch.long)[None]
        assert bool(held) == bool((~apart).any())
        terms = [
            ((q @ keys[:, :held] + 1 / 23)[apart] ** 2).mean() if held else torch.tensor(0.0)
            for q, keys in zip(step["z"], step["queue"].flip(0), strict=True)
        ]
        assert value == pytest.approx((sum(terms) / 2).item(), rel=1e-5)
        images += step["index"].tolist()


def test_logged_vrn_of_supcon_leaves_out_pairs_of_one_class(runs):
    expected = []
    for step in recorded(runs["supcon"]):
        u, v = (torch.nn.functional.normalize(z, dim=1) for z in step["z"])
        apart = step["targets"][:, None] != step["targets"][None]
        expected.append(((u @ v.T)[apart] + 1 / 3).pow(2).mean().item())
    assert runs["supcon"].steps("train_vrn") == pytest.approx(expected, rel=1e-5)


def test_logged_vrn_of_the_queue_takes_it_before_the_enqueue_and_only_its_filled_slots(runs):
    logged = runs["queue"].steps("train_vrn")
    assert logged[0] == 0.0
    for step, value in zip(recorded(runs["queue"])[1:], logged[1:], strict=True):
        # The queue holds 8 keys and the batch fills it, so it is the step's own copy from before its enqueue.
        terms = [((q @ keys + 1 / 23) ** 2).mean() for q, keys in zip(step["z"], step["queue"].flip(0), strict=True)]
        assert value == pytest.approx((sum(terms) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["vrn", "keys", "repeats", "repeats_keys", "own_keys"])
def test_logged_statistics_are_those_of_the_first_pair(runs, name):
    run = runs[name]
    for step, positive, mean, var in zip(
        recorded(run),
        run.steps("train_sim_positive_mean"),
        run.steps("train_sim_negative_mean"),
        run.steps("train_sim_negative_var"),
        strict=True,
    ):
        second = step["z" if name in ("vrn", "repeats") else "momentum_z"][1]
        u, v = (torch.nn.functional.normalize(z, dim=1) for z in (step["z"][0], second))
        similarity = u @ v.T
        negatives = similarity[step["index"][:, None] != step["index"]]
        assert positive == pytest.approx(similarity.diagonal().mean().item(), rel=1e-5)
        assert mean == pytest.approx(negatives.mean().item(), rel=1e-5, abs=1e-7)
        assert var == pytest.approx(negatives.var(unbiased=False).item(), rel=1e-4)


def test_one_step_of_sgd_is_the_gradient_of_loss_plus_3_vrn(runs):
    found, (step,) = states(runs["one_step"]), recorded(runs["one_step"])
    before = {key: value.clone().requires_grad_() for key, value in found["before"].items()}
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 5, generator=generator)
    noise = 0.3 * torch.randn(2, 8, 5, generator=generator)
    feats = [(x + noise[i]) @ before["backbone.weight"].T for i in range(2)]
    z = [f @ before["projector.weight"].T + before["projector.bias"] for f in feats]
    torch.testing.assert_close(torch.stack(z).detach(), step["z"])
    logits = [f.detach() @ before["classifier.weight"].T + before["classifier.bias"] for f in feats]
    class_loss = sum(torch.nn.functional.cross_entropy(row, step["targets"]) for row in logits) / 2
    total = varloss.NTXentLoss(temperature=0.5)(*z) + class_loss + 3 * F.vrn(*z, num_samples=8)
    total.backward()
    for key, value in before.items():
        torch.testing.assert_close(found["after"][key], (value - 0.1 * value.grad).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("dcl", varloss.NTXentLoss(temperature=0.5, decoupled=True)),
        ("dhel", varloss.NTXentLoss(temperature=0.5, decoupled=True, negatives="within")),
        ("nt_xent", varloss.NTXentLoss(temperature=0.5)),
        ("nt_within", varloss.NTXentLoss(temperature=0.5, negatives="within")),
        ("dcl_cross", varloss.NTXentLoss(temperature=0.5, decoupled=True, negatives="cross")),
        ("plain", varloss.NTXentLoss(temperature=0.5)),
    ],
)
def test_the_objective_is_the_cores_loss_of_that_name(runs, name, loss):
    expected = [loss(*step["z"]).item() for step in recorded(runs[name])]
    assert runs[name].steps("train_nce_loss") == pytest.approx(expected, rel=1e-5)


def test_the_weight_rises_linearly_from_0(runs):
    assert runs["warmup"].steps("train_vrn_weight") == pytest.approx([0, 1, 2])
    assert runs["warmup_steps"].steps("train_vrn_weight") == pytest.approx([0, 1.5, 3])
    # The first step is taken with weight 0, so the second sees the network of the plain run; the third does not.
    warm, plain = runs["warmup"].steps("train_vrn"), runs["weight0"].steps("train_vrn")
    assert warm[:2] == plain[:2]
    assert not math.isclose(warm[2], plain[2], rel_tol=1e-4)


def test_a_collapse_warns_once_with_the_mean(runs):
    mean = runs["collapsed"].steps("train_sim_negative_mean")
    assert min(mean) > 0.9
    assert runs["collapsed"].err.count("varloss: the mean similarity of negative pairs was") == 1
    assert "varloss: the mean similarity" not in runs["vrn"].err


@pytest.mark.parametrize("name", ["vrn", "queue", "dhel"])
def test_nothing_is_added_to_the_module_and_its_class_pickles(runs, name):
    after = runs[name].after
    assert after["pickles"]
    assert after["keys"] == list(states(runs[name])["before"])
    assert not any("varloss" in part for part in after["modules"])


@pytest.mark.parametrize("name", ["dcl", "dhel", "nt_xent"])
def test_new_methods_save_themselves_as_simclr(runs, name):
    saved = runs[name].after
    assert (saved["cfg"]["method"], saved["cfg"]["objective"], saved["class"]) == ("simclr", name, "SimCLRWithVRN")


def test_the_forks_keys_train_the_same_network(runs):
    fork, own = states(runs["fork"])["after"], states(runs["vrn"])["after"]
    assert all(torch.equal(fork[key], own[key]) for key in own)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcl", "dhel", "supcon", "repeats"])
def test_two_ranks_train_the_network_of_one_process_on_the_whole_batch(runs_on_two_ranks, name):
    one, two = runs_on_two_ranks[name, 1], runs_on_two_ranks[name, 2]
    assert two.rc == 0, two.err
    assert two.said == [f"{one.said[0].split(', objective')[0]}, over 2 ranks" + "".join(
        f", objective{rest}" for rest in one.said[0].split(", objective")[1:]
    )]  # fmt: skip
    assert two.steps("train_vrn") == pytest.approx(one.steps("train_vrn"), rel=1e-5)
    if name != "supcon":
        assert two.steps("train_nce_loss") == pytest.approx(one.steps("train_nce_loss"), rel=1e-5)
    first, second = (recorded(two, rank)[0]["index"].tolist() for rank in (0, 1))
    assert sorted(first + second) == sorted(recorded(one)[0]["index"].tolist()), (
        "the ranks must share one batch between them"
    )
    alone, together = states(one)["after"], states(two)["after"]
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=1e-5, atol=1e-6)
