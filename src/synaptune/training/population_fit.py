"""The training loop over several jobs at once: each step is one program.

The program is population.py for language models and image_population.py for image networks.

The steps, validations, logs and files of a job are those of `fit`; its losses are equal up to the
rounding of a batched program. A job that diverges or is pruned ends alone, and the others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from synaptune.training.cuda_graph import can_record
from synaptune.training.device import flush_denormals, make_autocast, pick_device, to_device
from synaptune.training.errors import DivergedError, RunPruned
from synaptune.training.image_job import ImageJob
from synaptune.training.image_population import ImagePopulation, get_image_key
from synaptune.training.job import Job, LanguageJob
from synaptune.training.loggers.base import RunLogger
from synaptune.training.loggers.progress import Progress
from synaptune.training.module import make_noise_seed
from synaptune.training.optimizers import load_moments, make_optimizer, set_rate
from synaptune.training.population import Population
from synaptune.training.recorder import FitState, RunRecorder
from synaptune.training.schedules import learning_rate
from synaptune.training.trainer import FitResult, compute_final_metrics

# Settings in which the jobs of one program may differ.
_FREE_SETTINGS = (
    "learning_rate",
    "schedule",
    "weight_decay",
    "warmup_fraction",
    "final_fraction",
    "clip",
    "checkpoint_every",
    "test",
    "keep",
    "start",
)
_MEMORY_SHARE = 0.5  # of the free memory that a population may fill; chosen: the rest is in use
# Copies of a weight (weight, gradient, two moments, a temporary), and of the activations of a layer
# in multiples of (batch, token, width) and of (batch, head, token, token); chosen:
# estimated from the operations of a layer and rounded up.
_WEIGHT_COPIES, _WIDTH_COPIES, _ATTENTION_COPIES = 6, 60, 8


class Ended(NamedTuple):
    """A job that has ended, by its position; `outcome` is its result or the reason of its end."""

    index: int
    outcome: FitResult | Exception


def get_program_key(job: Any, start: dict[str, Any] | None = None) -> tuple[Any, ...] | None:
    """Return what jobs of one program have in common; None for a job that trains alone.

    Args:
        job: the job.
        start: the checkpoint that it continues (`load_start_checkpoint`).
    """
    training = job.training
    if training.optimizer != "adamw" or training.compile or training.resume:
        return None
    if isinstance(job, ImageJob):
        return get_image_key(job) if start is None else None
    if (
        not isinstance(job, LanguageJob)
        or job.model.learned is not None
        or job.config.mixer != "attention"
    ):
        return None
    settings = dataclasses.asdict(training)
    shared = [repr(value) for name, value in settings.items() if name not in _FREE_SETTINGS]
    switches = (job.model.release_off, job.model.distance_off)
    data = (repr(job.data), job.corpus.vocab, job.seed)
    first = start["state"]["step"] if start else 0
    return (repr(job.config), *data, first, job.logger.every, *switches, *shared)


def estimate_bytes(job: LanguageJob) -> int:
    """Estimate the memory that a job adds to a population [byte]."""
    config, batch = job.config, job.training.batch
    weights = sum(p.numel() for p in job.model.parameters())
    token = batch * config.context
    layer = _WIDTH_COPIES * token * config.width
    layer += _ATTENTION_COPIES * token * config.context * config.heads
    logits = 4 * token * job.corpus.vocab
    return 4 * (_WEIGHT_COPIES * weights + config.layers * layer + logits)


def choose_chunk(job: Job, count: int, sharing: int = 1) -> int:
    """Return how many of `count` jobs like this one fit into the free memory, at least 1.

    Args:
        job: the first of the jobs.
        count: number of jobs.
        sharing: number of processes with populations on the device of this one.
    """
    if not isinstance(job, LanguageJob):  # image networks are small
        return count
    device = pick_device(job.training.device)
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else _read_free_memory()
    if free is None:
        return count
    return max(1, min(count, int(_MEMORY_SHARE * free / sharing // estimate_bytes(job))))


def _read_free_memory() -> int | None:
    """Return the free memory of this machine [byte]; None where it cannot be read."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return None


