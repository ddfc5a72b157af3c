"""Workers that train the image networks of several trials as one program, in this process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from synaptune.core.errors import UserError
from synaptune.protocols.protocol import Protocol
from synaptune.protocols.trial_run import TrainingEvaluation
from synaptune.search.trial import Trial
from synaptune.search.workers.base import FinishedTrial, InlineWorkers, OnReport
from synaptune.study.location import StudyLocation
from synaptune.training.loggers.wandb_run import get_study_identity

if TYPE_CHECKING:
    from synaptune.training.image_job import ImageJob

_log = logging.getLogger(__name__)


def with_population(protocol: Protocol, location: StudyLocation, size: int) -> Protocol:
    """Return a protocol that trains up to `size` networks as one program; itself for size 1.

    Args:
        protocol: an open protocol of image networks.
        location: location of its study.
        size: largest number of networks.
    """
    if size == 1:
        return protocol
    base = protocol.base.copy()
    OmegaConf.update(base, "training.resume", True)  # the evaluation ends what was trained here
    evaluation = TrainingEvaluation(
        base, location.name, location.trials_folder, get_study_identity(protocol.study)
    )
    return replace(protocol, pool=PopulationWorkers(evaluation, size))


class PopulationWorkers:
    """Trains the started trials together, then evaluates each from its checkpoint.

    A trial that cannot be in a population, such as one over the budget, is evaluated alone.

    Args:
        evaluation: the evaluation of a trial; it resumes.
        count: largest number of trials.
    """

    def __init__(self, evaluation: TrainingEvaluation, count: int) -> None:
        self.count = count
        self._evaluation, self._single = evaluation, InlineWorkers(evaluation)
        self._started: list[Trial] = []
        self._trained: list[Trial] = []

    def start(self, trial: Trial) -> None:
        """Store the trial until `wait_for_trials` trains it."""
        self._started.append(trial)

    def wait_for_trials(self, on_report: OnReport) -> Sequence[FinishedTrial]:
        """Train the stored trials if none is trained, and evaluate the next one."""
        if not self._trained:
            self._train(self._started, on_report)
            self._trained, self._started = self._started, []
        if not self._trained:
            return ()
        self._single.start(self._trained.pop(0))
        return self._single.wait_for_trials(on_report)

    def close(self) -> None:
        """Do nothing: no trial runs between two calls."""

    def _train(self, trials: Sequence[Trial], on_report: OnReport) -> None:
        from synaptune.training.errors import DivergedError
        from synaptune.training.image_population import get_population_key, train_population

        groups: dict[object, list[tuple[Trial, ImageJob]]] = {}
        for trial in trials:
            for job in self._make_jobs(trial):
                if (key := get_population_key(job)) is not None:
                    groups.setdefault(key, []).append((trial, job))
        for members in groups.values():
            if len(members) == 1:
                continue
            try:
                curves = train_population([job for _, job in members])
            except DivergedError as error:  # of one network; each is trained alone
                _log.info("a population diverged: %s", error)
                continue
            for (trial, _), curve in zip(members, curves, strict=True):
                for step, value in curve:
                    on_report(trial, int(step), value)

    def _make_jobs(self, trial: Trial) -> list[ImageJob]:
        """Return the runs of a trial; none where one cannot start, which its evaluation reports."""
        from synaptune.config.run import make_job
        from synaptune.config.settings import read_settings
        from synaptune.training.image_job import ImageJob

        jobs = []
        for seed, folder in self._evaluation.list_runs(trial):
            try:
                settings = read_settings(self._evaluation.compose(trial, seed, folder))
                job, _ = make_job(settings, folder, {}, in_search=True)
            except UserError:
                return []
            if not isinstance(job, ImageJob) or job.checkpoint_path.exists():
                return []
            folder.mkdir(parents=True, exist_ok=True)
            jobs.append(job)
        return jobs
