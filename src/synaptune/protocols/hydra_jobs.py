"""Trials of a sweep as jobs of a Hydra launcher.

All of Hydra's private API that the sweeper needs is used here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import get_typed_group, has_name, is_training_config, select_value
from synaptune.config.sweep import Sweep, SweepRequest
from synaptune.core.text import get_first_line
from synaptune.protocols.population import PopulationEvaluation
from synaptune.protocols.trial_run import (
    TrainingEvaluation,
    TrialRun,
    combine_runs,
    make_slice_changes,
)
from synaptune.search.objective.common_seeds import list_common_seeds
from synaptune.search.objective.score import ObjectiveConfig, score
from synaptune.search.space.override_text import format_value
from synaptune.search.space.values import to_number
from synaptune.search.trial import Failure, Result, Trial, make_error_result
from synaptune.search.workers.base import BatchWorkers, Workers
from synaptune.search.workers.config import make_workers
from synaptune.study.artifacts import read_run_facts
from synaptune.training.config import LoggerConfig
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
        if first is None or (count == 1 and first == select_value(self.sweep.base, "seed")):
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
        jobs, words = [], self.sweep.overrides.build(trial.values)
        steps = select_value(self.sweep.base, "training.steps")
        changes = make_slice_changes(trial, self.sweep.location.trials_folder, steps)
        words += [f"{name}={format_value(value)}" for name, value in changes.items()]
        for seed, folder in zip(self.list_seeds(trial), self.list_folders(trial), strict=True):
            label = f"{trial.number}" if folder.name == str(trial.number) else folder.name
            own = [] if seed is None else [f"seed={seed}"]
            place = {"dir": str(folder.parent)}
            if not self.sweep.has_own_subdir or len(own):
                place["subdir"] = folder.name
            jobs.append(
                [
                    *words,
                    *self.overrides,
                    *own,
                    *self._label_run(trial, label),
                    *(f"hydra.sweep.{key}={format_value(path)}" for key, path in place.items()),
                ]
            )
        return jobs

    def _label_run(self, trial: Trial, label: str) -> list[str]:
        """Return the overrides that name the W&B run of a job, where the application has them."""
        logger = get_typed_group(self.sweep.base, "logger", LoggerConfig)
        if logger is None:
            return []
        number = trial.number if label == str(trial.number) else f"{trial.number}-{label}"
        labels = make_run_labels(
            self.sweep.location.name,
            self.identity,
            number,
            facts=trial.facts,
            searched=trial.values,
            tags=logger.tags,
        )
        fixed = self.sweep.overrides.fixed_names
        return [
            f"logger.{key}={format_value(value)}"
            for key, value in labels.items()
            if key == "tags" or f"logger.{key}" not in fixed
        ]

    def read_result(self, trial: Trial, returned: Sequence[JobReturn], seconds: float) -> Result:
        """Return the result of a trial from what its jobs returned.

        A job that failed, or whose task returned no number, makes it a failure.
        """
        runs, facts = [], {}
        for job in returned:
            if job.status != JobStatus.COMPLETED:
                error = job._return_value  # the public `return_value` also prints a line
                return make_point_result(error, seconds)
            content: dict[str, Any] = {}
            assert job.hydra_cfg is not None
            with contextlib.suppress(ValueError, AttributeError):  # a result.json of other content
                content = read_run_facts(Path(job.hydra_cfg.hydra.runtime.output_dir))
            facts = facts or content.get("facts", {})
            try:
                runs.append(self._read_run(trial, job.return_value, content))
            except TypeError as error:
                reason = f"the task returned {error}, expected a number"
                return Result(None, seconds, failure=Failure("error", reason))
        return combine_runs(runs, seconds, facts)

    def _read_run(self, trial: Trial, value: Any, content: dict[str, Any]) -> TrialRun:
        """Return the run of a job.

        Raises:
            TypeError: its task returned no number.
        """
        metrics, is_pruned = content.get("metrics", {}), "pruned_at" in content.get("facts", {})
        if is_pruned:
            return TrialRun(None if value is None else to_number(value), metrics, is_pruned=True)
        number = to_number(value)
        if self.objective is not None and self.objective.name == "hybrid":
            # A job does not know its generation, by which this objective changes.
            number = score(self.objective, metrics, trial.facts.get("generation", 0))
        return TrialRun(number, metrics)


def make_point_result(error: Any, seconds: float) -> Result:
    """Return the result of a job that raised an error; Hydra's errors also name their cause."""
    if not isinstance(error, BaseException):
        error = RuntimeError(str(error))
    result = make_error_result(error, seconds)
    if isinstance(error, HydraException) and error.__cause__ is not None:
        assert result.failure is not None
        reason = f"{get_first_line(error)}: {get_first_line(error.__cause__)}"
        return replace(result, failure=result.failure._replace(reason=reason))
    return result


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
        try:
            returned = self._launcher.launch(overrides, initial_job_idx=trial.number)
        except (HydraException, OmegaConfBaseException) as error:  # it does not compose
            seconds = time.perf_counter() - started_at
            return make_point_result(error, seconds)
        return self._jobs.read_result(trial, returned, time.perf_counter() - started_at)


