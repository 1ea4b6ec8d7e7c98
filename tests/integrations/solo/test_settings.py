"""The config block is read strictly, and combined with the method before anything is built."""

import math

import pytest
from omegaconf import OmegaConf

from varloss_solo import methods, plan, settings


def made(method="simclr", **keys):
    cfg = OmegaConf.create({"method": method, **keys})
    return plan.make(cfg, method), cfg


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"wieght": 3}, r"unknown key varloss\.wieght: did you mean weight\? Known keys: enabled, weight"),
        ({"weight": 3, "zzz": 1}, r"unknown key varloss\.zzz\. Known keys"),
        ({"weight": 3, "pairs": "crosss"}, r"varloss\.pairs must be one of cross, within, both; .*did you mean cross"),
        ({"weight": 3, "between": "view"}, r"varloss\.between must be one of views, keys.*did you mean views"),
        ({"negatives": "all"}, r"varloss\.negatives must be one of cross, within, both; got 'all'"),
        ({"weight": "3"}, r"varloss\.weight must be a number; got '3'"),
        ({"weight": True}, r"varloss\.weight must be a number; got True"),
        ({"enabled": "yes", "weight": 3}, r"varloss\.enabled must be true or false"),
        ({"weight": 3, "num_samples": 5e4}, r"varloss\.num_samples must be a whole number; got 50000\.0"),
        ({"weight": 3, "num_samples": 9, "target": 0.0}, "exclude each other"),
        ({"weight": 3, "warmup_steps": 0}, "must be at least 1; got 0"),
        ({"weight": 3, "warmup_steps": 5, "warmup_fraction": 0.5}, "exclude each other"),
        ({"weight": 3, "warmup_fraction": 1.5}, r"in \(0, 1\]; got 1\.5"),
        ({"pairs": "both"}, r"varloss\.pairs is given but varloss\.weight is not: add \+varloss\.weight=3"),
        ("vrn", r"must be a block of keys; got 'vrn'. For a preset write \+varloss=vrn"),
        (3, "must be a block of keys; got 3"),
    ],
)
def test_what_is_not_understood_raises_and_names_the_cure(block, message):
    with pytest.raises(ValueError, match=message):
        settings.from_block(block)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weight": -1.0}, "varloss: .*weight.*-1"),
        ({"weight": math.nan}, "varloss: .*weight.*nan"),
        ({"weight": math.inf}, "varloss: .*weight.*inf"),
        ({"weight": 3, "num_samples": 1}, "varloss: .*num_samples.*1"),
        ({"weight": 3, "num_samples": 0}, "varloss: .*num_samples.*0"),
        ({"weight": 3, "exponent": 0.5}, "varloss: .*exponent.*0.5"),
        ({"weight": 3, "target": math.nan}, "varloss: .*target.*nan"),
    ],
)
def test_ranges_are_the_cores(keys, message):
    with pytest.raises(ValueError, match=message):
        made(varloss=keys)


@pytest.mark.parametrize("name", [name for name, row in methods.METHODS.items() if row.refusal])
def test_a_method_without_pairs_refuses_with_its_reason(name):
    with pytest.raises(ValueError, match=f"method={name} has no pairs for VRN: {methods.METHODS[name].refusal[:30]}"):
        made(name, varloss={"weight": 3})


def test_a_method_that_is_not_in_the_table_is_refused():
    with pytest.raises(
        ValueError, match="method=mymethod has no pairs for VRN: varloss does not know which of its outputs"
    ):
        made("mymethod", varloss={"weight": 3})


@pytest.mark.parametrize("name", ["byol", "nnbyol", "simsiam", "nnsiam", "barlow_twins", "vicreg", "vibcreg"])
def test_methods_without_negatives_take_vrn_only_on_request(name):
    with pytest.raises(ValueError, match=f"method={name} has no negatives .* only on request: varloss.between="):
        made(name, varloss={"weight": 3})
    (offered,) = methods.METHODS[name].offered
    assert made(name, varloss={"weight": 3, "between": offered})[0].vrn.between == offered


def test_pairs_that_the_method_does_not_have_are_refused_with_those_it_has():
    with pytest.raises(
        ValueError, match=r"mocov3 offers varloss\.between=views .* or varloss\.between=keys .*got .*queue"
    ):
        made("mocov3", varloss={"weight": 3, "between": "queue"})
    with pytest.raises(ValueError, match=r"takes varloss\.pairs=cross; got both"):
        made("mocov2plus", varloss={"weight": 3, "between": "keys", "pairs": "both"})


