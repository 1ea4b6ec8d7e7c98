"""The search of `varloss-bench tune` on planted scores: its result, its cost, and how it resumes. No network is trained."""

import math

import numpy as np
import pytest

from varloss_bench.tune import report as tune_report
from varloss_bench.tune.search import Candidate, CandidateFailedError, Space, best, search

COSTS = (5, 10, 20, 40)  # epochs of a first seed, and all of a second
SPACE = Space((0.3, 30), (0.05, 1), (Candidate(3.0, 0.5), Candidate(3.0, 0.2)))
BASELINE = Space(None, (0.05, 1), (Candidate(0.0, 0.5), Candidate(0.0, 0.2)))
OPTIMUM = Candidate(12.0, 0.1)  # 2.6 and 7 from the candidates that are tried first
GRID = [Candidate(w, t) for w in (1.0, 3.0, 10.0) for t in (0.1, 0.2, 0.5, 1.0)]


def distance(candidate):
    """Squared distance from the optimum, in factors of 3 of the weight and 2 of the temperature."""
    return (math.log(candidate.weight / OPTIMUM.weight, 3)) ** 2 + (
        math.log(candidate.temperature / OPTIMUM.temperature, 2)
    ) ** 2


def planted(rng, noise=0.2):
    """Noisy scores with a maximum at the optimum; early scores are lower and noisier."""

    def evaluate(candidate, decide):
        seeds = noise * rng.normal(size=2)
        for rung, early in enumerate((3.0, 1.0, 0.0, 0.0)):
            score = 96 - distance(candidate) - early + (seeds[0] if rung < 3 else seeds.mean())
            if not decide(score + (noise * rng.normal() if early else 0.0)):
                return

    return evaluate


def run(evaluate, *, budget=160, space=SPACE, seed=0, **options):
    return search(space, COSTS, budget, evaluate, seed=seed, **options)


def test_finds_the_neighbourhood_of_a_planted_optimum_for_half_of_the_grids_epochs():
    assert len(GRID) * COSTS[-1] == 480
    assert min(distance(candidate) for candidate in SPACE.first) > 2.5
    found = []
    for seed in range(20):
        outcomes = run(planted(np.random.default_rng(seed)), budget=240, seed=seed)
        assert sum(outcome.epochs for outcome in outcomes) <= 240
        found.append(distance(best(outcomes).candidate))
    # Within one step of the grid from the optimum: a third of the weight, or half of the temperature.
    assert np.mean(np.array(found) < 1) >= 0.85
    assert np.median(found) < 0.6


