"""Data types that all parts of a search share: trial, result, failure and ledger."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from synaptune.core.errors import NO_SPACE, UserError, is_memory_error
from synaptune.core.text import get_first_line
from synaptune.model.budget import PARAMETERS, BudgetExceeded
from synaptune.search.space.space import UnitPoint
from synaptune.search.space.values import Value, copy_value, to_number
from synaptune.training.errors import DivergedError

TrialStatus = Literal["running", "complete", "failed", "pruned"]
# A full disk would fail every other trial as well. A mistake may lie in one searched value. The
# causes memory, device, timeout and worker lie in the machine and concern one trial.
# `budget`, a model with too many parameters, is an answer about the point, no failure of a search.
FailureKind = Literal[
    "mistake",
    "budget",
    "disk",
    "number",
    "memory",
    "device",
    "timeout",
    "worker",
    "error",
]
# Facts of a trial that a search reads: the phase of its study, and in a study that processes share
# the process that runs it.
PHASE, PROCESS = "phase", "process"
# Facts of a trial whose point a user enqueued (the key of the point), and of one that started after
# its optimizer had learned imported trials (their number).
ENQUEUED, LEARNED = "enqueued", "imported_trials"
# Facts of a trial that trains one slice of a run (optimizers/pbt.py): the number of the slice, how
# many a run has, and the number of the trial whose weights the slice continues; None at the first.
SLICE, SLICES, PARENT = "slice", "slices", "parent"
_MAX_REASON, _MAX_TRACE = 2_000, 20_000  # stored characters; chosen: every database holds them
_SHOWN_REASONS = 5


@dataclass(frozen=True)
class Trial:
    """One evaluation of an objective.

    Attributes:
        number: number of the trial, unique in the study.
        index: position in the phase.
        unit: point of the unit box.
        values: parameter values by name.
        state: status of the trial.
        objective: value of the objective; None unless the trial is complete.
        estimate: extrapolated objective of a pruned trial; None if unknown.
        reason: why the trial failed; None if it did not fail.
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

    @property
    def value(self) -> float | None:
        """The objective."""
        return self.objective

    @property
    def params(self) -> dict[str, Value]:
        """A copy of the parameter values by name."""
        return copy_value(self.values)

    def copy(self) -> Trial:
        """Return a trial that shares no list or dict with this one."""
        return replace(self, values=copy_value(self.values), facts=copy_value(self.facts))


class Failure(NamedTuple):
    """Why a trial failed.

    Attributes:
        kind: category of the failure.
        reason: explanation for the user, one line or more.
        trace: traceback; empty if there is none.
    """

    kind: FailureKind
    reason: str
    trace: str = ""


class TrialPruned(Exception):
    """Raised by an objective function to stop its trial early.

    Args:
        estimate: extrapolated value of the objective; None or a message if it is unknown.
    """

    def __init__(self, estimate: float | str | None = None) -> None:
        super().__init__(estimate)
        self.estimate = estimate


