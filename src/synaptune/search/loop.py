"""The one loop of every search: ask -> launch -> score -> tell.

It serves every optimizer, every launcher and any callable. What is asked is written to the ledger before it starts and what
ends is written once, so that a search killed anywhere goes on with the same points.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from synaptune.errors import NO_SPACE, UserError, mistake
from synaptune.search.optimizers import Engine, Told, make_optimizer
from synaptune.search.space import Space, Unit, Value
from synaptune.search.state import StateFile, restore

# A generation of fewer trials than this says too little about how often trials fail.
_LEAST_JUDGED = 4


@dataclass(frozen=True)
class Trial:
    """One evaluation.

    number: unique in the study; index: position in its phase; unit: point of the unit box; values: parameters by name;
    objective: null unless complete; estimate: what a pruned one would have reached; reason: why it failed;
    facts: everything else that is known (metrics, seed, seconds, ...).
    """

    number: int
    index: int
    unit: Unit
    values: dict[str, Value]
    state: Literal["running", "complete", "pruned", "failed"] = "running"
    objective: float | None = None
    estimate: float | None = None
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """How an evaluation ended: an objective with metrics and facts (any JSON), or the error; seconds of wall time.

    pruned: it was given up early, without an objective; estimate: the objective it would have reached, as extrapolated.
    """

    objective: float | None
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None
    pruned: bool = False
    estimate: float | None = None

    @property
    def reason(self) -> str | None:
        """Why it counts as failed; null when it does not. An objective that is no finite number is a failure, not a score."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        if self.objective is None or not math.isfinite(self.objective):
            return f"the objective is {self.objective}, expected a finite number"
        return None

    @property
    def trace(self) -> str:
        """The traceback of its error; empty without one."""
        return "".join(traceback.format_exception(self.error)) if self.error is not None else ""


class Ledger(Protocol):
    """Where the trials of one phase are kept; every call is durable when it returns."""

    def trials(self) -> list[Trial]:
        """All trials of the phase, by index."""
        ...

    def start(self, index: int, unit: Unit, values: dict[str, Value], generation: int) -> Trial:
        """Write a trial as running."""
        ...

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Write how a trial ended."""
        ...


@dataclass(frozen=True)
class Plan:
    """budget: finished trials in all (failed ones count), null is as many as the optimizer has; workers: trials at a time;
    max_failure_rate: failed part of a generation that is still tolerated."""

    budget: int | None
    workers: int = 1
    maximize: bool = False
    max_failure_rate: float = 0.5

    def check(self) -> None:
        """Raise UserError with every fault."""
        found = []
        if self.budget is not None and self.budget < 1:
            found.append(f"budget={self.budget}: expected at least 1 evaluation")
        if self.workers < 1:
            found.append(f"num_workers={self.workers}: expected at least 1 trial at a time")
        if not 0.0 <= self.max_failure_rate <= 1.0:
            found.append(f"max_failure_rate={self.max_failure_rate:g}: expected 0 to 1")
        if found:
            raise UserError("got a search that cannot run\n  " + "\n  ".join(found) + "\n  to do: correct these values")


Launch = Callable[[Sequence[Trial]], Iterable[Result]]
Watch = Callable[[Trial, int], None]


def search(
    space: Space,
    engine: Engine,
    plan: Plan,
    *,
    ledger: Ledger,
    state: StateFile,
    launch: Launch,
    watch: Watch = lambda trial, finished: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Run a search to its budget, from wherever the ledger has it; returns all its trials.

    launch: runs a batch of trials and yields their results in order, each as soon as it is there; watch: told every ended trial
    and how many have ended; say: told what a person should know.
    Raises UserError when too many trials fail, when one fails by a user's mistake, or when the disk is full.
    """
    plan.check()
    trials = ledger.trials()
    restored = restore(state, lambda: make_optimizer(engine, space), [(_told(trial, plan), trial.state != "running") for trial in trials])
    if restored.note:
        say(restored.note)
    optimizer, told = restored.optimizer, restored.told
    size = optimizer.generation_size
    if not trials:
        state.save(optimizer, told)  # from here on only between generations: a replay begins with the first ask of one
    failed: list[tuple[Trial, Result]] = []
    while True:
        members = trials[told * size : (told + 1) * size]
        waiting = [trial for trial in members if trial.state == "running"]
        if len(members) == size and not waiting:
            optimizer.tell([_told(trial, plan) for trial in members])
            told += 1
            state.save(optimizer, told)
            continue
        room = size - len(members)
        if plan.budget is not None:
            room = min(room, plan.budget - len(trials))
        while len(waiting) < plan.workers and room > 0 and (unit := optimizer.ask()) is not None:
            trial = ledger.start(len(trials), unit, space.values(unit), told)
            trials.append(trial)
            waiting.append(trial)
            room -= 1
        if not waiting:
            return trials
        batch = waiting[: plan.workers]
        for trial, result in zip(batch, launch(batch), strict=True):
            stop_for_mistake(result)
            ended = ledger.finish(trial, result)
            trials[trial.index] = ended
            watch(ended, sum(entry.state != "running" for entry in trials))
            if ended.state == "failed":
                failed.append((ended, result))
                _stop_for_failures(failed, size, plan)


def best_of(trials: Iterable[Trial], maximize: bool = False) -> Trial | None:
    """The best complete trial, the earliest among equals; null when there is none."""
    complete = [trial for trial in trials if trial.objective is not None]
    return min(complete, key=lambda trial: _loss(trial, maximize), default=None)


def _loss(trial: Trial, maximize: bool) -> float:
    assert trial.objective is not None
    return -trial.objective if maximize else trial.objective


def _told(trial: Trial, plan: Plan) -> Told:
    return Told(trial.unit, None if trial.objective is None else _loss(trial, plan.maximize))


def stop_for_mistake(result: Result) -> None:
    """A user's mistake or a full disk would fail every trial alike: stop, leaving the trial to be run again."""
    if isinstance(result.error, UserError):
        raise result.error
    if isinstance(result.error, OSError) and result.error.errno in NO_SPACE:
        raise mistake(
            got=f"a full disk: {result.error}",
            expected="space for the trial's files",
            do="make room and give the same command; every finished trial is kept",
        ) from result.error


def _stop_for_failures(failed: Sequence[tuple[Trial, Result]], size: int, plan: Plan) -> None:
    """Raise UserError once a generation, as far as it ran in this process, has more failed trials than tolerated."""
    judged = max(size, _LEAST_JUDGED)
    latest = failed[-1][0].index // judged
    count = sum(trial.index // judged == latest for trial, _ in failed)
    if count <= plan.max_failure_rate * judged:
        return
    first, result = failed[0]
    raise UserError(
        f"got {count} failed trials in one generation of {judged}; the first was trial {first.number}: {result.reason}\n"
        f"{result.trace}"
        f"  expected: at most {plan.max_failure_rate:.0%} (max_failure_rate)\n"
        f"  to do: mend the cause, or allow more failures, and give the same command; every finished trial is kept"
    )
