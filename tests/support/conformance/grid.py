"""The grid: every mechanism, every subject, and the outcome of a cell."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import varloss
from support.conformance.subject import MismatchError, NotRun, Subject
from varloss.losses.vrn import ONE_SIDED

State = Literal["right", "error", "not run", "red"]
ROOT = Path(varloss.__file__).parents[1]
OURS = tuple(str(ROOT / folder) for folder in ("varloss", "integrations"))


@dataclass(frozen=True)
class Mechanism:
    """What torch, or a user, does to a loss. The label is the function's docstring."""

    name: str
    group: str
    label: str
    run: Callable[[Subject], None]
    applies: Callable[[Subject], bool]
    may_refuse: bool
    slow: bool
    slowest: bool


@dataclass(frozen=True)
class Outcome:
    """``kind`` is the short form of ``what``: the class of an error, or what is wrong."""

    state: State
    kind: str = ""
    what: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.kind}" if self.kind else self.state


MECHANISMS: dict[str, Mechanism] = {}


def mechanism(
    group: str,
    *,
    applies: Callable[[Subject], bool] = lambda subject: True,
    may_refuse: bool = False,
    slow: bool = False,
    slowest: bool = False,
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """A row of the grid.

    ``may_refuse``: an error of our own that says what to do will do. ``slow``: the default run takes the representative subjects
    alone; ``slowest``: none.
    """

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        label = " ".join((run.__doc__ or "").split())
        assert label, run.__name__
        assert run.__name__ not in MECHANISMS, run.__name__
        MECHANISMS[run.__name__] = Mechanism(
            run.__name__, group, label.rstrip("."), run, applies, may_refuse, slow, slowest
        )
        return run

    return register


def says_what_to_do(error: Exception) -> bool:
    """Whether a raise statement of ours raised it, which knows the argument or the mechanism by name."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = last.filename.startswith(OURS) and (last.line or "").startswith("raise ")
    return ours and isinstance(error, (TypeError, ValueError, RuntimeError))


def outcome(mechanism: Mechanism, subject: Subject) -> Outcome:
    """Runs one cell."""
    with warnings.catch_warnings():
        warnings.simplefilter("error" if subject.is_ours else "ignore")
        for category in (DeprecationWarning, FutureWarning):  # torch's about itself
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=ONE_SIDED[:40])
        try:
            mechanism.run(subject)
        except NotRun as reason:
            return Outcome("not run", str(reason))
        except MismatchError as error:
            return Outcome("red", error.kind, str(error))
        except Exception as error:
            documented = subject.is_ours and mechanism.may_refuse and says_what_to_do(error)
            return Outcome("error" if documented else "red", type(error).__name__, str(error))
    return Outcome("right")
