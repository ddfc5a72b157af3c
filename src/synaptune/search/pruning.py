"""Ending a trial that is not worth its remaining steps, by the pruners of Optuna.

    none         never
    percentile   best loss so far > the `percentile`-th percentile of the complete trials' losses
                 at this step                                                                   (1)
    median       (1) at 50
    hyperband    successive halving: at step r eta^(b + k), rung k of bracket b, a trial goes on
                 when its loss is among the best n // eta (at least one) of the n that reached
                 the rung so far                                                                (2)
    brackets     B = floor(log_eta(R / r)) + 1; bracket b gets ceil(B eta^(B-1-b) / (B - b))
                 parts of the trials                                                            (3)

r least and R largest step, eta reduction factor. The bracket of a trial is drawn by its index and
the seed of the search. `TrialPruner` gives the pruners a study in memory. Its decisions depend on
the reports of the trials alone, so they are the same after a restart.
Source: (1) Golovin et al. 2017 (Vizier), the median stopping rule; (2) Li et al. 2020 (ASHA),
algorithm 2, without waiting; (3) Li et al. 2018 (Hyperband), algorithm 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synaptune.core.errors import UserError
from synaptune.search.callback import Callback
from synaptune.search.objective.learning_curve import LEAST_POINTS, extrapolate
from synaptune.search.trial import Trial

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

PRUNERS = ("none", "median", "percentile", "hyperband")
_MAX_LOSS = 1e100  # the fit squares losses, and their sum has to stay a number


@dataclass(frozen=True)
class PrunerConfig:
    """A pruner.

    Attributes:
        name: one of PRUNERS.
        percentile: part of the complete trials whose losses a trial has to reach [%]; 25 keeps the
            best quarter.
        startup_trials: complete trials before median and percentile end any trial.
        least_points: reports before a trial can end; its objective is extrapolated from them.
        warmup_steps: steps before a trial can end.
        reduction_factor: eta of hyperband.
        min_resource: first rung of hyperband [step], at least the step of `least_points` reports;
            None means that step.
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


def make_pruner(config: PrunerConfig, *, steps: int, evaluations: int) -> BasePruner | None:
    """Make the pruner of runs with a number of steps and validations; None for `none`.

    Raises:
        UserError: the configuration has a value that cannot be used.
    """
    if found := find_pruner_faults(config, evaluations):
        raise UserError(
            "got a pruner that cannot work\n  "
            + "\n  ".join(found)
            + "\n  to do: correct these values"
        )
    if config.name == "none":
        return None
    import optuna

    part = steps * config.least_points / evaluations
    if config.name == "hyperband":
        first = max(1, math.floor(part), config.warmup_steps, config.min_resource or 0)
        return optuna.pruners.HyperbandPruner(min(first, steps), steps, config.reduction_factor)
    return optuna.pruners.PercentilePruner(
        50.0 if config.name == "median" else config.percentile,
        config.startup_trials,
        max(1, round(part), config.warmup_steps),
    )


class TrialPruner(Callback):
    """Decides with a pruner of Optuna whether a trial stops at a value that it reports.

    The trials of a phase are kept in a study of Optuna's in memory, each at its index. A failed
    trial is no measure for others, and its reports are dropped.
    """

    is_required = True

    def __init__(
        self,
        pruner: BasePruner,
        earlier: Iterable[tuple[Trial, Mapping[int, float]]] = (),
        *,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        """Prepare a study.

        Args:
            earlier: trials that have ended, each with its reported values by step.
            maximize: whether larger values are better.
            seed: seed of hyperband's brackets.
        """
        self._pruner, self._name, self._maximize = pruner, str(seed), maximize
        self._open([])
        for trial, values in earlier:
            for step, value in values.items():
                self(trial, step, value)
            self.on_end(trial, 0)

    def _open(self, trials: list[FrozenTrial]) -> None:
        import optuna

        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            study_name=self._name,
            storage=self._storage,
            pruner=self._pruner,
            direction="maximize" if self._maximize else "minimize",
        )
        self._study.add_trials(trials)

    def _list(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Take a report; returns whether the trial stops there."""
        import optuna

        while len(trials := self._list()) <= trial.index:
            self._study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.RUNNING))
        reports = trials[trial.index].intermediate_values
        if reports and step <= max(reports):  # another attempt starts again; the lost one is void
            trials[trial.index] = optuna.create_trial(state=optuna.trial.TrialState.RUNNING)
            self._open(trials)
            for at in [at for at in reports if at < step]:
                self(trial, at, reports[at])
        if step < 0:
            return False  # Optuna counts from 0
        key = self._list()[trial.index]._trial_id
        self._storage.set_trial_intermediate_value(key, step, value)
        # A pruner that fails a trial at one rung does not look at the next. It is asked until it
        # has recorded every rung, so that the records depend on the reports of this trial alone.
        stop, recorded = False, None
        while (frozen := self._storage.get_trial(key)).system_attrs != recorded:
            recorded = frozen.system_attrs
            with warnings.catch_warnings():  # of a trial that reported no number yet
                warnings.simplefilter("ignore", RuntimeWarning)
                stop = self._pruner.prune(self._study, frozen) or stop
        return stop

    def on_end(self, trial: Trial, finished: int) -> None:
        """Take in how a trial ended."""
        import optuna

        trials = self._list()
        if trial.index >= len(trials) or not trials[trial.index].intermediate_values:
            return
        if trial.state == "failed":
            trials[trial.index] = optuna.create_trial(state=optuna.trial.TrialState.FAIL)
            self._open(trials)
        else:
            states = optuna.trial.TrialState
            state = states.COMPLETE if trial.state == "complete" else states.PRUNED
            value = None if trial.objective is None else [trial.objective]
            self._storage.set_trial_state_values(trials[trial.index]._trial_id, state, value)

    def estimate(self, trial: Trial) -> float | None:
        """Estimate the objective that a stopped trial was heading for.

        It is the value that the power law of its reports (objective/learning_curve.py) has at the
        last step that other trials reached. The law has no value at step 0, so every step of a
        trial that counts from 0 is one more. A report that is no number is left out.

        Returns:
            The estimate, or None when there are too few reports.
        """
        trials = self._list()
        reports = trials[trial.index].intermediate_values if trial.index < len(trials) else {}
        shift = 1 if 0 in reports else 0
        sign = -1.0 if self._maximize else 1.0
        points = [
            (step + shift, sign * value)
            for step, value in sorted(reports.items())
            if step + shift > 0 and abs(value) <= _MAX_LOSS
        ]
        last = max((entry.last_step or 0 for entry in trials), default=0)
        end = extrapolate(points, last + shift)
        return None if end is None else sign * end.mean
