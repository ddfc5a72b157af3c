"""A trial of a search, how it ended, and where it is written: the words every part of the search speaks in."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from synaptune.core.errors import NO_SPACE, UserError
from synaptune.core.text import get_first_line
from synaptune.search.space.space import UnitPoint, Value
from synaptune.training.errors import DivergedError

TrialStatus = Literal["running", "complete", "failed", "pruned"]
# mistake and disk would fail every trial alike; memory, device, timeout and worker are what the machine did to this one.
FailureKind = Literal["mistake", "disk", "number", "memory", "device", "timeout", "worker", "error"]
FATAL_KINDS = ("mistake", "disk")


@dataclass(frozen=True)
class Trial:
    """One evaluation.

    number: unique in the study; index: position in its phase; unit: point of the unit box; values: parameters by name;
    objective: null unless complete; estimate: of a pruned trial, what its objective would have been; reason: why it failed;
    facts: everything else that is known (metrics, seed, seconds, ...).
    """

    number: int
    index: int
    unit: UnitPoint
    values: dict[str, Value]
    state: TrialStatus = "running"
    objective: float | None = None
    estimate: float | None = None
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Failure(NamedTuple):
    """Why a trial failed: its kind, one line or more for people, and the traceback where there is one."""

    kind: FailureKind
    reason: str
    trace: str = ""


class TrialPruned(Exception):
    """Raised by an objective that stops early; estimate: what its objective would have been, null when it does not know."""

    def __init__(self, estimate: float | None = None) -> None:
        super().__init__(estimate)
        self.estimate = estimate


@dataclass(frozen=True)
class Result:
    """How an evaluation ended: an objective, a failure, or pruned with an estimate of the objective (null: unknown).

    seconds: wall time; metrics: numbers by name; facts: anything else, as JSON.
    """

    objective: float | None
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    pruned: bool = False
    estimate: float | None = None

    @property
    def cause(self) -> Failure | None:
        """Why it counts as failed; null when it does not. An objective that is no finite number is a failure, not a score."""
        if self.failure is not None or self.pruned:
            return self.failure
        if self.objective is None or not math.isfinite(self.objective):
            return Failure("number", f"the objective is {self.objective}, expected a finite number")
        return None


def make_failure(error: BaseException) -> Failure:
    """What an exception says about its trial."""
    if isinstance(
        error, DivergedError
    ):  # a user's mistake in a single run, here only a bad point of the space
        return Failure("number", get_first_line(error))
    if isinstance(error, UserError):
        return Failure("mistake", str(error))
    reason = f"{type(error).__name__}: {error}"
    return Failure(
        _classify_error(error, reason), reason, "".join(traceback.format_exception(error))
    )


def _classify_error(error: BaseException, reason: str) -> FailureKind:
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "disk"
    # torch's exceptions by name, so that a search of something else need not import it
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if type(error).__name__ == "AcceleratorError" or "CUDA error" in reason:
        return "device"
    return "number" if isinstance(error, FloatingPointError) else "error"


class Ledger(Protocol):
    """Where the trials of one phase are kept; every call is durable when it returns."""

    def read_trials(self) -> list[Trial]:
        """All trials of the phase, by index."""
        ...

    def start(
        self, index: int, unit: UnitPoint, values: dict[str, Value], generation: int
    ) -> Trial:
        """Write a trial as running."""
        ...

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Write an intermediate value of a running trial."""
        ...

    def record_retry(self, trial: Trial, reason: str) -> Trial:
        """Write that an attempt at a trial was lost; the trial stays running."""
        ...

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Write how a trial ended."""
        ...


def find_best(trials: Iterable[Trial], maximize: bool = False) -> Trial | None:
    """The best complete trial, the earliest among equals; null when there is none."""
    complete = [trial for trial in trials if trial.objective is not None]
    return min(complete, key=lambda trial: get_loss(trial, maximize) or 0.0, default=None)


def get_loss(trial: Trial, maximize: bool = False) -> float | None:
    """What an optimizer minimises: the objective, of a pruned trial its estimate; null when it has neither."""
    value = trial.estimate if trial.state == "pruned" else trial.objective
    return -value if maximize and value is not None else value