def test_the_table_has_every_row_of_the_documentation():
    offered = {name: (row.default, row.offered) for name, row in methods.METHODS.items() if row.offered}
    assert offered == {
        "simclr": ("views", ("views",)),
        "supcon": ("views", ("views",)),
        "mocov2plus": ("views", ("views", "keys", "queue")),
        "mocov3": ("views", ("views", "keys")),
        "nnclr": ("views", ("views",)),
        "byol": (None, ("views",)),
        "nnbyol": (None, ("views",)),
        "simsiam": (None, ("targets",)),
        "nnsiam": (None, ("targets",)),
        "barlow_twins": (None, ("views",)),
        "vicreg": (None, ("views",)),
        "vibcreg": (None, ("views",)),
    }


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("dhel", {"varloss": {"negatives": "both"}}, "dhel is defined by its within-view negatives.*method=dcl"),
        ("mocov3", {"varloss": {"negatives": "cross"}}, "replaces SimCLR's loss and does not fit method=mocov3"),
        ("simclr", {"objective": "dlc"}, "objective must be one of nt_xent, dcl, dhel; got 'dlc'"),
        ("byol", {"objective": "dcl"}, "does not fit method=byol"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(method, keys, message):
    with pytest.raises(ValueError, match=message):
        made(method, **keys)


@pytest.mark.parametrize("method", ["dcl", "dhel", "nt_xent"])
def test_a_new_method_is_saved_as_simclr_with_its_objective_and_read_back(method):
    first, cfg = made(method)
    assert (cfg.method, cfg.objective, "varloss" in cfg) == ("simclr", method, False)
    again, _ = made(**cfg)
    assert again.objective == first.objective


def test_negatives_make_simclr_an_nt_xent():
    decided, cfg = made(varloss={"negatives": "within"})
    assert decided.objective.negatives == "within"
    assert cfg.objective == "nt_xent"
    assert decided.vrn is None


def test_two_spellings_of_one_configuration_are_saved_alike():
    _, short = made(varloss={"weight": 3})
    _, long = made(varloss={"weight": 3.0, "pairs": "cross", "between": None, "exponent": 2, "enabled": True})
    assert short.varloss == long.varloss
    _, off = made(varloss={"weight": 3, "enabled": False})
    assert "varloss" not in off


def test_an_unused_plugin_leaves_the_configuration_alone():
    decided, cfg = made(name="x", data={"dataset": "cifar10"})
    assert decided.silent
    assert decided.vrn is None
    assert cfg == {"method": "simclr", "name": "x", "data": {"dataset": "cifar10"}}


def test_the_forks_keys_mean_what_they_mean_there():
    decided, cfg = made(add_vrn_loss_term={"enabled": True, "k": 50_000})
    assert decided.from_fork
    assert (decided.vrn.weight, decided.vrn.settings.num_samples, decided.vrn.settings.exponent) == (30.0, 50_000, 2)
    assert "add_vrn_loss_term" not in cfg
    assert cfg.varloss.weight == 30.0
    with_delta, _ = made("dhel", add_vrn_loss_term={"enabled": True, "delta": -0.1, "weight": 5, "p": 3})
    assert (with_delta.vrn.weight, with_delta.vrn.settings.target, with_delta.vrn.settings.exponent) == (5.0, -0.1, 3)


def test_the_forks_keys_switched_off_are_a_plain_run():
    decided, cfg = made(add_vrn_loss_term={"enabled": False, "weight": 30, "k": 50_000})
    assert decided.vrn is None
    assert decided.silent
    assert cfg == {"method": "simclr"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"add_vrn_loss_term": {"enabled": True}}, "exactly one of k .* and delta"),
        ({"add_vrn_loss_term": {"enabled": True, "k": 9, "delta": 0.0}}, "exactly one of k .* and delta"),
        (
            {"add_vrn_loss_term": {"enabled": True, "k": 9, "wieght": 1}},
            "add_vrn_loss_term.wieght: did you mean weight",
        ),
        ({"add_vrn_loss_term": {"enabled": True, "k": 1}}, "varloss: .*num_samples"),
        ({"add_vrn_loss_term": {"enabled": "on"}}, "must be true or false"),
        ({"add_vrn_loss_term": {"enabled": True, "k": 9}, "varloss": {"weight": 3}}, "keep one of them"),
        (
            {"add_vrn_loss_term": {"enabled": True, "k": 9}, "optimizer": {"lr_method": "square_root"}},
            "lr_method='square_root' is a key of the fork",
        ),
    ],
)
def test_the_forks_keys_are_read_as_strictly(keys, message):
    with pytest.raises(ValueError, match=message):
        made(**keys)