def test_stops_the_worse_half_and_spends_no_more_than_the_budget():
    outcomes = run(planted(np.random.default_rng(0)), budget=400)
    seen = [[] for _ in COSTS]
    for outcome in outcomes:
        for rung, score in enumerate(outcome.scores):
            better = sum(other > score for other in seen[rung])
            seen[rung].append(score)
            goes_on = better < max(1, len(seen[rung]) // 2)
            if rung + 1 < len(COSTS) and outcome.state != "budget spent":
                assert goes_on == (rung + 1 < len(outcome.scores))
    assert {"halved", "finished"} <= {outcome.state for outcome in outcomes}
    assert 400 - COSTS[0] < sum(outcome.epochs for outcome in outcomes) <= 400
    for outcome in outcomes:
        assert outcome.epochs == COSTS[len(outcome.scores) - 1]
        assert (len(outcome.scores) == len(COSTS)) == (outcome.state == "finished")
        assert math.isnan(outcome.score) == (outcome.state != "finished")


@pytest.mark.parametrize("budget", [40, 63, 155])
def test_the_budget_is_never_exceeded_and_the_first_candidate_finishes(budget):
    outcomes = run(planted(np.random.default_rng(0)), budget=budget)
    assert sum(outcome.epochs for outcome in outcomes) <= budget
    assert outcomes[0].state == "finished"


def test_the_same_seed_gives_the_same_search_and_another_does_not():
    first, again, other = (run(planted(np.random.default_rng(1)), seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert [outcome.candidate for outcome in first] != [outcome.candidate for outcome in other]


def test_a_larger_budget_goes_on_with_the_same_search():
    def evaluate(candidate, decide):  # a function of the candidate, like trainings
        planted(np.random.default_rng(int(1e6 * candidate.weight * candidate.temperature)))(candidate, decide)

    small, large = run(evaluate, budget=160), run(evaluate, budget=320)
    assert len(large) > len(small)
    # The budget may have stopped the last candidates of the small search.
    whole = [outcome for outcome in small if outcome.state != "budget spent"]
    assert len(whole) >= len(small) - 4
    assert large[: len(whole)][:-4] == whole[:-4]


def test_the_given_candidates_come_first_and_the_baseline_has_no_vrn():
    outcomes = run(planted(np.random.default_rng(0)))
    assert [outcome.candidate for outcome in outcomes[:2]] == list(SPACE.first)

    def temperature_only(candidate, decide):
        assert candidate.weight == 0
        for score in (90, 92, 94, 95):
            if not decide(score - abs(math.log(candidate.temperature / 0.2))):
                return

    outcomes = run(temperature_only, space=BASELINE)
    assert [outcome.candidate for outcome in outcomes[:2]] == list(BASELINE.first)
    assert best(outcomes).candidate.temperature == pytest.approx(0.2, rel=0.3)


def test_proposals_lie_in_the_space_and_can_be_typed():
    for outcome in run(planted(np.random.default_rng(0)), budget=1000):
        weight, temperature = outcome.candidate.weight, outcome.candidate.temperature
        assert 0.3 <= weight <= 30
        assert 0.05 <= temperature <= 1
        assert float(f"{weight:.2g}") == weight
        assert float(f"{temperature:.2g}") == temperature


def test_a_failed_candidate_is_never_the_best_and_costs_what_it_was_trained():
    def evaluate(candidate, decide):
        if candidate == SPACE.first[0]:
            decide(99.0)
            raise CandidateFailedError("collapsed", "mean similarity 0.99 and rising, epoch 10")
        if candidate == SPACE.first[1]:
            raise CandidateFailedError("diverged", "mean training loss of epoch 3 is nan")
        planted(np.random.default_rng(0))(candidate, decide)

    outcomes = run(evaluate)
    assert [(o.state, o.epochs, o.reason != "") for o in outcomes[:2]] == [
        ("collapsed", 10, True),
        ("diverged", 5, True),
    ]
    assert best(outcomes).candidate not in SPACE.first


def test_a_search_in_which_everything_fails_ends():
    def evaluate(candidate, decide):
        raise CandidateFailedError("diverged", "nan")

    outcomes = run(evaluate)
    assert len(outcomes) == 160 // COSTS[0]
    assert best(outcomes) is None


def test_an_error_of_the_training_is_no_bad_candidate():
    def evaluate(candidate, decide):
        raise MemoryError("out of memory")

    with pytest.raises(MemoryError):
        run(evaluate)


def test_of_equal_scores_the_smaller_weight():
    def evaluate(candidate, decide):
        for _ in COSTS:
            if not decide(95.0):
                return

    outcomes = run(evaluate, budget=400)
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    assert len(finished) > 1
    assert best(outcomes).candidate.weight == min(outcome.candidate.weight for outcome in finished)


def test_words_claim_no_test():
    from varloss_bench.config import TrialConfig
    from varloss_bench.tune.train import Plan

    plan = Plan(TrialConfig(evaluate_on="val", seed=100), 2, (5, 10), "few_label_probe")
    assert plan.costs == COSTS

    def temperature_only(candidate, decide):
        all(decide(score) for score in (90, 92, 94, 95))

    found = {
        tune_report.WITH_VRN: run(planted(np.random.default_rng(0))),
        tune_report.BASELINE: run(temperature_only, space=BASELINE),
    }
    text = " ".join(tune_report.words(found, plan, 160))
    for phrase in ("mean of 2 validation seeds", "This is not a test", "Epochs spent of 160 each"):
        assert phrase in text
    content = tune_report.to_dict(found, plan, 160)
    assert content["test_with"].startswith("varloss-bench compare --method simclr")
    nothing = tune_report.to_dict({name: [] for name in found}, plan, 160)
    assert nothing["test_with"] is None
    assert "nothing is chosen" in " ".join(tune_report.words({name: [] for name in found}, plan, 160))