@dataclass(frozen=True)
class Result:
    """Result of an evaluation: complete with an objective, failed, or pruned.

    Attributes:
        objective: value of the objective; None unless the evaluation is complete.
        seconds: wall time [s].
        metrics: numbers by name.
        facts: other JSON values by name.
        failure: why the evaluation failed; None if it did not.
        pruned: whether the evaluation stopped early.
        estimate: extrapolated objective of a pruned evaluation; None if unknown.
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
        """The failure, or None if there is none. A non-finite objective counts as a failure."""
        if self.failure is not None or self.pruned:
            return self.failure
        if self.objective is None or not math.isfinite(self.objective):
            return Failure("number", f"the objective is {self.objective}, expected a finite number")
        return None


def make_error_result(error: BaseException, seconds: float) -> Result:
    """Return the result of an evaluation that raised an exception: pruned, or failed.

    Optuna's TrialPruned counts as well.

    Args:
        error: the exception.
        seconds: wall time [s].
    """
    kinds = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    if ("synaptune", "TrialPruned") in kinds or ("optuna", "TrialPruned") in kinds:
        try:
            estimate = to_number(getattr(error, "estimate", None))
        except TypeError:
            estimate = math.nan
        known = estimate if math.isfinite(estimate) else None
        return Result(None, seconds, pruned=True, estimate=known)
    metrics = {PARAMETERS: float(error.count)} if isinstance(error, BudgetExceeded) else {}
    return Result(None, seconds, metrics, failure=make_failure(error))


def make_failure(error: BaseException) -> Failure:
    """Return the failure that an exception stands for."""
    # DivergedError is a UserError: divergence is a mistake of the user in a single run. In a search
    # it concerns one point of the space.
    if isinstance(error, DivergedError):
        return Failure("number", get_first_line(error))
    if isinstance(error, BudgetExceeded):
        return Failure("budget", str(error))
    if isinstance(error, UserError):
        return Failure("disk" if _has_full_disk(error) else "mistake", str(error))
    try:
        message = str(error)
    except Exception as failed:  # the exception is the user's, and so is its method
        message = f"(its message cannot be read: {type(failed).__name__})"
    if isinstance(error, SystemExit):
        message = f"the objective called sys.exit({message})"
    reason = f"{type(error).__name__}: {message}"[:_MAX_REASON]
    trace = "".join(traceback.format_exception(error))[-_MAX_TRACE:]
    return Failure(_classify_error(error, reason), reason, trace)


def describe_failures(trials: Iterable[Trial]) -> str:
    """Return the reasons of the failed trials, a line for each, the most frequent first."""
    reasons = Counter(_shorten_reason(trial) for trial in trials if trial.state == "failed")
    lines = [f"{count} x {reason}" for reason, count in reasons.most_common(_SHOWN_REASONS)]
    if len(reasons) > _SHOWN_REASONS:
        lines.append(f"and {len(reasons) - _SHOWN_REASONS} other reasons")
    return "\n".join(lines)


def _shorten_reason(trial: Trial) -> str:
    """Return the first line of a reason, and of a user error what it expected."""
    lines = [line.strip() for line in (trial.reason or "").splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines and lines[0].startswith("got ") else "".join(lines[:1])


def _has_full_disk(error: BaseException | None) -> bool:
    """Return whether a full disk is a cause of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _classify_error(error: BaseException, reason: str) -> FailureKind:
    if _has_full_disk(error):
        return "disk"
    # The exceptions of torch are compared by name: a search of another objective need not import
    # torch.
    if type(error).__name__ == "AcceleratorError" or "CUDA error" in reason:
        return "device"
    if is_memory_error(error):
        return "memory"
    return "number" if isinstance(error, FloatingPointError) else "error"


class TrialExistsError(Exception):
    """Another process has stored a trial of the same phase and index."""


class Ledger(Protocol):
    """Storage of the trials of one phase. Every call is durable when it returns."""

    def read_trials(self, first: int = 0) -> list[Trial]:
        """Return the trials of the phase from number `first` on, ordered by index."""
        ...

    def owns(self, trial: Trial) -> bool:
        """Return whether a running trial is one of this process, and of no other."""
        ...

    def start(
        self, index: int, unit: UnitPoint, values: dict[str, Value], generation: int, **facts: Any
    ) -> Trial:
        """Store a new trial as running.

        Raises:
            TrialExistsError: another process has stored a trial of this index.
        """
        ...

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Store an intermediate value of a running trial."""
        ...

    def read_intermediate_values(self, trial: Trial) -> dict[int, float]:
        """Return the reported values by step."""
        ...

    def record_retry(self, trial: Trial, reason: str) -> Trial:
        """Store that an attempt at a trial was lost. The trial stays running."""
        ...

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Store the result of a trial."""
        ...


def find_best(trials: Iterable[Trial], maximize: bool = False) -> Trial | None:
    """Return the best complete trial, the earliest among equals; None if no trial is complete.

    Of trials that train in slices only those of the latest slice are compared.
    """
    complete = [trial for trial in trials if trial.objective is not None]
    latest = max((trial.facts.get(SLICE, 0) for trial in complete), default=0)
    complete = [trial for trial in complete if trial.facts.get(SLICE, 0) == latest]
    return min(complete, key=lambda trial: get_loss(trial, maximize) or 0.0, default=None)


def is_partial(trial: Trial) -> bool:
    """Return whether a trial trained a slice before the last one of its run.

    Its objective compares with those of its slice only.
    """
    return trial.facts.get(SLICE, 0) + 1 < trial.facts.get(SLICES, 1)


def get_loss(trial: Trial, maximize: bool = False) -> float | None:
    """Return the loss that an optimizer minimizes, or None if the trial has none.

    The loss is the objective, for a pruned trial its estimate, negated if `maximize` is true.
    """
    value = trial.estimate if trial.state == "pruned" else trial.objective
    return -value if maximize and value is not None else value
