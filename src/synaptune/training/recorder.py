"""The records of a run between its steps: logs, validations, checkpoints and times.

The losses are summed in a tensor, which is read every `logger.every` steps; only then is a loss
that is not finite detected, and nothing waits for the device in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from synaptune.training import checkpoint
from synaptune.training.errors import DivergedError, RunPruned
from synaptune.training.evaluation import compute_use_metrics
from synaptune.training.job import Job
from synaptune.training.loggers.base import RunLogger
from synaptune.training.loggers.progress import Progress
from synaptune.training.schedules import get_evaluation_steps


@dataclass
class FitState:
    """Progress of a run; a checkpoint contains all of it.

    Attributes:
        step: optimizer steps done.
        loss_sum: sum of the training losses since the last logged step, e.g. [nats/token].
        loss_count: number of these losses.
        curve: [step, reported metric] of each validation: the validation loss, or Job.reported.
        metrics: metrics of the last validation.
        merges: merged experts so far.
        splits: split experts so far.
        train_seconds: wall time of the steps [s].
        evaluation_seconds: wall time of the validations [s].
        life_steps: logged steps; empty for a dense model.
        utilisation: share of each expert at these steps, mean over the layers.
        events: [step, "merge" or "split", layer] of each structural event.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    curve: list[list[float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    merges: int = 0
    splits: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    life_steps: list[int] = field(default_factory=list)
    utilisation: list[list[float]] = field(default_factory=list)
    events: list[list[int | str]] = field(default_factory=list)

    def add_events(self, events: Sequence[tuple[int, int]]) -> None:
        """Count the merges and splits of each layer at this step."""
        for layer, (merges, splits) in enumerate(events):
            self.merges += merges
            self.splits += splits
            self.events += [[self.step, "merge", layer]] if merges else []
            self.events += [[self.step, "split", layer]] if splits else []

    def record_use(self, utilisation: torch.Tensor | None) -> dict[str, float]:
        """Record the use of the experts at a logged step, whose loss was read; return its metrics.

        Args:
            utilisation: share of each expert, (layer, expert); None for a dense model.
        """
        if utilisation is None:
            return {}
        utilisation = utilisation.cpu()
        self.life_steps.append(self.step)
        self.utilisation.append(utilisation.mean(0).tolist())
        return compute_use_metrics(utilisation)

    @property
    def expert_history(self) -> dict[str, Any] | None:
        """History of the experts for result.json; None for a dense model."""
        if not self.life_steps:
            return None
        return {"steps": self.life_steps, "utilisation": self.utilisation, "events": self.events}


class RunRecorder:
    """Logs, validates and saves a run when that is due.

    Args:
        job: the job of the run.
        state: its progress.
        logger: its log.
        progress: its progress output.
        device: where it trains.
        load: called before the model of the job is read; it writes present weights into the model.
        make_checkpoint_optimizer: returns the optimizer whose state a checkpoint gets.

    Attributes:
        share: part of the time of a step that is this run's.
    """

    def __init__(
        self,
        job: Job,
        state: FitState,
        logger: RunLogger,
        progress: Progress,
        device: torch.device,
        *,
        load: Callable[[], object],
        make_checkpoint_optimizer: Callable[[], torch.optim.Optimizer],
    ) -> None:
        self.job, self.state, self.share = job, state, 1.0
        self._logger, self._progress, self._device = logger, progress, device
        self._load, self._make_optimizer = load, make_checkpoint_optimizer
        self._evaluations = set(get_evaluation_steps(job.training))
        self._losses = torch.tensor(state.loss_sum, device=device, dtype=torch.float64)
        self._clock = time.perf_counter()
        self._last_logged = (state.step, state.train_seconds)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add the training loss of a batch; the device is not waited for."""
        self._losses += loss
        self.state.loss_count += 1

    def finish_step(self, rate: float) -> None:
        """Log, validate and save when they are due after the step `state.step`.

        Args:
            rate: learning rate of the step.

        Raises:
            RunPruned: the callback of the validations ends the run.
            DivergedError: a loss is not finite.
        """
        job, state = self.job, self.state
        is_last = state.step == job.training.end
        is_validated = state.step in self._evaluations
        values: dict[str, float] = {}
        if is_last or state.step % job.logger.every == 0:
            values |= self._read_losses() | {"learning_rate": rate}
            self._load()
            values |= state.record_use(job.get_utilisation())
        if is_validated:
            values |= self._validate()
        if values:
            if job.get_utilisation() is not None:
                values |= {"merges": float(state.merges), "splits": float(state.splits)}
            self._logger.log(state.step, {"seconds": state.train_seconds, **values})
        if is_validated and job.on_validation is not None:
            # Called before the step is saved: a run resumed from a checkpoint has then reported
            # every validation up to it.
            try:
                job.on_validation(state.step, values[job.reported])
            except RunPruned:
                # After the last step pruning saves nothing and would lose the final checkpoint.
                if not is_last:
                    raise
        every = job.training.checkpoint_every
        if is_last or (every and state.step % every == 0):
            self._save()

    def _read_losses(self) -> dict[str, float]:
        """Return the mean training loss and the speed since the last call."""
        state = self.state
        loss = float(self._losses) / max(1, state.loss_count)
        if not math.isfinite(loss):
            raise DivergedError(state.step, loss)
        self._stop_clock()
        last_step, seconds = self._last_logged
        count = (state.step - last_step) * self.job.units_per_step
        speed = count / max(1e-9, state.train_seconds - seconds)
        self._last_logged = (state.step, state.train_seconds)
        self._losses.zero_()
        state.loss_count = 0
        self._progress.update(state.step, loss, speed)
        return {"train_loss": loss, f"{self.job.unit}s_per_second": speed}

    def _validate(self) -> dict[str, float]:
        state = self.state
        self._stop_clock()
        self._load()
        metrics = self.job.validate(self._device)
        if not math.isfinite(metrics["val_loss"]):
            raise DivergedError(state.step, metrics["val_loss"])
        state.metrics = metrics
        state.curve.append([state.step, metrics[self.job.reported]])
        self._progress.show_validation(state.step, metrics["val_loss"])
        state.evaluation_seconds += self.restart_clock()
        return metrics

    def _stop_clock(self) -> None:
        """Add the time since the last call to the training time; the device must be idle."""
        self.state.train_seconds += self.share * self.restart_clock()

    def restart_clock(self) -> float:
        """Return the seconds since the last call."""
        started_at, self._clock = self._clock, time.perf_counter()
        return self._clock - started_at

    def _save(self) -> None:
        """Write the checkpoint, from which `fit` continues the run."""
        self._stop_clock()
        self.state.loss_sum = float(self._losses)
        self._load()
        job = self.job
        content = dict(
            about=job.describe(),
            fingerprint=job.fingerprint,
            weights=job.model.state_dict(),
            optimizer=self._make_optimizer().state_dict(),
            random=checkpoint.get_random_states(),
            state=vars(self.state),
            sums=list(job.sums),
        )
        checkpoint.save(job.checkpoint_path, content)
        self.restart_clock()
