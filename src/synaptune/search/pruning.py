"""Ending a run that is not worth its remaining steps, from the losses it reported so far.

    none         never
    percentile   best loss so far > the `percentile`-th percentile of the complete trials' losses at this step     (1)
    median       (1) at 50
    hyperband    successive halving: at step r eta^(b + k), rung k of bracket b, a trial goes on when its loss is among
                 the best n // eta (at least one) of the n that reached the rung so far                            (2)
    brackets     B = floor(log_eta(R / r)) + 1; bracket b of them gets ceil(B eta^(B-1-b) / (B - b)) parts        (3)

r least and R largest step, eta reduction factor; a trial's bracket is drawn by its number and the study's seed.
A decision is a function of the histories alone: it needs no storage and repeats exactly. Optuna's pruners decide the same
(a test holds (1) and (2) to them), but only inside a study, where they also write. Smaller losses are better.
Source: (1) Golovin et al. 2017 (Vizier), the median stopping rule; (2) Li et al. 2020 (ASHA), algorithm 2, without
waiting; (3) Li et al. 2018 (Hyperband), algorithm 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from synaptune.core.errors import UserError
from synaptune.search.objective.learning_curve import LEAST_POINTS

PRUNERS = ("none", "median", "percentile", "hyperband")


class History(NamedTuple):
    """The intermediate losses of a trial by step (positive, in ascending order), and how it stands; number: unique in the study."""

    number: int
    state: Literal["running", "complete", "pruned"]
    losses: Mapping[int, float]

    @property
    def step(self) -> int | None:
        """The last step reported."""
        return max(self.losses, default=None)


class Pruner(Protocol):
    """Decides on one trial after each of its reports."""

    def prune(self, trial: History, others: Sequence[History]) -> bool:
        """Whether the trial should end at its last step, given the other trials of its phase in any order."""
        ...


@dataclass(frozen=True)
class PrunerConfig:
    """name: an entry of PRUNERS.

    percentile: the part of the complete trials that a trial has to be better than its rest of [%]: 25 keeps the best quarter;
    startup_trials: complete trials before median and percentile judge any; least_points: reports before any pruner judges
    a trial, since what it would have reached is extrapolated from them; warmup_steps: steps before any judges;
    reduction_factor: eta of hyperband; min_resource: its first rung [step], null is the first step with least_points reports.
    """

    name: str = "none"
    percentile: float = 25.0
    startup_trials: int = 5
    least_points: int = LEAST_POINTS
    warmup_steps: int = 0
    reduction_factor: int = 3
    min_resource: int | None = None


def find_pruner_faults(config: PrunerConfig, evaluations: int) -> list[str]:
    """Every value that no search can use with a number of validations in a run, one line each; empty when all is well."""
    found = []
    if config.name not in PRUNERS:
        found.append(f"pruner.name={config.name}: expected one of {', '.join(PRUNERS)}")
    if not 0.0 <= config.percentile <= 100.0:
        found.append(f"pruner.percentile={config.percentile:g}: expected 0 to 100 [%]")
    least = {
        "startup_trials": 0,
        "least_points": LEAST_POINTS,
        "warmup_steps": 0,
        "reduction_factor": 2,
        "min_resource": 1,
    }
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            found.append(f"pruner.{name}={value}: expected at least {bound}")
    if config.name in PRUNERS[1:] and evaluations <= config.least_points:
        found.append(
            f"training.evaluations={evaluations}: pruner={config.name} judges a trial after {config.least_points} of them and before"
            f" the last, so it would never prune; set training.evaluations={4 * config.least_points} or more"
        )
    return found


def make_pruner(config: PrunerConfig, *, steps: int, evaluations: int, seed: int = 0) -> Pruner:
    """The pruner of runs of so many steps and validations; seed: draws hyperband's brackets. Raises UserError for bad values."""
    if found := find_pruner_faults(config, evaluations):
        raise UserError(
            "got a pruner that cannot work\n  "
            + "\n  ".join(found)
            + "\n  to do: correct these values"
        )
    if config.name == "none":
        return NoPruner()
    if config.name == "hyperband":
        first = config.min_resource or max(1, math.floor(steps * config.least_points / evaluations))
        rule: Pruner = HyperbandPruner(min(first, steps), steps, config.reduction_factor, seed)
    else:
        rule = PercentilePruner(
            50.0 if config.name == "median" else config.percentile, config.startup_trials
        )
    return GuardedPruner(rule, config.least_points, config.warmup_steps, steps)


