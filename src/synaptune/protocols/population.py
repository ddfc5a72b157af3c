"""The evaluation of a batch of trials whose runs are trained together (`workers=population`).

Runs that differ in numbers only form one program, in chunks that fit into the memory. A run that
cannot be batched (another kind of model, several seeds) is trained alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from synaptune.core.errors import is_memory_error
from synaptune.protocols.trial_run import TrainingEvaluation, TrialRun, combine_runs
from synaptune.search.trial import Trial, make_error_result
from synaptune.search.workers.base import FinishedTrial, OnReport, SequentialEvaluation
from synaptune.search.workers.config import WorkersConfig, resolve_worker_count
from synaptune.study.artifacts import read_run_facts
from synaptune.training.errors import RunPruned

if TYPE_CHECKING:
    from synaptune.config.run import PreparedRun


def resolve_workers(base: DictConfig) -> WorkersConfig:
    """Return the workers of a protocol; `auto` trains a generation as one program on a GPU."""
    workers: Any = OmegaConf.to_object(base.workers)
    can_batch = (
        base.model.kind == "transformer"
        and base.model.mixer == "attention"
        and base.objective.name != "policy"
        and base.training.optimizer == "adamw"
        and base.training.device != "cpu"
        and base.trial.timeout is None
    )
    return resolve_worker_count(workers, can_batch=can_batch)


class _Member(NamedTuple):
    """A trial of a program, its run, and the checkpoint that the run continues, if any."""

    trial: Trial
    prepared: PreparedRun
    start: dict[str, Any] | None


@dataclass(frozen=True)
class PopulationEvaluation:
    """Evaluates batches of trials by the settings of an evaluation of single trials.

    Attributes:
        single: the evaluation of single trials.
        sharing: number of processes with populations on the same device.
    """

    single: TrainingEvaluation
    sharing: int = 1

    def __call__(self, trials: Sequence[Trial], on_report: OnReport) -> Iterator[FinishedTrial]:
        from synaptune.training.population_fit import choose_chunk, get_program_key

        groups: dict[Any, list[_Member]] = defaultdict(list)
        alone = [trial for trial in trials if trial.facts.get("seeds", 1) > 1]
        for trial in [trial for trial in trials if trial not in alone]:
            started_at = time.perf_counter()
            try:
                member = self._prepare(trial, on_report)
            except Exception as error:  # the failure of this trial
                seconds = time.perf_counter() - started_at
                yield FinishedTrial(trial, make_error_result(error, seconds))
                continue
            key = get_program_key(member.prepared.job, member.start)
            if key is None:
                alone.append(trial)
            else:
                groups[key].append(member)
        for members in groups.values():
            if len(members) == 1:
                alone.append(members[0].trial)
                continue
            size = choose_chunk(members[0].prepared.job, len(members), self.sharing)
            for first in range(0, len(members), size):
                yield from self._train_together(members[first : first + size], on_report)
        for trial in alone:
            yield from self._train_alone(trial, on_report)

    def _prepare(self, trial: Trial, on_report: OnReport) -> _Member:
        from synaptune.config.run import prepare_run
        from synaptune.training.trainer import load_start_checkpoint

        def report(step: int, value: float) -> None:
            if on_report(trial, step, value):
                raise RunPruned(step)

        folder = self.single.folder / str(trial.number)
        cfg = self.single.compose(trial, trial.facts["seed"], folder)
        generation = trial.facts["generation"]
        prepared = prepare_run(cfg, folder, [], report=report, generation=generation)
        return _Member(trial, prepared, load_start_checkpoint(prepared.job))

    def _train_together(
        self, members: Sequence[_Member], on_report: OnReport
    ) -> Iterator[FinishedTrial]:
        from synaptune.config.run import finish_run
        from synaptune.training.population_fit import fit_population

        if len(members) == 1:
            yield from self._train_alone(members[0].trial, on_report)
            return
        started_at, waiting = time.perf_counter(), dict(enumerate(members))
        jobs, starts = zip(*((m.prepared.job, m.start) for m in members), strict=True)
        try:
            for index, fitted in fit_population(jobs, starts):
                trial, prepared, _ = waiting.pop(index)
                if isinstance(fitted, Exception):
                    seconds = (time.perf_counter() - started_at) / len(members)
                    yield FinishedTrial(trial, make_error_result(fitted, seconds))
                    continue
                outcome = finish_run(prepared, fitted, fitted.busy_seconds)
                run = TrialRun(outcome.objective, outcome.metrics, outcome.pruned_at is not None)
                facts = read_run_facts(prepared.job.run_dir).get("facts", {})
                yield FinishedTrial(trial, combine_runs([run], fitted.busy_seconds, facts))
            return
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
        _free_device()
        # The models have trained: the runs are prepared again, in half the number.
        left = [member.trial for member in waiting.values()]
        for part in (left[: len(left) // 2], left[len(left) // 2 :]):
            again = [self._prepare(trial, on_report) for trial in part]
            yield from self._train_together(again, on_report) if again else ()

    def _train_alone(self, trial: Trial, on_report: OnReport) -> Iterator[FinishedTrial]:
        return SequentialEvaluation(self.single)([trial], on_report)


def _free_device() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
