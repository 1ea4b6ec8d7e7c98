"""Which cell a validation split selects, against means, ties and leads worked out by hand."""

import dataclasses
import math

import pytest

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.statistics import selection
from varloss_bench.statistics.selection import Plan
from varloss_bench.statistics.summary import Pair


def plan(**changes) -> Plan:
    axes = {
        "methods": ["simclr"], "batch_sizes": [16], "weights": [0.0, 1.0, 3.0], "temperatures": [0.5, 0.1],
        "control_temperatures": [0.2],
    }  # fmt: skip
    axes |= {name: changes.pop(name) for name in axes.keys() & changes}
    values = {"base": TrialConfig(), "metric": "knn", "validation_seeds": [100, 101, 102], "test_seeds": range(4)}
    return Plan(axes=axes, **{**values, **changes})


def arm(temperature: float, weight: float, batch_size: int = 16) -> Arm:
    return Arm("simclr", batch_size, temperature, weight)


# Means: without VRN 91, 92, 92.5 (the control); with VRN 93.5, 93, 90, 91.
SCORES = {
    arm(0.5, 0.0): (90, 91, 92), arm(0.1, 0.0): (91, 92, 93), arm(0.2, 0.0): (92, 92, 93.5),
    arm(0.5, 1.0): (93, 94, 93.5), arm(0.5, 3.0): (94, 93, 92), arm(0.1, 1.0): (90, 90, 90), arm(0.1, 3.0): (91, 91, 91),
}  # fmt: skip


def choose(scores=SCORES, failed=None, of_plan=None):
    """The selection from these scores in the chosen metric; another metric prefers the opposite."""
    of_plan = of_plan or plan()
    records = {}
    for trial in of_plan.validation_trials():
        score = scores[trial.arm][list(of_plan.validation_seeds).index(trial.seed)]
        records[trial.key()] = {
            "status": "finished", "collapsed": False, "seconds": {"train": 1.0},
            "metrics": {"knn": float(score), "few_label_probe": 100.0 - score},
        } | (failed or {}).get((trial.arm, trial.seed), {})  # fmt: skip
    return selection.choose(of_plan.validation_trials(), records, of_plan.metric)


def test_the_highest_mean_of_each_side():
    (group,) = choose().groups
    assert group.chosen == (arm(0.2, 0.0), arm(0.5, 1.0))
    assert (group.baseline.candidates, group.vrn.candidates) == (3, 4)
    assert (group.baseline.runner_up.arm, group.vrn.runner_up.arm) == (arm(0.1, 0.0), arm(0.5, 3.0))
    assert (group.baseline.tied, group.vrn.tied) == (False, False)
    # Differences -1, 1, 1.5: mean 0.5, standard deviation sqrt(1.75), t quantile of 2 degrees of freedom 4.302653.
    lead = group.vrn.lead
    assert lead.mean == pytest.approx(0.5)
    assert lead.half_width == pytest.approx(4.302653 * math.sqrt(1.75) / math.sqrt(3), rel=1e-6)
    assert lead.count == 3


def test_the_metric_decides():
    assert choose(of_plan=plan(metric="few_label_probe")).chosen == [(arm(0.5, 0.0), arm(0.1, 1.0))]


def test_ties_go_to_the_smaller_weight_then_to_the_smaller_temperature():
    tied = SCORES | {arm(0.5, 1.0): (93, 93, 93), arm(0.5, 3.0): (92, 93, 94), arm(0.1, 3.0): (93, 93, 93)}
    (group,) = choose(tied).groups
    assert (group.vrn.row.arm, group.vrn.tied) == (arm(0.5, 1.0), True)
    assert group.vrn.runner_up.arm == arm(0.1, 3.0)  # weight 3 at 0.1 comes before weight 3 at 0.5
    (group,) = choose(tied | {arm(0.1, 1.0): (93, 92, 94)}).groups
    assert group.vrn.row.arm == arm(0.1, 1.0)


def test_a_difference_of_rounding_is_a_tie_and_a_smaller_score_is_not():
    close = SCORES | {arm(0.5, 1.0): (90, 90, 90), arm(0.5, 3.0): (95, 95, 95 + 1e-10), arm(0.1, 3.0): (95, 95, 95)}
    (group,) = choose(close).groups
    assert (group.vrn.row.arm, group.vrn.tied) == (arm(0.1, 3.0), True)
    (group,) = choose(close | {arm(0.5, 3.0): (95, 95, 95 + 1e-6)}).groups
    assert (group.vrn.row.arm, group.vrn.tied) == (arm(0.5, 3.0), False)


@pytest.mark.parametrize(
    "failure", [{"collapsed": True}, {"status": "diverged", "metrics": {}}, {"status": "crashed", "metrics": {}}]
)
def test_a_cell_with_a_failed_seed_cannot_be_chosen(failure):
    (group,) = choose(failed={(arm(0.5, 1.0), 102): failure}).groups
    assert group.vrn.row.arm == arm(0.5, 3.0)
    assert group.vrn.candidates == 3
    assert len(group.rows) == 7


