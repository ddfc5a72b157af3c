"""The search as a Python API: the loop, workers and study of `train.py -m` for any callable.

    from synaptune import TrialManager

    manager = TrialManager("bowl", n_trials=60, sampler="cma")
    space = {"x": ("uniform", 0, 10), "n": ("int", 0, 8)}
    manager.optimize(lambda p: (p["x"] - 3) ** 2 + p["n"], space)
    print(manager.best_value, manager.best_params)

A repeated call continues the search from its last finished trial.
"""

from __future__ import annotations

import numbers
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.core.errors import UserError, find_nearest, user_error
from synaptune.search.callback import Callback, CallbackList
from synaptune.search.loop import Plan
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.pruning import PrunerConfig
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import Value
from synaptune.search.trial import Result, Trial, TrialPruned, find_best
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    make_workers,
)
from synaptune.search.workers.reporting import report, should_stop
from synaptune.study.callbacks.base import TERMINAL_ONLY, PhaseTrials, open_callbacks
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import get_sqlite_path
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.optimize import (
    PhaseSearch,
    SearchOptions,
    optimize,
    resume_engine,
    resume_space,
)
from synaptune.study.reader import SEARCH, read_study
from synaptune.study.study import PhaseLedger, Study

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

DIRECTIONS = ("minimize", "maximize")
RANGE_KINDS = ("uniform", "log_uniform", "int", "categorical")
Objective = Callable[[dict[str, Any]], float]
TrialCallback = Callable[["TrialManager", Trial], None]