@dataclass(frozen=True)
class NoPruner:
    """Lets every trial end by itself."""

    def prune(self, trial: History, others: Sequence[History]) -> bool:
        return False


@dataclass(frozen=True)
class GuardedPruner:
    """A rule that is asked only when enough of the trial is known, and something of it is left."""

    rule: Pruner
    least_points: int
    warmup_steps: int
    last_step: int

    def prune(self, trial: History, others: Sequence[History]) -> bool:
        step = trial.step
        if (
            step is None
            or len(trial.losses) < self.least_points
            or not self.warmup_steps <= step < self.last_step
        ):
            return False
        return self.rule.prune(trial, others)


@dataclass(frozen=True)
class PercentilePruner:
    """Eq. (1). A trial that has reported nothing but losses that are no numbers is pruned; a step that no complete trial reached
    says nothing."""

    percentile: float
    startup_trials: int

    def prune(self, trial: History, others: Sequence[History]) -> bool:
        import numpy as np

        step = trial.step
        complete = [other for other in others if other.state == "complete"]
        if step is None or len(complete) < max(1, self.startup_trials):
            return False
        reported = [loss for loss in trial.losses.values() if not math.isnan(loss)]
        if not reported:
            return True
        at_step = [
            other.losses[step]
            for other in complete
            if not math.isnan(other.losses.get(step, math.nan))
        ]
        if not at_step:
            return False
        return min(reported) > float(np.percentile(at_step, self.percentile))


@dataclass(frozen=True)
class HyperbandPruner:
    """Eqs. (2) and (3). Trials of one bracket compete, whatever their state."""

    min_resource: int
    max_resource: int
    reduction_factor: int
    seed: int

    def get_bracket_sizes(self) -> list[int]:
        """Parts of the trials by bracket, eq. (3)."""
        # A power of the factor has to count as reached: the logarithm of 27 to the base 3 is 3.0000000000000004 or less.
        count = (
            math.floor(
                math.log(self.max_resource / self.min_resource, self.reduction_factor) + 1e-9
            )
            + 1
        )
        return [
            math.ceil(count * self.reduction_factor**left / (left + 1))
            for left in reversed(range(count))
        ]

    def get_bracket_id(self, number: int) -> int:
        """The bracket of a trial."""
        parts = self.get_bracket_sizes()
        drawn = zlib.crc32(f"{self.seed}_{number}".encode()) % sum(parts)
        bracket = 0
        while drawn >= parts[bracket]:
            drawn -= parts[bracket]
            bracket += 1
        return bracket

    def prune(self, trial: History, others: Sequence[History]) -> bool:
        bracket = self.get_bracket_id(trial.number)
        rivals = [other for other in others if self.get_bracket_id(other.number) == bracket]
        return prune_by_halving(
            trial,
            rivals,
            first=self.min_resource * self.reduction_factor**bracket,
            factor=self.reduction_factor,
        )


def prune_by_halving(trial: History, rivals: Sequence[History], *, first: int, factor: int) -> bool:
    """Whether successive halving ends a trial at its last step, eq. (2); first: the step of rung 0.

    A report counts for every rung it is the first to reach; a trial is judged at the report that reaches a rung and at no other.
    Reports further apart than rungs leave open which rung a pruned rival failed at; it then counts at each.
    """
    step = trial.step
    if step is None:
        return False
    earlier = max((before for before in trial.losses if before < step), default=0)
    loss, rung = trial.losses[step], first
    while rung <= step:
        if rung > earlier:
            if math.isnan(loss):
                return True
            reached = sorted(
                value for rival in rivals if (value := _loss_at_rung(rival, rung)) is not None
            )
            best = sorted([*reached, loss])
            if loss > best[max(len(best) // factor, 1) - 1]:
                return True
        rung *= factor
    return False


def _loss_at_rung(trial: History, rung: int) -> float | None:
    """The loss that a trial brought to a rung; null when it got nowhere near, or brought no number."""
    step = min((step for step in trial.losses if step >= rung), default=None)
    return None if step is None or math.isnan(trial.losses[step]) else trial.losses[step]