def test_a_side_without_a_cell_has_no_choice():
    lost = {(arm(t, w), 100): {"collapsed": True} for t in (0.5, 0.1) for w in (1.0, 3.0)}
    found = choose(failed=lost)
    assert found.groups[0].vrn is None
    assert found.groups[0].chosen is None
    assert found.chosen == []
    assert found.pairs() == []


def test_a_single_cell_has_no_runner_up():
    of_plan = plan(weights=[1.0], temperatures=[0.5], control_temperatures=[])
    choice = choose(of_plan=of_plan).groups[0].vrn
    assert (choice.candidates, choice.runner_up, choice.lead, choice.tied) == (1, None, None, False)


def test_the_comparisons_on_test():
    """With the tuned baseline, and with the arm's own temperature if the baseline has another one."""
    treated = arm(0.5, 1.0)
    assert choose().pairs() == [
        Pair(treated, arm(0.2, 0.0), "tuned baseline"),
        Pair(treated, arm(0.5, 0.0), "same temperature"),
    ]
    same = SCORES | {arm(0.5, 0.0): (99, 99, 99)}
    assert choose(same).pairs() == [Pair(treated, arm(0.5, 0.0), "tuned baseline")]


def test_each_method_and_batch_size_chooses_for_itself():
    of_plan = plan(batch_sizes=[16, 64])
    scores = SCORES | {dataclasses.replace(a, batch_size=64): tuple(100 - s for s in v) for a, v in SCORES.items()}
    assert choose(scores, of_plan=of_plan).chosen == [
        (arm(0.2, 0.0), arm(0.5, 1.0)),
        (arm(0.5, 0.0, 64), arm(0.1, 1.0, 64)),
    ]


def test_validation_trials_are_the_grid_on_the_validation_split():
    trials = plan().validation_trials()
    assert len(trials) == 3 * (2 * 3 + 1)
    assert {trial.evaluate_on for trial in trials} == {"val"}
    assert [trial.seed for trial in trials] == [100] * 7 + [101] * 7 + [102] * 7
    assert {trial.arm for trial in trials if trial.temperature == 0.2} == {arm(0.2, 0.0)}


def test_test_trials_are_both_arms_the_own_temperature_and_the_untrained_rows():
    trials = plan().test_trials([(arm(0.2, 0.0), arm(0.5, 1.0))])
    assert [trial.seed for trial in trials] == [seed for seed in range(4) for _ in range(5)]
    assert {trial.evaluate_on for trial in trials} == {"test"}
    assert {trial.arm for trial in trials if trial.arm.trained} == {arm(0.2, 0.0), arm(0.5, 1.0), arm(0.5, 0.0)}


def test_no_selection_leads_to_more_test_trials_than_the_most():
    of_plan = plan(batch_sizes=[16, 64])
    most = {trial.arm for trial in of_plan.most_test_trials() if trial.arm.trained}
    assert len(most) == 2 * 3
    assert max(a.weight for a in most) == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "negative_variance"}, "--select-by must be one of"),
        ({"validation_seeds": []}, "--select-seeds must be at least 1, got 0"),
        ({"validation_seeds": [3, 4]}, "got 3 in both"),
        ({"base": TrialConfig(evaluate_on="val")}, "--evaluate-on val"),
        ({"weights": [0.0]}, "--weight above 0"),
    ],
)
def test_a_plan_that_cannot_select_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_the_stored_selection():
    of_plan = plan()
    found = choose(failed={(arm(0.1, 3.0), 100): {"collapsed": True}})
    stored = selection.to_dict(of_plan, found, of_plan.validation_trials())
    assert (stored["chosen_by"], stored["validation_seeds"], stored["test_seeds"]) == (
        "knn",
        [100, 101, 102],
        [0, 1, 2, 3],
    )
    assert not {"method", "seed", "batch_size", "temperature", "weight", "evaluate_on"} & set(stored["config"])
    (group,) = stored["groups"]
    assert (group["method"], group["batch_size"]) == ("simclr", 16)
    assert (group["vrn"]["temperature"], group["vrn"]["weight"], group["vrn"]["candidates"]) == (0.5, 1.0, 3)
    assert group["vrn"]["lead"]["mean"] == pytest.approx(0.5)
    cells = {(cell["temperature"], cell["weight"]): cell for cell in group["cells"]}
    assert cells[0.5, 1.0]["scores"] == {"100": 93.0, "101": 94.0, "102": 93.5}
    assert [cell["out"] for cell in cells.values()].count("collapsed") == 1
    assert all(len(cell["trials"]) == 3 for cell in cells.values())
    same = selection.what_was_chosen(stored)
    assert same["test_cells"] == {
        "simclr, B=16": {
            "baseline": {"temperature": 0.2, "weight": 0.0},
            "vrn": {"temperature": 0.5, "weight": 1.0},
        }
    }