class TrialManager:
    """A search over any callable. Its trials are stored in a study on disk."""

    def __init__(
        self,
        study_name: str,
        n_trials: int | None = None,
        direction: str = "minimize",
        storage: str | None = None,
        sampler: str = "cma",
        pruner: str | BasePruner = "none",
        *,
        load_if_exists: bool = True,
        seed: int = 0,
        workers: int | WorkersConfig = 1,
        timeout: float | None = None,
        retries: int = 1,
        max_failure_rate: float = 0.5,
        directory: str | Path | None = None,
        progress: bool | str = True,
    ) -> None:
        """Check the options. The study is opened by `optimize` and by the properties.

        Args:
            study_name: name of the study and of its folder.
            n_trials: total number of ended trials over all calls of `optimize`; None means all
                points of a grid.
            direction: `minimize` or `maximize`.
            storage: Optuna storage URL; None means a SQLite file in the folder.
            sampler: name of an optimizer in `hydra/sweeper`.
            pruner: `none`, `median`, `percentile` (keeps the best quarter), or a pruner of Optuna.
            load_if_exists: whether to continue an existing study; otherwise it is refused.
            seed: seed of the sampler.
            workers: number of concurrent trials, in processes of this machine if more than one; or
                a configuration of workers.
            timeout: time limit of a trial [s]; None means no limit.
            retries: further attempts at a trial whose worker died.
            max_failure_rate: largest tolerated fraction of failed trials in a generation [0..1].
            directory: folder of the study; None means `outputs/studies/<study_name>`.
            progress: True prints one line for each trial on a terminal, `bar` shows a live table
                there, False prints nothing.

        Raises:
            UserError: an option is invalid.
        """
        if direction not in DIRECTIONS:
            raise user_error(
                got=f"direction={direction}",
                expected=f"one of {', '.join(DIRECTIONS)}",
                do="choose one of them",
            )
        self.maximize = direction == "maximize"
        self._plan = Plan(n_trials, self.maximize, max_failure_rate, retries)
        self._plan.check()
        config = workers if isinstance(workers, WorkersConfig) else WorkersConfig(count=workers)
        self._workers = replace(config, count=1) if config.count is None else config
        self._trial = TrialConfig(timeout, retries)
        check_execution(self._workers, self._trial)
        resume = "auto" if load_if_exists else "never"
        self._location = resolve_location(
            StudyConfig(study_name, None if directory is None else str(directory), storage, resume),
            study_name,
        )
        if progress not in (True, False, "bar"):
            raise user_error(
                got=f"progress={progress}", expected="True, False or 'bar'", do="choose one of them"
            )
        self._sampler, self._seed, self._progress = sampler, seed, progress
        self._pruner = _parse_pruner(pruner)
        # Ended trials while `optimize` runs; None at other times.
        self._live: dict[int, Trial] | None = None

    def optimize(
        self,
        objective: Objective,
        search_space: Mapping[str, Sequence[Any]],
        callbacks: Iterable[TrialCallback] = (),
    ) -> Trial | None:
        """Run trials until `n_trials` have ended.

        Args:
            objective: function of the parameters by name that returns the number to optimize. An
                exception or a non-finite number makes the trial failed, TrialPruned makes it
                pruned.
            search_space: a range for each parameter name: ("uniform", low, high),
                ("log_uniform", low, high), ("int", low, high[, step]) or
                ("categorical", choices[, weights]).
            callbacks: functions of the manager and the trial, called in this process after every
                trial.

        Returns:
            The best trial; None if no trial is complete.

        Raises:
            UserError: the space is invalid, too many trials failed, the study has another space,
                or the database cannot be used.
        """
        space = Space(tuple(_parse_dimension(name, entry) for name, entry in search_space.items()))
        if self._plan.budget is None and self._sampler != "grid":
            raise user_error(
                got="n_trials=None",
                expected="a number of trials (only a grid has a fixed number of points)",
                do="set n_trials",
            )
        engine = Engine(self._sampler, self._seed, self._workers.slots, self._plan.budget)
        make_optimizer(engine, space)  # an unknown name raises before a study is created
        settings = {
            "search.optimizer": self._sampler,
            "search.seed": self._seed,
            "search.maximize": self.maximize,
        }
        settings |= {
            f"{schema.RANGE_PREFIX}{name}": text for name, text in space.describe().items()
        }
        with Study(self._location, settings, maximize=self.maximize) as study:
            engine = resume_engine(study, engine)
            space = resume_space(study, space)
            ledger = PhaseLedger(study, space, "search", {})
            earlier = [trial for trial in ledger.read_trials() if trial.state != "running"]
            options = SearchOptions(self._pruner)
            phase_search = PhaseSearch(ledger, engine, self._plan, options)
            workers = make_workers(
                self._workers, self._trial, CallableEvaluation(objective), self._location.folder
            )
            self._live = {trial.number: trial for trial in earlier}
            user_callbacks = _TrialCallbacks(self, self._live, list(callbacks))
            try:
                with open_callbacks(
                    [PhaseTrials(ledger, self._plan.budget, earlier)],
                    replace(TERMINAL_ONLY, progress=self._progress_mode),
                    maximize=self.maximize,
                    stop=options.stop,
                    logs=False,
                ) as terminal:
                    optimize([phase_search], workers, CallbackList([terminal, user_callbacks]))
            finally:
                workers.close()
                self._live = None
        return self.best_trial

    @property
    def _progress_mode(self) -> str:
        if self._progress == "bar":
            return "bar"
        return "lines" if self._progress and sys.stdout.isatty() else "off"

    def report(self, value: float, step: int) -> None:
        """Store an intermediate value of the running trial.

        The objective calls this method, also in a worker process.

        Args:
            value: value of the objective at the step.
            step: number of the step.
        """
        report(step, value)

    def should_prune(self) -> bool:
        """Return whether the pruner stops the running trial at its last reported value.

        The objective calls this method and raises TrialPruned if the answer is True.
        """
        return should_stop()

    @property
    def trials(self) -> list[Trial]:
        """All trials by index, read from the database; in a callback the ended ones."""
        if self._live is not None:
            return list(self._live.values())
        path = get_sqlite_path(self._location.url)
        if path is not None and not path.exists():
            return []
        return read_study(self._location.url, self._location.name).get_phase_trials(SEARCH)

    @property
    def best_trial(self) -> Trial | None:
        """The best complete trial; None if no trial is complete."""
        return find_best(self.trials, self.maximize)

    @property
    def best_value(self) -> float:
        """Objective of the best trial; raises UserError if no trial is complete."""
        best = self._require_best()
        assert best.objective is not None
        return best.objective

    @property
    def best_params(self) -> dict[str, Value]:
        """Parameters of the best trial; raises UserError if no trial is complete."""
        return dict(self._require_best().values)

    def _require_best(self) -> Trial:
        best = self.best_trial
        if best is None:
            raise user_error(
                got=f"study {self._location.name} without a complete trial",
                expected="at least one complete trial",
                do="call optimize first",
            )
        return best

    def get_param_importance(self) -> dict[str, float]:
        """Return the importance of each parameter, largest first; the sum is 1.

        Optuna computes it by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255).

        Raises:
            UserError: fewer than two trials are complete.
        """
        import optuna

        complete = [trial for trial in self.trials if trial.state == "complete"]
        if len(complete) < 2:
            raise user_error(
                got=f"{len(complete)} complete trials",
                expected="at least 2",
                do="call optimize with more n_trials",
            )
        study = optuna.load_study(study_name=self._location.name, storage=self._location.url)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, without the trials of a running search."""
        return self.__dict__ | {"_live": None}


@dataclass
class _TrialCallbacks(Callback):
    """Calls the functions of the user after every trial; an exception ends the search."""

    manager: TrialManager
    trials: dict[int, Trial]
    functions: Sequence[TrialCallback]
    is_required = True

    def on_end(self, trial: Trial, finished: int) -> None:
        self.trials[trial.number] = trial
        for function in self.functions:
            function(self.manager, trial)


def _parse_pruner(pruner: str | BasePruner) -> BasePruner | None:
    """Return the pruner of a name; None for `none`.

    The number of steps of a callable is unknown, so hyperband must be given as a pruner of Optuna.
    """
    import optuna

    if isinstance(pruner, optuna.pruners.BasePruner):
        return pruner
    if pruner == "none":
        return None
    config = PrunerConfig()
    percentiles = {"median": 50.0, "percentile": config.percentile}
    if pruner not in percentiles:
        raise user_error(
            got=f"pruner={pruner}",
            expected=(
                "none, median, percentile, or a pruner of Optuna such as"
                " optuna.pruners.HyperbandPruner(1, 81, 3)"
            ),
            do="choose one of them",
        )
    return optuna.pruners.PercentilePruner(percentiles[pruner], config.startup_trials)


@dataclass(frozen=True)
class CallableEvaluation:
    """Evaluates trials by calling an objective function."""

    objective: Objective

    def __call__(self, trial: Trial) -> Result:
        started_at = time.perf_counter()
        try:
            value = self.objective(dict(trial.values))
        except TrialPruned as pruned:
            seconds = time.perf_counter() - started_at
            return Result(None, seconds, pruned=True, estimate=pruned.estimate)
        except UserError as error:
            # A UserError ends the search. One that the objective raises only fails its trial.
            raise RuntimeError(str(error)) from error
        # numbers.Real includes the numbers of NumPy.
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"the objective returned {type(value).__name__}, expected a number")
        return Result(float(value), time.perf_counter() - started_at)


def _parse_dimension(name: str, entry: Sequence[Any]) -> Dimension:
    """Return the dimension of a search_space entry; raises UserError if it is invalid."""
    match tuple(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else ():
        case ("uniform", int() | float() as low, int() | float() as high):
            return Dimension(name, "lin", low, high)
        case ("log_uniform", int() | float() as low, int() | float() as high):
            return Dimension(name, "log", low, high)
        case ("int", int() as low, int() as high):
            return Dimension(name, "lin", low, high, integer=True)
        case ("int", int() as low, int() as high, int() as step) if step > 0:
            return Dimension(name, "categorical", choices=tuple(range(low, high + 1, step)))
        case ("categorical", list() | tuple() as choices):
            return Dimension(name, "categorical", choices=tuple(choices))
        case ("categorical", list() | tuple() as choices, list() | tuple() as weights):
            return Dimension(name, "categorical", choices=tuple(choices), weights=tuple(weights))
    kind = str(entry[0]) if isinstance(entry, Sequence) and entry else ""
    is_unknown = kind not in ("", *RANGE_KINDS)
    raise user_error(
        got=f"search_space {name}: {entry!r}",
        expected='("uniform", low, high), ("log_uniform", low, high), ("int", low, high[, step]) '
        'or ("categorical", [...][, weights])'
        + (f" (closest: {find_nearest(kind, RANGE_KINDS)})" if is_unknown else ""),
        do="correct the entry",
    )
