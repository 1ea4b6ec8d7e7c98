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
        ({"weight": "3"}, r"varloss\.weight must be a number; got '3'. Remove the quotes; .* \$\{oc.decode:"),
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
        (False, "must be a block of keys; got False.* for a run without VRN write off in place of vrn"),
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


MISSPELT = [
    ({"varlos": "vrn"}, "unknown key varlos: did you mean varloss?"),
    ({"Varloss": "vrn"}, "unknown key Varloss: did you mean varloss?"),
    ({"varlos": 3}, "unknown key varlos: did you mean varloss?"),
    ({"vraloss": {"wieght": 3}}, "unknown key vraloss: did you mean varloss?"),
    ({"varloss_": {"weight": 3}}, "unknown key varloss_: did you mean varloss?"),
    ({"var_loss": {"weight": 3}}, "unknown key var_loss: did you mean varloss?"),
    ({"valos": "paper"}, "unknown key valos: did you mean varloss?"),
    ({"varlos_weight": 3}, "unknown key varlos_weight: did you mean varloss?"),
    ({"varloss_weight": 3}, "unknown key varloss_weight: did you mean varloss?"),
    ({"vrn": {"weight": 3}}, "unknown key vrn: did you mean varloss?"),
    ({"varloss": {"weight": 3}, "varlos": {"weight": 5}}, "unknown key varlos: did you mean varloss?"),
    ({"add_vrn_los_term": {"enabled": True}}, "unknown key add_vrn_los_term: did you mean add_vrn_loss_term?"),
    ({"add_var_loss_term": {"enabled": True}}, "unknown key add_var_loss_term: did you mean add_vrn_loss_term?"),
    ({"objectve": "dcl"}, "unknown key objectve: did you mean objective?"),
    ({"Objective": "dcl"}, "unknown key Objective: did you mean objective?"),
    ({"method_kwargs": {"varloss": {"weight": 3}}}, "method_kwargs.varloss: did you mean varloss at the top level?"),
    ({"method_kwargs": {"objective": "dcl"}}, "method_kwargs.objective: did you mean objective at the top level?"),
    ({"optimizer": {"varlos": {"weight": 3}}}, "optimizer.varlos: did you mean varloss at the top level?"),
    ({"regularizer": "vrn"}, "unknown key regularizer: did you mean varloss?"),
    ({"other": {"weight": 3, "num_samples": 9}}, "unknown key other: did you mean varloss?.* add .varloss=off"),
    ({"other": {"weight": 3, "pairs": "both"}}, "unknown key other: did you mean varloss?"),
]
OTHERS = [
    {"val_loss": {"weight": 2}},
    {"max_loss": 1.0, "vae_loss": 1.0, "arc_loss": {"weight": 0.5}},
    {"loss": {"weight": 0.5}},
    {"tag": "paper", "mode": "off", "group": "vrn-study"},
    {"weight": 5, "num_samples": 5, "varlen": 3},
    {"distill": {"weight": 1.0, "warmup_steps": 10}, "head": {"enabled": True, "weight": 0.1}},
    {"sampler": {"weight": 1.0, "negatives": 64}},
    {"objectives": ["a", "b"], "subjective": "x"},
    {"varloss": {"weight": 3}, "group": "vrn", "other": {"weight": 3, "pairs": "both"}},
    {"varloss": {"weight": "${vrn_weight}"}, "vrn_weight": 3},
    {"varloss": "${my_vrn}", "my_vrn": {"weight": 3}},
    {"wandb": {"vrn": "first try"}},
    {"method_kwargs": {"var_loss_weight": 25.0}},
]


@pytest.mark.parametrize(("keys", "message"), MISSPELT)
def test_a_misspelt_block_is_refused_with_the_name_that_was_meant(keys, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?", 1)):
        made(**keys)


@pytest.mark.parametrize("keys", OTHERS)
def test_keys_of_others_pass(keys):
    made(**keys)


def test_an_empty_block_is_a_run_without_vrn_that_says_so():
    decided, cfg = made(varloss=None)
    assert (decided.vrn, decided.describe(None), cfg) == (None, "off", {"method": "simclr"})


def test_interpolations_are_resolved_or_refused_by_name():
    assert made(lr=4, varloss={"weight": "${lr}"})[0].vrn.weight == 4
    with pytest.raises(ValueError, match="the block varloss cannot be read: Interpolation key 'nope' not found"):
        made(varloss={"weight": "${nope}"})


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
