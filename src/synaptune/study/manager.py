"""The search as a Python API: the loop, the workers and the study of `train.py -m`, for a callable.

    from synaptune import TrialManager

    manager = TrialManager("bowl", n_trials=60)
    best = manager.optimize(
        lambda p: (p["x"] - 3) ** 2 + p["n"], {"x": ("uniform", 0, 10), "n": ("int", 0, 8)}
    )
    print(best, manager.best_value)

If the program is run again, the study continues where it stopped, with the same points.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.core.errors import user_error
from synaptune.core.terminal import is_terminal, print_line
from synaptune.search.callback import CallbackList
from synaptune.search.config import SearchConfig
from synaptune.search.optimizers.auto import plan_engine
from synaptune.search.optimizers.base import SEED_MODULUS
from synaptune.search.optimizers.pbt import PBT
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.plan import Plan
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value
from synaptune.search.trial import Trial, TrialPruned, find_best
from synaptune.search.workers.base import Workers
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    make_workers,
)
from synaptune.search.workers.reporting import report, should_stop
from synaptune.study.additions import ImportedTrial, PendingAdditions
from synaptune.study.callbacks.base import TERMINAL_ONLY, PhaseTrials, open_callbacks
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import (
    close_storage,
    get_sqlite_path,
    open_storage,
)
from synaptune.study.database.lease import read_stored_note
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.manager_arguments import (
    check_choice,
    check_storage,
    make_pruner,
    read_callbacks,
    read_integer,
    read_number,
    read_objective,
    read_parameters,
    refuse_nested_search,
)
from synaptune.study.objective import (
    BestParameters,
    CallableEvaluation,
    Objective,
    TrialCallback,
    TrialCallbacks,
)
from synaptune.study.optimize import (
    PhaseSearch,
    SearchOptions,
    optimize,
    resume_engine,
    resume_space,
)
from synaptune.study.reader import SEARCH, read_study
from synaptune.study.search_space import read_search_space, restore_steps
from synaptune.study.study import PhaseLedger, Study

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

DIRECTIONS = ("minimize", "maximize")


class TrialManager:
    """A search over any callable, stored in a study that survives the end of the process.

    Several processes may run the same study at once, except on MySQL (docs/python_api.md).
    """

    TrialPruned = TrialPruned

    def __init__(
        self,
        study_name: str,
        n_trials: int | None = 50,
        direction: str = "minimize",
        storage: str | None = None,
        sampler: str = "tpe",
        pruner: str | BasePruner | None = "median",
        *,
        load_if_exists: bool = True,
        seed: int | None = 0,
        workers: int | WorkersConfig = 1,
        timeout: float | None = None,
        retries: int = 1,
        max_failure_rate: float = 0.5,
        directory: str | Path | None = None,
        progress: bool | str = True,
    ) -> None:
        """Check the options. Nothing is opened before `optimize` or the first look at the trials.

        Args:
            study_name: name of the study and of its folder.
            n_trials: number of ended trials of the study, over all calls of `optimize` and all
                processes; None means all points of a grid.
            direction: `minimize` or `maximize`.
            storage: Optuna storage URL; None means a SQLite file in the folder.
            sampler: an entry of hydra/sweeper, or a name of Nevergrad's registry.
            pruner: `none`, `median`, `percentile` (the best quarter continues), `hyperband`, or a
                pruner of Optuna.
            load_if_exists: whether to continue an existing study; otherwise it is refused.
            seed: seed of the sampler; None means a random one, which the study keeps.
            workers: number of concurrent trials, in processes of this machine if there are several;
                or where the trials run.
            timeout: time limit of a trial [s]; None means no limit.
            retries: further attempts at a trial whose worker died.
            max_failure_rate: tolerated fraction of failed trials of a generation [0..1].
            directory: folder of the study; None means outputs/studies/<study_name>.
            progress: True prints a line for each trial on a terminal, and in a log file or a pipe a
                line after a generation or every 30 s; `bar` shows a live table on a terminal; False
                prints nothing.

        Raises:
            UserError: an option has an invalid value.
        """
        check_storage(storage)
        check_choice("direction", direction, DIRECTIONS)
        check_choice("progress", progress, (True, False, "bar"))
        for name, text in (("study_name", study_name), ("sampler", sampler)):
            if not isinstance(text, str) or not text:
                raise user_error(
                    got=f"{name}={text!r}", expected="a name", do="give it as a string"
                )
        if sampler == PBT:
            raise user_error(
                got="sampler=pbt",
                expected="a sampler of whole evaluations: pbt continues trainings of train.py",
                do="choose another one, or search with train.py -m hydra/sweeper=pbt",
            )
        self.maximize = direction == "maximize"
        attempts = read_integer("retries", retries)
        budget = None if n_trials is None else read_integer("n_trials", n_trials)
        self._plan = Plan(
            budget, self.maximize, read_number("max_failure_rate", max_failure_rate), attempts
        )
        self._plan.check()
        if not isinstance(workers, WorkersConfig):
            workers = WorkersConfig(count=read_integer("workers", workers))
        self._workers = replace(workers, count=1) if workers.count is None else workers
        limit = None if timeout is None else read_number("timeout", timeout)
        self._trial = TrialConfig(limit, attempts)
        check_execution(self._workers, self._trial)
        config = StudyConfig(
            study_name,
            None if directory is None else str(directory),
            storage,
            "auto" if load_if_exists else "never",
        )
        self._location = resolve_location(config, study_name)
        self._seed = None if seed is None else read_integer("seed", seed)
        self._sampler, self._progress, self._pruner = sampler, progress, make_pruner(pruner)
        # The trials while `optimize` has the study open.
        self._live: dict[int, Trial] | None = None
        self._is_stopping = False
        self._additions = PendingAdditions()

    def enqueue(self, params: Mapping[str, Any], *, skip_if_exists: bool = True) -> None:
        """Evaluate a point before the sampler is asked again; it counts as one of `n_trials`.

        Args:
            params: values by name; another parameter gets its start value, the middle of its range.
            skip_if_exists: whether to ignore a point that the study has or has enqueued, so that a
                program that is run again does not repeat it.

        Raises:
            UserError: by `optimize`, or in a callback at once: a name or value is not in the space.
        """
        self._additions.add_point(read_parameters(params), skip_if_exists=skip_if_exists)

    def add_trial(
        self, params: Mapping[str, Any], value: float | None, source: str = "add_trial"
    ) -> None:
        """Add a finished trial of elsewhere, which the sampler learns.

        It is neither one of `n_trials` nor one of `trials`, and never the best trial. A trial that
        the study has already is ignored.

        Args:
            params: values by name; another parameter gets its start value, the middle of its range.
            value: its objective; None for a failed trial.
            source: where it comes from.

        Raises:
            UserError: as for `enqueue`.
        """
        number = read_objective(value)
        state = "failed" if number is None else "complete"
        self._additions.add_trial(ImportedTrial(read_parameters(params), state, number, source))

    def optimize(
        self,
        objective: Objective,
        search_space: Mapping[str, Sequence[Any]],
        n_trials: int | None = None,
        callbacks: TrialCallback | Iterable[TrialCallback] | None = None,
    ) -> BestParameters:
        """Search, and return the best parameters of the study.

        Args:
            objective: function from parameters by name to the number to optimise. An exception, or
                a value that is not a finite number, is a failed trial; TrialPruned a pruned one.
            search_space: by name ("uniform", low, high), ("log_uniform", low, high),
                ("int", low, high[, step]) or ("categorical", choices[, weights]).
            n_trials: number of additional trials; None means those that the study lacks of the
                manager's `n_trials`.
            callbacks: called in this process with (manager, trial) after every trial; what they
                raise is printed.

        Raises:
            UserError: an argument is invalid, too many or all trials failed, the study has another
                space, or the database cannot be used.
        """
        if not callable(objective):
            raise user_error(
                got=f"objective={objective!r}",
                expected="a function of a dict of parameters",
                do="give a function",
            )
        functions = read_callbacks(callbacks)
        added = None if n_trials is None else read_integer("n_trials", n_trials, least=1)
        space = self._restore_space(read_search_space(search_space))
        self._additions.check(space)
        engine = self._make_engine(added)
        make_optimizer(engine, space)  # refuses an unusable name before there is a study
        workers = make_workers(
            self._workers, self._trial, CallableEvaluation(objective), self._location.folder
        )
        try:
            with refuse_nested_search(self._location):
                self._search(space, engine, workers, functions, added)
        finally:
            workers.close()
        return BestParameters(self._require_best())

    def _restore_space(self, space: Space) -> Space:
        """Return the space with the ranges that an earlier study stored in another form."""
        if all(dimension.step == 1 for dimension in space.dimensions):
            return space
        url = self._location.url
        stored = read_stored_note(url, self._location.name, schema.CONFIGURATION) or {}
        ranges = {name: stored.get(f"{schema.RANGE_PREFIX}{name}", "") for name in space.names}
        return restore_steps(space, ranges)

    def _make_engine(self, added: int | None) -> Engine:
        budget = added or self._plan.budget
        if budget is None and self._sampler != "grid":
            raise user_error(
                got="n_trials=None",
                expected="a number of trials (only a grid has an end of its own)",
                do="give n_trials",
            )
        seed = random.SystemRandom().randrange(SEED_MODULUS) if self._seed is None else self._seed
        return plan_engine(
            SearchConfig(),
            optimizer=self._sampler,
            seed=seed,
            workers=self._workers.slots,
            budget=budget,
        ).engine

    def _search(
        self,
        space: Space,
        engine: Engine,
        workers: Workers,
        functions: Sequence[TrialCallback],
        added: int | None,
    ) -> None:
        settings = {
            "search.optimizer": self._sampler,
            "search.seed": self._seed,
            "search.maximize": self.maximize,
        }
        settings |= {
            f"{schema.RANGE_PREFIX}{name}": text for name, text in space.describe().items()
        }
        with Study(self._location, settings, maximize=self.maximize, shared=True) as study:
            engine = resume_engine(study, engine)
            trials = study.read_trials(SEARCH)
            space = resume_space(space, trials)
            space = space.reorder(study.write_note_once(schema.PARAMETERS, list(space.names)))
            ledger = PhaseLedger(study, space, SEARCH, {})
            earlier = [trial for trial in trials if trial.state != "running"]
            budget = self._plan.budget if added is None else len(earlier) + added
            self._is_stopping = False
            options = SearchOptions(self._pruner, is_stopping=lambda: self._is_stopping)
            plan = replace(self._plan, budget=budget)
            search = PhaseSearch(
                ledger,
                engine,
                plan,
                options,
                on_message=print_line if self._progress else _ignore,
                trials=trials,
            )
            self._live = {trial.number: trial for trial in earlier}
            own = TrialCallbacks(self, self._live, functions)
            try:
                with (
                    self._additions.open(ledger),
                    open_callbacks(
                        [PhaseTrials(ledger, budget, earlier)],
                        replace(TERMINAL_ONLY, progress=self._progress_mode),
                        maximize=self.maximize,
                        stop=options.stop,
                        logs=False,
                    ) as shown,
                ):
                    optimize([search], workers, CallbackList([shown, own]))
            finally:
                self._live = None

    @property
    def _progress_mode(self) -> str:
        if not self._progress:
            return "off"
        return "lines" if self._progress is True and is_terminal(sys.stdout) else "auto"

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value inside the objective; works in worker processes too."""
        report(step, value)

    def should_prune(self) -> bool:
        """Return whether the pruner would stop the trial at the value that it reported last.

        The objective then raises TrialPruned.
        """
        return should_stop()

    def stop(self) -> None:
        """End the running `optimize` after its running trials, as Optuna's `Study.stop`.

        A callback calls it, or an objective that runs in this process. The next `optimize` goes on.

        Raises:
            UserError: this process runs no `optimize`.
        """
        if self._live is None:
            raise user_error(
                got="stop() where no optimize runs",
                expected="a call in a callback, or in an objective with one worker",
                do="call it in a callback (callbacks= of optimize)",
            )
        self._is_stopping = True

    @property
    def trials(self) -> list[Trial]:
        """All trials in the order of their asking; inside a callback those that have ended."""
        if self._live is not None:
            return [self._live[number].copy() for number in sorted(self._live)]
        path = get_sqlite_path(self._location.url)
        if path is not None and not path.exists():
            return []
        return read_study(self._location.url, self._location.name).get_phase_trials(SEARCH)

    @property
    def best_trial(self) -> Trial | None:
        """The best complete trial; None if there is none."""
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
        return self._require_best().params

    def _require_best(self) -> Trial:
        trials = self.trials
        best = find_best(trials, self.maximize)
        if best is None:
            pruned = sum(trial.state == "pruned" for trial in trials)
            raise user_error(
                got=f"study {self._location.name} without a complete trial, and {pruned} pruned",
                expected="at least one",
                do="call optimize with more trials, or prune less"
                if trials
                else "call optimize first",
            )
        return best

    def get_param_importance(self) -> dict[str, float]:
        """Return each parameter's share in the spread of the objective, largest first.

        The shares are those of PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), as Optuna
        computes it, and sum to 1. If all objectives are equal, every share is 0.

        Raises:
            UserError: there are fewer than two complete trials.
        """
        import optuna

        complete = [trial for trial in self.trials if trial.state == "complete"]
        if len(complete) < 2:
            raise user_error(
                got=f"{len(complete)} complete trials",
                expected="at least 2",
                do="call optimize with more n_trials",
            )
        if len({trial.objective for trial in complete}) == 1:
            return dict.fromkeys(complete[0].values, 0.0)
        storage = open_storage(self._location.url, "read")
        try:
            study = optuna.load_study(study_name=self._location.name, storage=storage)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        finally:
            close_storage(storage)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, where the objective only reports."""
        return self.__dict__ | {"_live": None}


def _ignore(line: str) -> None:
    """Print nothing."""
