"""The search: Optuna proposes candidates, successive halving stops them, a budget of epochs ends it. It knows no network.

One search is sequential and its order of proposals is fixed by the seed, so that replaying stored scores through it gives
the same search again: a run that was killed resumes by starting anew and finding the scores of what was trained already.
Optuna's own storages would resume neither the sampler's random state nor a candidate that was under way.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna

State = Literal["finished", "halved", "collapsed", "diverged", "budget spent"]
# At each rung the better half goes on. With the few candidates of a small budget a sharper cut would be one by noise.
REDUCTION = 2
# TPE draws this many candidates at random, the given ones among them, before it models anything.
STARTUP_TRIALS = 5


@dataclass(frozen=True)
class Candidate:
    """A point of the search; weight 0 is without VRN."""

    weight: float
    temperature: float


@dataclass(frozen=True)
class Space:
    """What is searched: ranges on a logarithmic scale, and candidates that are tried first.

    Attributes:
        weight: None for the baseline, which has no VRN.
    """

    weight: tuple[float, float] | None
    temperature: tuple[float, float]
    first: tuple[Candidate, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        scores: One per rung that it reached.
        epochs: Nominal ones, whether they were trained now or are known from an earlier run.
    """

    candidate: Candidate
    scores: tuple[float, ...]
    epochs: int
    state: State
    reason: str = ""

    @property
    def score(self) -> float:
        """The score at the last rung, for candidates that finished; other scores are not comparable, so NaN."""
        return self.scores[-1] if self.state == "finished" else math.nan


class CandidateFailedError(Exception):
    """A candidate collapsed or diverged: the search goes on without it."""

    def __init__(self, state: Literal["collapsed", "diverged"], reason: str) -> None:
        super().__init__(reason)
        self.state: Literal["collapsed", "diverged"] = state


# Trains a candidate and hands over the score at each rung; stops as soon as the answer is False.
Evaluate = Callable[[Candidate, Callable[[float], bool]], None]


def search(
    space: Space,
    rungs: Sequence[int],
    budget: int,
    evaluate: Evaluate,
    *,
    seed: int,
    report: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Search until no candidate can be started within the budget.

    Args:
        space: What is searched.
        rungs: Epochs after which a candidate is scored, rising; the last is its full length. At every one but the last the
            lower half of the scores seen there so far is stopped (asynchronous successive halving, Li et al. 2020).
        budget: Epochs of all candidates together; never exceeded. A candidate that could not be paid up to its next rung
            stops where it is.
        evaluate: Raises `CandidateFailedError` for one that failed.
        seed: Random seed of the sampler.
        report: Called after each candidate.

    Returns:
        All candidates, in order.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
        # Rungs are numbered by powers of the reduction, whatever epochs they stand for: that is how the pruner counts them.
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    )
    for candidate in space.first:
        parameters: dict[str, Any] = {"temperature": candidate.temperature}
        study.enqueue_trial(parameters | ({"weight": candidate.weight} if space.weight else {}))
    outcomes: list[Outcome] = []
    spent = 0
    while spent + rungs[0] <= budget:
        trial = study.ask()
        outcome = _climb(trial, _propose(trial, space), rungs, budget - spent, evaluate)
        spent += outcome.epochs
        finished = outcome.state == "finished"
        study.tell(
            trial,
            outcome.score if finished else None,
            state=optuna.trial.TrialState.COMPLETE if finished else optuna.trial.TrialState.PRUNED,
        )
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def _propose(trial: Any, space: Space) -> Candidate:
    """A candidate with two significant digits, which is as precise as a search can be and easy to type."""
    temperature = trial.suggest_float("temperature", *space.temperature, log=True)
    weight = trial.suggest_float("weight", *space.weight, log=True) if space.weight else 0.0
    return Candidate(float(f"{weight:.2g}"), float(f"{temperature:.2g}"))


def _climb(trial: Any, candidate: Candidate, rungs: Sequence[int], left: int, evaluate: Evaluate) -> Outcome:
    scores: list[float] = []
    stopped: State = "finished"

    def decide(score: float) -> bool:
        nonlocal stopped
        rung = len(scores)
        scores.append(score)
        if rung + 1 == len(rungs):
            return False
        trial.report(score, REDUCTION**rung)
        if trial.should_prune():
            stopped = "halved"
        elif rungs[rung + 1] > left:
            stopped = "budget spent"
        return stopped == "finished"

    reason = ""
    try:
        evaluate(candidate, decide)
    except CandidateFailedError as error:
        stopped, reason = error.state, str(error)
    # One that failed on its way to a rung has been trained for it: at worst all of the way.
    reached = len(scores) if stopped in ("collapsed", "diverged") else len(scores) - 1
    return Outcome(candidate, tuple(scores), rungs[min(reached, len(rungs) - 1)], stopped, reason)


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The finished candidate with the highest score; of equal scores the smaller weight, then the first."""
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    return max(finished, key=lambda outcome: (outcome.score, -outcome.candidate.weight), default=None)