def fit_population(
    jobs: Sequence[Job], starts: Sequence[dict[str, Any] | None] = ()
) -> Iterator[Ended]:
    """Train jobs of one program key; yield each when it ends.

    Args:
        jobs: the jobs.
        starts: the checkpoint that each continues, of one step; empty for fresh starts.

    Raises:
        UserError: the device is missing, or a file cannot be written.
    """
    device = pick_device(jobs[0].training.device)
    noise = torch.Generator(device)
    population = _make_population(jobs, noise, device)
    contents = [start for start in starts if start is not None]
    states = [FitState(**content["state"]) for content in contents] or [FitState() for _ in jobs]
    rows = [
        _Row(job, state, population, index, device)
        for index, (job, state) in enumerate(zip(jobs, states, strict=True))
    ]
    if contents and isinstance(population, Population):
        optimizers = [_load_optimizer(*pair) for pair in zip(jobs, contents, strict=True)]
        population.restore_optimizers(optimizers, states[0].step)
    try:
        for step in range(states[0].step + 1, jobs[0].training.end + 1):
            present = [rows[index] for index in population.rows]
            for row in present:
                row.rate = learning_rate(step, row.job.training)
                row.state.step, row.recorder.share = step, 1.0 / len(present)
            with flush_denormals():
                if isinstance(population, ImagePopulation):
                    _add_losses(present, population.step())
                else:
                    _train_language_step(population, present, noise, step, device)
                outcomes = {row: row.finish_step() for row in present}
            for row, outcome in outcomes.items():
                if outcome is not None:
                    # The others see no gap in their time while a caller records the end.
                    yield Ended(row.index, outcome)
                    for other in rows:
                        other.recorder.restart_clock()
            population.drop([row.index for row in rows if row.has_ended])
            if not population.rows:
                return
    finally:
        for row in rows:
            row.close(1)


def _make_population(
    jobs: Sequence[Any], noise: torch.Generator, device: torch.device
) -> Population | ImagePopulation:
    if isinstance(jobs[0], ImageJob):
        return ImagePopulation(jobs)
    for job in jobs:
        job.model.to(device).train()
    return Population(
        [job.model for job in jobs],
        decays=[job.training.weight_decay for job in jobs],
        clips=[job.training.clip for job in jobs],
        noise=noise,
        make_precision=lambda: make_autocast(jobs[0].training, device),
        graphs=can_record(jobs[0], device),
    )


def _load_optimizer(job: Job, content: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of a job with its state in a checkpoint."""
    optimizer = make_optimizer(job.model, job.training)
    load_moments(optimizer, content["optimizer"])
    return optimizer


def _train_language_step(
    population: Population,
    present: Sequence[_Row],
    noise: torch.Generator,
    step: int,
    device: torch.device,
) -> None:
    """Run one optimizer step of all candidates; the batches are those of any of the jobs."""
    job = present[0].job
    numbers = range((step - 1) * job.training.accumulate, step * job.training.accumulate)
    for number in numbers:
        noise.manual_seed(make_noise_seed(job.seed, number))
        batch = to_device(job.make_batch(number), device)
        is_last = number == numbers[-1]
        losses = population.add_gradients(batch.tokens, batch.targets, is_last=is_last)
        _add_losses(present, losses)
    events = population.update(step, [row.rate for row in present])
    for row, of_layers in zip(present, events, strict=True):
        row.state.add_events(of_layers)


def _add_losses(rows: Sequence[_Row], losses: torch.Tensor) -> None:
    for row, loss in zip(rows, losses.double().unbind(), strict=True):
        row.recorder.add_loss(loss)


class _Row:
    """One job of a population: its learning rate, records and end."""

    def __init__(
        self,
        job: Job,
        state: FitState,
        population: Population | ImagePopulation,
        index: int,
        device: torch.device,
    ) -> None:
        self.job, self.index, self._population, self._device = job, index, population, device
        self.state, self.rate, self.has_ended = state, 0.0, False
        self._seconds_before = state.train_seconds + state.evaluation_seconds
        self._logger: RunLogger | None = RunLogger(
            job.logger,
            job.run_dir,
            name=job.name,
            flat_config=job.flat_config,
            resumed_from=state.step,
            columns=job.columns,
        )
        self.recorder = RunRecorder(
            job,
            self.state,
            self._logger,
            Progress(),
            device,
            load=lambda: population.load(index),
            make_checkpoint_optimizer=self._make_optimizer,
        )

    def finish_step(self) -> FitResult | Exception | None:
        """Record the step; return how the job ended, if it did."""
        try:
            self.recorder.finish_step(self.rate)
        except RunPruned:
            return self._end(pruned=True)
        except DivergedError as error:
            self.has_ended = True
            self.close(1)
            return error
        return self._end(pruned=False) if self.state.step == self.job.training.end else None

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer that a run of its own would have now."""
        optimizer = make_optimizer(self.job.model, self.job.training)
        self._population.load_optimizer(self.index, optimizer)
        set_rate(optimizer, self.rate)
        return optimizer

    def _end(self, *, pruned: bool) -> FitResult:
        job, state = self.job, self.state
        self.has_ended = True
        self._population.load(self.index)
        is_tested = job.training.test and not pruned
        metrics = compute_final_metrics(job, state, self._device, test=is_tested)
        busy_seconds = state.train_seconds + state.evaluation_seconds - self._seconds_before
        result = FitResult(metrics, state.curve, busy_seconds, pruned, state.expert_history)
        if self._logger is not None:
            self._logger.log_summary({**metrics, **job.summarise(result)})
        self.close(0)
        return result

    def close(self, exit_code: int) -> None:
        """Close the logs, once."""
        logger, self._logger = self._logger, None
        if logger is not None:
            if exit_code:
                logger.log_summary({"state": "failed"})
            logger.close(exit_code)
