"""The training loop over several jobs at once: each step is one program.

The program is population.py for language models and image_population.py for image networks.

The steps, validations, logs and files of a job are those of `fit`; its losses are equal up to the
rounding of a batched program. A job that diverges or is pruned ends alone, and the others go on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from synaptune.training.errors import DivergedError, RunPruned
from synaptune.training.evaluation import make_autocast, pick_device, to_device
from synaptune.training.image_job import ImageJob
from synaptune.training.image_population import ImagePopulation, get_image_key
from synaptune.training.job import Job, LanguageJob
from synaptune.training.loggers.base import RunLogger
from synaptune.training.module import FitState, make_noise_seed, save_run
from synaptune.training.optimizers import make_optimizer
from synaptune.training.population import Population
from synaptune.training.schedules import get_evaluation_steps, learning_rate
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


def get_program_key(job: Any) -> tuple[Any, ...] | None:
    """Return what jobs of one program have in common; None for a job that trains alone."""
    training = job.training
    if (
        training.optimizer != "adamw"
        or training.compile
        or training.resume
        or training.start is not None
    ):
        return None
    if isinstance(job, ImageJob):
        return get_image_key(job)
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
    return (repr(job.config), *data, job.logger.every, *switches, *shared)


def estimate_bytes(job: LanguageJob) -> int:
    """Estimate the memory that a job adds to a population [byte]."""
    config, batch = job.config, job.training.batch
    weights = sum(p.numel() for p in job.model.parameters())
    token = batch * config.context
    layer = _WIDTH_COPIES * token * config.width
    layer += _ATTENTION_COPIES * token * config.context * config.heads
    logits = 4 * token * job.corpus.vocab
    return 4 * (_WEIGHT_COPIES * weights + config.layers * layer + logits)


def choose_chunk(job: Job, count: int) -> int:
    """Return how many of `count` jobs like this one fit into the free memory, at least 1."""
    if not isinstance(job, LanguageJob):  # image networks are small
        return count
    device = pick_device(job.training.device)
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else _read_free_memory()
    if free is None:
        return count
    return max(1, min(count, int(_MEMORY_SHARE * free // estimate_bytes(job))))


def _read_free_memory() -> int | None:
    """Return the free memory of this machine [byte]; None where it cannot be read."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return None


def fit_population(jobs: Sequence[Job]) -> Iterator[Ended]:
    """Train jobs of one program key from the start; yield each when it ends.

    Raises:
        UserError: the device is missing, or a file cannot be written.
    """
    device = pick_device(jobs[0].training.device)
    population = _make_population(jobs, device)
    rows = [_Row(job, population, index) for index, job in enumerate(jobs)]
    try:
        for step in range(1, jobs[0].training.end + 1):
            present = [rows[index] for index in population.rows]
            for row in present:
                row.rate = learning_rate(step, row.job.training)
                row.state.step, row.share = step, 1.0 / len(present)
            if isinstance(population, ImagePopulation):
                _add_losses(present, population.step())
            else:
                _train_language_step(population, present, step, device)
            for row in present:
                outcome = row.finish_step(step, device)
                if outcome is not None:
                    # The others see no gap in their time while a caller records the end.
                    yield Ended(row.index, outcome)
                    for other in rows:
                        other.restart_clock()
            population.drop([row.index for row in rows if row.has_ended])
            if not population.rows:
                return
    finally:
        for row in rows:
            row.close(1)


def _make_population(jobs: Sequence[Any], device: torch.device) -> Population | ImagePopulation:
    if isinstance(jobs[0], ImageJob):
        return ImagePopulation(jobs)
    for job in jobs:
        job.model.to(device).train()
    return Population(
        [job.model for job in jobs],
        decays=[job.training.weight_decay for job in jobs],
        clips=[job.training.clip for job in jobs],
    )


def _train_language_step(
    population: Population, present: Sequence[_Row], step: int, device: torch.device
) -> None:
    """Run one optimizer step of all candidates; the batches are those of any of the jobs."""
    job, noise = present[0].job, torch.Generator(device)
    for part in range(job.training.accumulate):
        number = (step - 1) * job.training.accumulate + part
        noise.manual_seed(make_noise_seed(job.seed, number))
        batch = to_device(job.make_batch(number), device)
        losses = population.compute_gradients(
            batch.tokens, batch.targets, noise, make_autocast(job.training, device)
        )
        _add_losses(present, losses)
    events = population.update(step, [row.rate for row in present])
    for row, of_layers in zip(present, events, strict=True):
        row.state.add_events(of_layers)


