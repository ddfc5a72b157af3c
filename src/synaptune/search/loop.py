"""The one loop of every search: ask -> launch -> score -> tell.

It serves every optimizer, every kind of workers and any callable. What is asked is written to the ledger before it starts and
what ends is written once, so that a search killed anywhere goes on with the same points. A new candidate starts as soon as a
worker is free; an optimizer that learns is asked only for the generation under way, and told a generation when it is whole, in
the order of its asks: so the points depend neither on which trial ends first nor on how many run at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synaptune.errors import UserError
from synaptune.search.contract import Engine, Optimizer, Told
from synaptune.search.diagnostics import Diagnostics
from synaptune.search.optimizers import make_optimizer
from synaptune.search.runner import Runner, interruptible
from synaptune.search.space import Space
from synaptune.search.state import StateFile, restore
from synaptune.search.trial import Failure, Ledger, Trial, loss_of
from synaptune.search.workers import Judge, Workers

# A generation of fewer trials than this says too little about how often trials fail.
_LEAST_JUDGED = 4


@dataclass(frozen=True)
class Plan:
    """budget: ended trials in all (failed ones count), null is as many as the optimizer has; max_failure_rate: failed part of a
    generation that is still tolerated; retries: further attempts at a trial whose worker died."""

    budget: int | None
    maximize: bool = False
    max_failure_rate: float = 0.5
    retries: int = 1

    def check(self) -> None:
        """Raise UserError with every fault."""
        found = []
        if self.budget is not None and self.budget < 1:
            found.append(f"budget={self.budget}: expected at least 1 evaluation")
        if not 0.0 <= self.max_failure_rate <= 1.0:
            found.append(f"max_failure_rate={self.max_failure_rate:g}: expected 0 to 1")
        if self.retries < 0:
            found.append(f"retries={self.retries}: expected at least 0")
        if found:
            raise UserError("got a search that cannot run\n  " + "\n  ".join(found) + "\n  to do: correct these values")


Watch = Callable[[Trial, int], None]
Stop = Callable[[Sequence[Trial]], str | None]
Observe = Callable[[Diagnostics, Sequence[Trial]], None]


def search(
    space: Space,
    engine: Engine,
    plan: Plan,
    *,
    ledger: Ledger,
    state: StateFile,
    workers: Workers,
    started: Callable[[Trial], None] = lambda trial: None,
    watch: Watch = lambda trial, ended: None,
    judge: Judge | None = None,
    prior: Sequence[Told] = (),
    stop: Stop = lambda trials: None,
    observe: Observe = lambda diagnostics, members: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Run a search to its budget, from wherever the ledger has it; returns all its trials.

    started: told every trial that a worker is given; watch: told every ended trial and how many have ended; judge: whether a trial
    should stop at a value it reports; prior: points of an earlier study; stop: asked at every whole generation for a reason to end the
    search, null to go on; observe: told the search distribution after each generation, where there is one, and the generation's
    trials; say: told what a person should know.
    Raises UserError when too many trials fail, when one fails by a user's mistake, or when the disk is full, KeyboardInterrupt
    after Ctrl-C (running trials have then ended).
    """
    plan.check()
    trials = ledger.trials()
    stored = [(_told(trial, plan), trial.state != "running") for trial in trials]
    restored = restore(state, lambda: make_optimizer(engine, space, prior), stored)
    if restored.note:
        say(restored.note)
    runner = Runner(workers, ledger, retries=plan.retries, judge=judge, started=started, say=say)
    course = _Course(space, plan, ledger, state, restored.optimizer, restored.told, trials)
    if not trials:
        course.save()  # from here on only between generations: a replay begins with the first ask of one
    with interruptible() as interruption:
        while True:
            course.learn(observe)
            if not course.ending and (reason := stop(course.whole)):
                say(f"search: {reason}")
                course.ending = True
            while runner.free and not interruption.pressed and (trial := course.next()) is not None:
                runner.start(trial)
            if not runner.running:
                if interruption.pressed and not course.done:
                    raise KeyboardInterrupt
                return course.trials
            for trial, result in runner.take():
                watch(trial, course.ended(trial))
                if result.cause is not None:
                    course.failed(trial, result.cause)


class _Course:
    """Where a search stands: its trials by index, and the generations its optimizer has been told."""

    def __init__(
        self, space: Space, plan: Plan, ledger: Ledger, state: StateFile, optimizer: Optimizer, told: int, trials: list[Trial]
    ) -> None:
        self.trials = trials
        self.ending = False
        self._space, self._plan, self._ledger, self._state = space, plan, ledger, state
        self._optimizer, self._size, self._generations = optimizer, optimizer.generation_size, told
        self._waiting = deque(trial for trial in trials if trial.state == "running")
        self._ended = len(trials) - len(self._waiting)
        self._exhausted = False
        self._failures: list[tuple[Trial, Failure]] = []

    @property
    def whole(self) -> Sequence[Trial]:
        """The trials of the generations that are whole."""
        return self.trials[: self._generations * self._size]

    @property
    def done(self) -> bool:
        """Whether nothing is left to run."""
        return not self._waiting and (self.ending or self._exhausted or not self._room())

    def save(self) -> None:
        """Snapshot an optimizer that learns; the points of another are its asks alone."""
        if self._optimizer.learns:
            self._state.save(self._optimizer, self._generations)

    def learn(self, observe: Observe) -> None:
        """Tell the optimizer every generation that is whole."""
        while True:
            members = self.trials[self._generations * self._size : (self._generations + 1) * self._size]
            if len(members) < self._size or any(trial.state == "running" for trial in members):
                return
            self._optimizer.tell([_told(trial, self._plan) for trial in members])
            self._generations += 1
            self.save()
            if (diagnostics := self._optimizer.diagnostics()) is not None:
                observe(diagnostics, members)

    def next(self) -> Trial | None:
        """The next trial to run: one that an earlier process left, else a new one; null when none may start now."""
        if self._waiting:
            return self._waiting.popleft()
        if self.ending or not self._room():
            return None
        if self._optimizer.learns and len(self.trials) >= (self._generations + 1) * self._size:
            return None
        unit = self._optimizer.ask()
        if unit is None:
            self._exhausted = True
            return None
        index = len(self.trials)
        trial = self._ledger.start(index, unit, self._space.values(unit), index // self._size)
        self.trials.append(trial)
        return trial

    def _room(self) -> bool:
        return self._plan.budget is None or len(self.trials) < self._plan.budget

    def ended(self, trial: Trial) -> int:
        """Take in an ended trial; how many have ended."""
        self.trials[trial.index] = trial
        self._ended += 1
        return self._ended

    def failed(self, trial: Trial, cause: Failure) -> None:
        """Raise UserError once a generation, as far as it ran in this process, has more failed trials than tolerated."""
        self._failures.append((trial, cause))
        judged = max(self._size, _LEAST_JUDGED)
        latest = trial.index // judged
        count = sum(earlier.index // judged == latest for earlier, _ in self._failures)
        if count <= self._plan.max_failure_rate * judged:
            return
        first, cause = self._failures[0]
        raise UserError(
            f"got {count} failed trials in one generation of {judged}; the first was trial {first.number}: {cause.reason}\n"
            f"{cause.trace}"
            f"  expected: at most {self._plan.max_failure_rate:.0%} (max_failure_rate)\n"
            f"  to do: mend the cause, or allow more failures, and give the same command; every finished trial is kept"
        )


def _told(trial: Trial, plan: Plan) -> Told:
    return Told(trial.unit, loss_of(trial, plan.maximize))
