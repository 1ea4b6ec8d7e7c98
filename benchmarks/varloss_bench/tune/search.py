"""The search: Optuna proposes candidates, successive halving stops them, and a budget of epochs ends the search.

This module does not depend on networks. A search is sequential, and the seed fixes its order of proposals, so replaying stored
scores gives the same search. A killed run therefore resumes by starting again and reading the stored scores. Optuna's own
storages would restore neither the sampler's random state nor an unfinished candidate.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna

State = Literal["finished", "halved", "collapsed", "diverged", "budget spent"]
# At each rung the better half continues. With few candidates a smaller fraction would select by noise.
REDUCTION = 2
# TPE draws this many candidates at random before it fits a model; the given candidates count among them.
STARTUP_TRIALS = 5


@dataclass(frozen=True)
class Candidate:
    """A point of the search; at weight 0 there is no VRN."""

    weight: float
    temperature: float


@dataclass(frozen=True)
class Space:
    """The search space: ranges on a logarithmic scale, and candidates that are tried first.

    Attributes:
        weight: Range of weights; None for the baseline, which has no VRN.
    """

    weight: tuple[float, float] | None
    temperature: tuple[float, float]
    first: tuple[Candidate, ...]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a candidate.

    Attributes:
        scores: One score per rung that it reached.
        epochs: Nominal number of epochs, including those that an earlier run trained.
    """

    candidate: Candidate
    scores: tuple[float, ...]
    epochs: int
    state: State
    reason: str = ""

    @property
    def score(self) -> float:
        """The score at the last rung; NaN for candidates that did not finish, because other scores are not comparable."""
        return self.scores[-1] if self.state == "finished" else math.nan


class CandidateFailedError(Exception):
    """A candidate collapsed or diverged; the search continues without it."""

    def __init__(self, state: Literal["collapsed", "diverged"], reason: str) -> None:
        super().__init__(reason)
        self.state: Literal["collapsed", "diverged"] = state


# Trains a candidate and passes the score at each rung to the callback; stops as soon as the callback returns False.
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
        space: The search space.
        rungs: Epochs after which a candidate is scored, in increasing order; the last is its full length. At every rung but
            the last, a candidate stops if its score is in the lower half of the scores so far at this rung (asynchronous
            successive halving, Li et al. 2020).
        budget: Maximum total epochs of all candidates. A candidate stops if the remaining budget does not reach its next rung.
        evaluate: Raises `CandidateFailedError` if the candidate failed.
        seed: Random seed of the sampler.
        report: Called after each candidate.

    Returns:
        All candidates, in order.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
        # The pruner numbers rungs by powers of the reduction factor, independent of their epochs.
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
    """A candidate with two significant digits, which are easy to type and as precise as a search can be."""
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
    # A candidate that failed before a rung counts as trained up to this rung, which is the worst case.
    reached = len(scores) if stopped in ("collapsed", "diverged") else len(scores) - 1
    return Outcome(candidate, tuple(scores), rungs[min(reached, len(rungs) - 1)], stopped, reason)


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The finished candidate with the highest score; ties go to the smaller weight, then to the first candidate."""
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    return max(finished, key=lambda outcome: (outcome.score, -outcome.candidate.weight), default=None)
