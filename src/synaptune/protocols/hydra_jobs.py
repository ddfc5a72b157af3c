"""Trials of a sweep as jobs of a Hydra launcher.

All of Hydra's private API that the sweeper needs is used here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from synaptune.config.sweep import Sweep, SweepRequest
from synaptune.config.sweep_syntax import format_value
from synaptune.core.errors import user_error
from synaptune.core.text import get_override_key
from synaptune.protocols.trial_run import TrialRun, combine_runs
from synaptune.search.objective.common_seeds import list_common_seeds
from synaptune.search.objective.score import ObjectiveConfig, score
from synaptune.search.space.file import format_literal
from synaptune.search.trial import Result, Trial, make_failure
from synaptune.search.workers.base import BatchWorkers, Workers
from synaptune.search.workers.config import make_workers
from synaptune.study.artifacts import read_run_facts
from synaptune.training.loggers.wandb_run import make_run_labels


@dataclass(frozen=True)
class HydraJobs:
    """The jobs of the trials of a sweep: their overrides, and results from what they return.

    Attributes:
        sweep: the sweep.
        objective: what the search minimises; None for an application without our objectives.
        identity: of the study, for the W&B runs of its trials.
        overrides: further overrides of every job.
    """

    sweep: Sweep
    objective: ObjectiveConfig | None
    identity: str
    overrides: tuple[str, ...] = ()

    def list_seeds(self, trial: Trial) -> list[int | None]:
        """Return the seed of each job of a trial; None leaves it to the configuration."""
        first, count = trial.facts.get("seed"), trial.facts.get("seeds", 1)
        if first is None or (count == 1 and first == self.sweep.base.get("seed")):
            return [None]
        return list(list_common_seeds(first, count))

    def list_folders(self, trial: Trial) -> list[Path]:
        """Return the folder of each job of a trial."""
        folder, seeds = (
            self.sweep.location.trials_folder / str(trial.number),
            self.list_seeds(trial),
        )
        return [folder] if len(seeds) == 1 else [folder / f"seed-{seed}" for seed in seeds]

    def build_overrides(self, trial: Trial) -> list[list[str]]:
        """Return the overrides of each job of a trial."""
        sweep, jobs = self.sweep, []
        values = [
            f"{sweep.spelling.get(name, name)}={format_value(value)}"
            for name, value in trial.values.items()
        ]
        for seed, folder in zip(self.list_seeds(trial), self.list_folders(trial), strict=True):
            label = f"{trial.number}" if folder.name == str(trial.number) else folder.name
            own = [] if seed is None else [f"seed={seed}"]
            place = {"dir": folder.parent, "subdir": folder.name}
            jobs.append(
                [
                    *sweep.fixed_overrides,
                    *self.overrides,
                    *values,
                    *own,
                    *self._label_run(trial, label),
                    *(
                        f"hydra.sweep.{key}={format_literal(str(path))}"
                        for key, path in place.items()
                    ),
                ]
            )
        return jobs

    def _label_run(self, trial: Trial, label: str) -> list[str]:
        """Return the overrides that name the W&B run of a job, where the application has them."""
        logger = self.sweep.base.get("logger")
        if not isinstance(logger, DictConfig):
            return []
        number = trial.number if label == str(trial.number) else f"{trial.number}-{label}"
        labels = make_run_labels(
            self.sweep.location.name,
            self.identity,
            number,
            facts=trial.facts,
            tags=logger.get("tags") or [],
        )
        fixed = set(map(get_override_key, self.sweep.fixed_overrides))
        return [
            f"logger.{key}={format_literal(value)}"
            for key, value in labels.items()
            if key in logger and (key == "tags" or f"logger.{key}" not in fixed)
        ]

    def read_result(self, trial: Trial, returned: Sequence[JobReturn], seconds: float) -> Result:
        """Return the result of a trial from what its jobs returned.

        Raises:
            UserError: the task returned no number.
        """
        runs, facts = [], {}
        for job, folder in zip(returned, self.list_folders(trial), strict=True):
            if job.status != JobStatus.COMPLETED:
                error = job._return_value  # the public `return_value` also prints a line
                if not isinstance(error, BaseException):
                    error = RuntimeError(str(error))
                return Result(None, seconds, failure=make_failure(error))
            content: dict[str, Any] = {}
            with contextlib.suppress(ValueError, AttributeError):  # a result.json of other content
                content = read_run_facts(folder)
            facts = facts or content.get("facts", {})
            runs.append(self._read_run(trial, job.return_value, content, folder))
        return combine_runs(runs, seconds, facts)

    def _read_run(
        self, trial: Trial, value: Any, content: dict[str, Any], folder: Path
    ) -> TrialRun:
        metrics, facts = content.get("metrics", {}), content.get("facts", {})
        if "pruned_at" in facts and (value is None or isinstance(value, float)):
            return TrialRun(value, metrics, is_pruned=True)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise user_error(
                got=f"a task that returned {type(value).__name__}",
                expected="the objective, a number",
                do="return it from the @hydra.main function",
            )
        if self.objective is not None and self.objective.name == "hybrid":
            # A job does not know its generation, by which this objective changes.
            value = score(self.objective, metrics, trial.facts.get("generation", 0))
        return TrialRun(float(value), metrics)


class HydraEvaluation:
    """The evaluation of a trial through Hydra's serial launcher, here or in a worker process."""

    def __init__(self, jobs: HydraJobs, request: SweepRequest) -> None:
        self._jobs, self._request = jobs, request
        self._launcher: Launcher | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        return self._jobs, self._request, Singleton.get_state()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._jobs, self._request, singletons = state
        Singleton.set_state(singletons)
        self._launcher = None

    def __call__(self, trial: Trial) -> Result:
        if self._launcher is None:
            self._launcher = _make_serial_launcher(self._request)
        started_at = time.perf_counter()
        overrides = self._jobs.build_overrides(trial)
        returned = self._launcher.launch(overrides, initial_job_idx=trial.number)
        return self._jobs.read_result(trial, returned, time.perf_counter() - started_at)