def _add_losses(rows: Sequence[_Row], losses: torch.Tensor) -> None:
    for row, loss in zip(rows, losses.double().unbind(), strict=True):
        row.losses += loss
        row.state.loss_count += 1


class _Row:
    """The state, the logs and the files of one job of a population."""

    def __init__(self, job: Job, population: Population | ImagePopulation, index: int) -> None:
        self.job, self.index, self._population = job, index, population
        self.state, self.rate, self.share = FitState(), 0.0, 1.0
        self.losses = torch.zeros((), dtype=torch.float64, device=job.model.head.weight.device)
        self.has_ended = False
        self._evaluations = set(get_evaluation_steps(job.training))
        self._logger: RunLogger | None = RunLogger(
            job.logger,
            job.run_dir,
            name=job.name,
            flat_config=job.flat_config,
            resumed_from=0,
            columns=job.columns,
        )
        self._clock, self._last_logged = time.perf_counter(), (0, 0.0)

    def finish_step(self, step: int, device: torch.device) -> FitResult | Exception | None:
        """Log, validate and save when they are due; return how the job ended, if it did."""
        training = self.job.training
        is_last = step == training.end
        try:
            values: dict[str, float] = {}
            if is_last or step % self.job.logger.every == 0:
                values |= self._read_losses() | {"learning_rate": self.rate}
                self._population.load(self.index)
                values |= self.state.record_use(self.job.get_utilisation())
            is_validated = step in self._evaluations
            if is_validated:
                values |= self._validate(device)
            if values and self._logger is not None:
                events = {"merges": float(self.state.merges), "splits": float(self.state.splits)}
                values |= {} if self.job.get_utilisation() is None else events
                seconds = {"seconds": self.state.train_seconds}
                self._logger.log(step, seconds | values)
            if is_validated and self.job.on_validation is not None:
                self.job.on_validation(step, values[self.job.reported])
        except RunPruned:
            if not is_last:
                return self._end(device, pruned=True)
        except DivergedError as error:
            self.has_ended = True
            self.close(1)
            return error
        if is_last or (training.checkpoint_every and step % training.checkpoint_every == 0):
            self._save_checkpoint()
        return self._end(device, pruned=False) if is_last else None

    def _read_losses(self) -> dict[str, float]:
        state, loss = self.state, float(self.losses) / max(1, self.state.loss_count)
        if not math.isfinite(loss):
            raise DivergedError(state.step, loss)
        self._stop_clock()
        last_step, seconds = self._last_logged
        count = (state.step - last_step) * self.job.units_per_step
        speed = count / max(1e-9, state.train_seconds - seconds)
        self._last_logged = (state.step, state.train_seconds)
        self.losses.zero_()
        state.loss_count = 0
        return {"train_loss": loss, f"{self.job.unit}s_per_second": speed}

    def _validate(self, device: torch.device) -> dict[str, float]:
        self._stop_clock()
        started_at = time.perf_counter()
        self._population.load(self.index)
        metrics = self.job.validate(device)
        if not math.isfinite(metrics["val_loss"]):
            raise DivergedError(self.state.step, metrics["val_loss"])
        self.state.metrics = metrics
        self.state.curve.append([self.state.step, metrics[self.job.reported]])
        self.state.evaluation_seconds += time.perf_counter() - started_at
        return metrics

    def _stop_clock(self) -> None:
        """Add the share of this job in the time since the last call to its training time."""
        self.state.train_seconds += self.share * (time.perf_counter() - self._clock)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time up to now out of the training time."""
        self._clock = time.perf_counter()

    def _save_checkpoint(self) -> None:
        job, model = self.job, self._population.load(self.index)
        self.state.loss_sum = float(self.losses)
        optimizer = make_optimizer(model, job.training)
        self._population.load_optimizer(self.index, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        save_run(job, self.state, optimizer)

    def _end(self, device: torch.device, *, pruned: bool) -> FitResult:
        job, state = self.job, self.state
        self.has_ended = True
        self._population.load(self.index)
        metrics = compute_final_metrics(job, state, device, test=job.training.test and not pruned)
        busy_seconds = state.train_seconds + state.evaluation_seconds
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
