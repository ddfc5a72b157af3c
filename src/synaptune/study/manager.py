"""The search as a Python API: the loop, the workers and the study of `train.py -m`, for any
callable.

    from synaptune import TrialManager

    manager = TrialManager("bowl", n_trials=60, sampler="cma")
    manager.optimize(lambda p: (p["x"] - 3) ** 2 + p["n"], {"x": ("uniform", 0, 10), "n": ("int", 0,
    8)})
    print(manager.best_value, manager.best_params)

Run again, it goes on where it stopped, exactly.
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
    """A search over any callable, stored in a study that survives the end of the process."""

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
        """A manager; nothing is opened before `optimize` or the first look at the trials.

        study_name: names the study and its folder; n_trials: ended trials in all, over every call
        (null: a grid's own number);
        direction: `minimize` or `maximize`; storage: an Optuna storage URL (null: SQLite in the
        folder); sampler: a name of
        `hydra/sweeper`; pruner: `none`, `median`, `percentile` (the best quarter goes on) or any
        pruner of Optuna;
        load_if_exists: go on with a study that is there, else refuse it; seed: of the sampler;
        workers: trials at a time, as
        processes of this machine when more than one, or where else they run; timeout: most seconds
        of a trial; retries: further
        attempts at a trial whose worker died; max_failure_rate: failed part of a generation that is
        tolerated; directory: of
        the study (null: outputs/studies/<study_name>); progress: a line for each trial on a
        terminal, `bar`: a live table there.
        Raises UserError for a value that cannot be.
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
        given = workers if isinstance(workers, WorkersConfig) else WorkersConfig(count=workers)
        self._workers = replace(given, count=1) if given.count is None else given
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
        self._live: dict[int, Trial] | None = None  # the trials while `optimize` has the study open

    def optimize(
        self,
        objective: Objective,
        search_space: Mapping[str, Sequence[Any]],
        callbacks: Iterable[TrialCallback] = (),
    ) -> Trial | None:
        """Search until `n_trials` have ended; returns the best trial, null when none is complete.

        objective: from parameters by name to the number to optimise; an exception or a number that
        is not finite is a failed
        trial, TrialPruned a pruned one. search_space: by name ("uniform", low, high),
        ("log_uniform", low, high),
        ("int", low, high[, step]) or ("categorical", choices[, weights]). callbacks: called here
        after every trial.
        Raises UserError for a space that cannot be, too many failures, a study of another space or
        a database that cannot be used.
        """
        space = Space(tuple(_parse_dimension(name, entry) for name, entry in search_space.items()))
        if self._plan.budget is None and self._sampler != "grid":
            raise user_error(
                got="n_trials=None",
                expected="a number of trials (only a grid has an end of its own)",
                do="give n_trials",
            )
        engine = Engine(self._sampler, self._seed, self._workers.slots, self._plan.budget)
        make_optimizer(engine, space)  # refuses an unknown name before there is a study
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
            own = _TrialCallbacks(self, self._live, list(callbacks))
            try:
                with open_callbacks(
                    [PhaseTrials(ledger, self._plan.budget, earlier)],
                    replace(TERMINAL_ONLY, progress=self._progress_mode),
                    maximize=self.maximize,
                    stop=options.stop,
                    logs=False,
                ) as shown:
                    optimize([phase_search], workers, CallbackList([shown, own]))
            finally:
                workers.close()
                self._live = None
        return self.best_trial

    @property
    def _progress_mode(self) -> str:
        return (
            "bar"
            if self._progress == "bar"
            else "lines"
            if self._progress and sys.stdout.isatty()
            else "off"
        )

    def report(self, value: float, step: int) -> None:
        """Inside the objective: keep an intermediate value; works in worker processes too."""
        report(step, value)

    def should_prune(self) -> bool:
        """Inside the objective: whether the pruner would stop the trial at the value reported last;
        then raise TrialPruned.
        """
        return should_stop()

    @property
    def trials(self) -> list[Trial]:
        """All trials in the order of their asking, from the database.

        Inside a callback those that have ended.
        """
        if self._live is not None:
            return list(self._live.values())
        path = get_sqlite_path(self._location.url)
        return (
            []
            if path is not None and not path.exists()
            else read_study(self._location.url, self._location.name).get_phase_trials(SEARCH)
        )

    @property
    def best_trial(self) -> Trial | None:
        """The best complete trial, null when there is none."""
        return find_best(self.trials, self.maximize)

    @property
    def best_value(self) -> float:
        """The best objective; raises UserError without a complete trial."""
        best = self._require_best()
        assert best.objective is not None
        return best.objective

    @property
    def best_params(self) -> dict[str, Value]:
        """The parameters of the best trial; raises UserError without a complete trial."""
        return dict(self._require_best().values)

    def _require_best(self) -> Trial:
        best = self.best_trial
        if best is None:
            raise user_error(
                got=f"study {self._location.name} without a complete trial",
                expected="at least one",
                do="call optimize first",
            )
        return best

    def get_param_importance(self) -> dict[str, float]:
        """Each parameter's share in the spread of the objective, largest first, summing to 1.

        By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), as Optuna computes it. Raises
        UserError with fewer than two complete
        trials.
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
        """In a worker process the manager is only what the objective reports to."""
        return self.__dict__ | {"_live": None}


@dataclass
class _TrialCallbacks(Callback):
    """Calls the user's functions after every trial; an error of one ends the search."""

    manager: TrialManager
    trials: dict[int, Trial]
    functions: Sequence[TrialCallback]
    is_required = True

    def on_end(self, trial: Trial, finished: int) -> None:
        self.trials[trial.number] = trial
        for function in self.functions:
            function(self.manager, trial)


def _parse_pruner(pruner: str | BasePruner) -> BasePruner | None:
    """Make a pruner from its name.

    The steps of a callable are not known, so hyperband has to be given as a pruner of Optuna.
    """
    import optuna

    if isinstance(pruner, optuna.pruners.BasePruner):
        return pruner
    config = PrunerConfig()
    percentiles = {"none": None, "median": 50.0, "percentile": config.percentile}
    if pruner not in percentiles:
        raise user_error(
            got=f"pruner={pruner}",
            expected=(
                "none, median, percentile, or a pruner of Optuna such as"
                " optuna.pruners.HyperbandPruner(1, 81, 3)"
            ),
            do="choose one of them",
        )
    percentile = percentiles[pruner]
    return (
        None
        if percentile is None
        else optuna.pruners.PercentilePruner(percentile, config.startup_trials)
    )


@dataclass(frozen=True)
class CallableEvaluation:
    """An objective as an evaluation of trials."""

    objective: Objective

    def __call__(self, trial: Trial) -> Result:
        began = time.perf_counter()
        try:
            value = self.objective(dict(trial.values))
        except TrialPruned as pruned:
            return Result(None, time.perf_counter() - began, pruned=True, estimate=pruned.estimate)
        except UserError as error:
            raise RuntimeError(
                str(error)
            ) from error  # of the user's own code: a failed trial, not a mistake in the search
        if isinstance(value, bool) or not isinstance(
            value, numbers.Real
        ):  # numpy's are numbers too
            raise TypeError(f"the objective returned {type(value).__name__}, expected a number")
        return Result(float(value), time.perf_counter() - began)


def _parse_dimension(name: str, entry: Sequence[Any]) -> Dimension:
    """A search_space entry as a dimension; raises UserError."""
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
    near = (
        "" if kind in RANGE_KINDS or not kind else f" (closest: {find_nearest(kind, RANGE_KINDS)})"
    )
    raise user_error(
        got=f"search_space {name}: {entry!r}",
        expected=(
            '("uniform", low, high), ("log_uniform", low, high), ("int", low, high[, step]) or'
            ' ("categorical", [...][, weights])'
        )
        + near,
        do="correct the entry",
    )