def make_hydra_workers(jobs: HydraJobs, request: SweepRequest, launcher: Launcher) -> Workers:
    """Return our workers, or the user's launcher where it runs jobs side by side."""
    sweep = jobs.sweep
    if request.config.hydra.runtime.choices["hydra/launcher"] == "basic":
        evaluation = HydraEvaluation(jobs, request)
        return make_workers(sweep.workers, sweep.trial, evaluation, sweep.location.folder)
    return BatchWorkers(lambda batch: _launch(batch, jobs, launcher), sweep.workers.slots)


def _make_serial_launcher(request: SweepRequest) -> Launcher:
    """Return the chosen launcher, which is Hydra's basic one, without its line for each job."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=request.context, task_function=request.task, config=request.config
    )
    logging.getLogger(type(launcher).__module__).setLevel(logging.WARNING)
    return launcher


def _launch(batch: Sequence[Trial], jobs: HydraJobs, launcher: Launcher) -> Iterator[Result]:
    """Run trials through a launcher."""
    for group in _split_at_gaps(batch):
        started_at = time.perf_counter()
        overrides = [jobs.build_overrides(trial) for trial in group]
        flat = [job for of_trial in overrides for job in of_trial]
        returned = list(launcher.launch(flat, initial_job_idx=group[0].number))
        seconds = time.perf_counter() - started_at
        for trial, of_trial in zip(group, overrides, strict=True):
            yield jobs.read_result(trial, returned[: len(of_trial)], seconds)
            del returned[: len(of_trial)]


def _split_at_gaps(batch: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Split a batch at gaps of the trial numbers; Hydra numbers the jobs of a launch upwards."""
    group: list[Trial] = []
    for trial in batch:
        if group and trial.number != group[-1].number + 1:
            yield group
            group = []
        group.append(trial)
    if group:
        yield group
