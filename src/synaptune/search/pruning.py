"""Pruning: stop trials early with the pruners of Optuna.

    none         stops no trial
    percentile   best loss so far > the `percentile`-th percentile of the complete trials' losses
                 at this step                                                                   (1)
    median       (1) at 50
    hyperband    successive halving: at step r eta^(b + k), rung k of bracket b, a trial goes on
                 when its loss is among the best n // eta (at least one) of the n that reached
                 the rung so far                                                                (2)
    brackets     B = floor(log_eta(R / r)) + 1; bracket b gets ceil(B eta^(B-1-b) / (B - b))
                 parts of the trials                                                            (3)

r least and R largest step, eta reduction factor. The bracket of a trial is drawn from its index
and the seed of the search. `TrialPruner` keeps a study in memory for the pruners. Its decisions
depend only on the reports of the trials, so they are the same after a restart.
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
    """The configuration of a pruner.

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
    """Return one line for each invalid value, for runs with a number of validations."""
    faults = []
    if config.name not in PRUNERS:
        faults.append(f"pruner.name={config.name}: expected one of {', '.join(PRUNERS)}")
    if not 0.0 <= config.percentile <= 100.0:
        faults.append(f"pruner.percentile={config.percentile:g}: expected 0 to 100 [%]")
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
            faults.append(f"pruner.{name}={value}: expected at least {bound}")
    if config.name in PRUNERS[1:] and evaluations <= config.least_points:
        faults.append(
            f"training.evaluations={evaluations}: pruner={config.name} can stop a trial only after"
            f" {config.least_points} evaluations and before the last one, so it would never prune;"
            f" set training.evaluations={4 * config.least_points} or more"
        )
    return faults


def make_pruner(config: PrunerConfig, *, steps: int, evaluations: int) -> BasePruner | None:
    """Make the pruner of runs with a number of steps and validations; None for `none`.

    Raises:
        UserError: the configuration has a value that cannot be used.
    """
    if faults := find_pruner_faults(config, evaluations):
        raise UserError(
            "got a pruner that cannot work\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )
    if config.name == "none":
        return None
    import optuna

    least_step = steps * config.least_points / evaluations
    if config.name == "hyperband":
        first_rung = max(1, math.floor(least_step), config.warmup_steps, config.min_resource or 0)
        return optuna.pruners.HyperbandPruner(
            min(first_rung, steps), steps, config.reduction_factor
        )
    return optuna.pruners.PercentilePruner(
        50.0 if config.name == "median" else config.percentile,
        config.startup_trials,
        max(1, round(least_step), config.warmup_steps),
    )


class TrialPruner(Callback):
    """Decides with a pruner of Optuna whether a trial stops at a value that it reports.

    The trials of a phase are kept in an in-memory study of Optuna, each at its index. The reports
    of failed trials are dropped, so that other trials are not compared with them.
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
            self.on_foreign_end(trial, values)

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
        """Record a report and return whether the trial stops at this step."""
        import optuna

        while len(trials := self._list()) <= trial.index:
            self._study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.RUNNING))
        reports = trials[trial.index].intermediate_values
        if reports and step <= max(reports):  # a new attempt: later reports of the last one go
            trials[trial.index] = optuna.create_trial(state=optuna.trial.TrialState.RUNNING)
            self._open(trials)
            for earlier in [entry for entry in reports if entry < step]:
                self(trial, earlier, reports[earlier])
        if step < 0:
            return False  # Optuna counts from 0
        key = self._list()[trial.index]._trial_id
        self._storage.set_trial_intermediate_value(key, step, value)
        # A pruner that stops a trial at one rung does not evaluate the next rung. It is called
        # until
        # it has recorded every rung, so that the records depend only on the reports of this trial.
        stop, recorded = False, None
        while (frozen := self._storage.get_trial(key)).system_attrs != recorded:
            recorded = frozen.system_attrs
            with warnings.catch_warnings():  # about a trial whose reports are all NaN
                warnings.simplefilter("ignore", RuntimeWarning)
                stop = self._pruner.prune(self._study, frozen) or stop
        return stop

    def on_end(self, trial: Trial, finished: int) -> None:
        """Record the end of a trial."""
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

    def on_foreign_end(self, trial: Trial, values: Mapping[int, float]) -> None:
        """Record an ended trial of another process with its reports."""
        for step, value in values.items():
            self(trial, step, value)
        self.on_end(trial, 0)

    def estimate(self, trial: Trial) -> float | None:
        """Estimate the final objective of a stopped trial.

        The estimate is the power law through its reports (objective/learning_curve.py), evaluated
        at the last step that other trials reached. The law has no value at step 0, so all steps are
        shifted by 1 for a trial that counts from 0. Reports that are not finite are left out.

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