def make_hydra_workers(
    jobs: HydraJobs, request: SweepRequest, launcher: Launcher, base: DictConfig
) -> Workers:
    """Return our workers, or the user's launcher where it runs jobs side by side.

    Args:
        jobs: the jobs of the trials.
        request: what Hydra gave the sweeper.
        launcher: the launcher.
        base: configuration of a run, for workers that make no job of Hydra.
    """
    sweep = jobs.sweep
    if request.config.hydra.runtime.choices["hydra/launcher"] == "basic":
        evaluation = HydraEvaluation(jobs, request)
        folder, batch = sweep.location.folder, None
        if is_training_config(base) and all(has_name(base, name) for name in sweep.space.names):
            location = sweep.location
            single = TrainingEvaluation(base, location.name, location.trials_folder, jobs.identity)
            batch = PopulationEvaluation(single, sweep.workers.populations_per_device)
        return make_workers(sweep.workers, sweep.trial, evaluation, folder, batch)
    return BatchWorkers(
        lambda batch: _launch_batch(batch, jobs, request, launcher), sweep.workers.slots
    )


def _make_serial_launcher(request: SweepRequest) -> Launcher:
    """Return the chosen launcher, which is Hydra's basic one, without its line for each job."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=request.context, task_function=request.task, config=request.config
    )
    logging.getLogger(type(launcher).__module__).setLevel(logging.WARNING)
    return launcher


def _launch_batch(
    batch: Sequence[Trial], jobs: HydraJobs, request: SweepRequest, launcher: Launcher
) -> Iterator[Result]:
    """Run trials through a launcher; those that do not compose fail before it gets the others."""
    overrides = {trial.number: jobs.build_overrides(trial) for trial in batch}
    results: dict[int, Result] = {}
    for trial in batch:
        try:
            for words in overrides[trial.number]:
                request.context.config_loader.load_sweep_config(request.config, words)
        except HydraException as error:
            results[trial.number] = make_point_result(error, 0.0)
    for group in _split_at_gaps([trial for trial in batch if trial.number not in results]):
        results |= _launch_group(
            group, [overrides[trial.number] for trial in group], jobs, launcher
        )
    yield from (results[trial.number] for trial in batch)


def _launch_group(
    group: Sequence[Trial],
    overrides: Sequence[list[list[str]]],
    jobs: HydraJobs,
    launcher: Launcher,
) -> dict[int, Result]:
    """Run trials of consecutive numbers in one launch; return their results by number."""
    started_at = time.perf_counter()
    flat = [words for of_trial in overrides for words in of_trial]
    try:
        returned = list(launcher.launch(flat, initial_job_idx=group[0].number))
    except Exception as error:  # such as a worker of the launcher that died
        failed = make_point_result(error, time.perf_counter() - started_at)
        return {trial.number: failed for trial in group}
    seconds, results = time.perf_counter() - started_at, {}
    for trial, of_trial in zip(group, overrides, strict=True):
        results[trial.number] = jobs.read_result(trial, returned[: len(of_trial)], seconds)
        del returned[: len(of_trial)]
    return results


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
