"""The training step, as a Lightning module with manual optimisation.

The module does not wait for the device between two logged steps. It sums the losses in a tensor and
reads it every `logger.every` steps; only then does it detect a loss that is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from synaptune.training import checkpoint
from synaptune.training.errors import DivergedError, RunPruned
from synaptune.training.evaluation import compute_use_metrics, make_autocast, to_device
from synaptune.training.job import Job
from synaptune.training.lightning_import import lightning
from synaptune.training.loggers.base import RunLogger
from synaptune.training.loggers.progress import Progress
from synaptune.training.optimizers import make_optimizer
from synaptune.training.schedules import get_evaluation_steps, learning_rate

_NOISE_STREAM = 3  # different from the streams of data/batches.py


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


class StepBatches:
    """Micro-batches of the remaining steps, each a pure function of (seed, number)."""

    def __init__(self, job: Job, done: int) -> None:
        self._job = job
        self._numbers = range(
            done * job.training.accumulate, job.training.end * job.training.accumulate
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        return map(self._job.make_batch, self._numbers)


class TrainingModule(lightning.LightningModule):
    """Runs the steps, validations and checkpoints of one job, whatever its kind."""

    def __init__(
        self,
        job: Job,
        state: FitState,
        logger: RunLogger,
        progress: Progress,
        optimizer_state: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = job.model
        self.job = job
        self.state = state
        self._run_logger = logger
        self._progress = progress
        self._optimizer_state = optimizer_state
        self._evaluations = set(get_evaluation_steps(job.training))
        self._activities: list[Any] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._optimizer = make_optimizer(self.model, self.job.training)
        if self._optimizer_state is not None:
            self._optimizer.load_state_dict(self._optimizer_state)
        return self._optimizer

    def on_train_start(self) -> None:
        self._weights = [
            weight for group in self._optimizer.param_groups for weight in group["params"]
        ]
        self._noise = torch.Generator(self.device)
        self._losses = torch.tensor(self.state.loss_sum, device=self.device, dtype=torch.float64)
        self.model.train()
        self._clock = time.perf_counter()
        self._last_logged = (self.state.step, self.state.train_seconds)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch if device.type == "cpu" else to_device(batch, device)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        training, state = self.job.training, self.state
        micro = state.step * training.accumulate + len(self._activities)
        self._noise.manual_seed(make_noise_seed(self.job.seed, micro))
        with make_autocast(training, self.device):
            output = self.job.compute_loss(batch, self._noise)
        (output.total / training.accumulate).backward()
        self._losses += output.loss.detach()
        state.loss_count += 1
        self._activities.append(output.activity)
        if len(self._activities) == training.accumulate:
            self._optimizer_step()

    def _optimizer_step(self) -> None:
        training, state = self.job.training, self.state
        state.step += 1
        rate = learning_rate(state.step, training)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if training.clip > 0:
            torch.nn.utils.clip_grad_norm_(self._weights, training.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        events = self.job.apply_plasticity(self._activities, state.step, self._optimizer)
        self._activities = []
        state.add_events(events)
        self._finish_step(rate)

    def _finish_step(self, rate: float) -> None:
        """Log, validate and save when they are due at this step."""
        training, state = self.job.training, self.state
        last = state.step == training.end
        is_validated = state.step in self._evaluations
        values: dict[str, float] = {}
        if last or state.step % self.job.logger.every == 0:
            values |= (
                self._read_losses()
                | {"learning_rate": rate}
                | self.state.record_use(self.job.get_utilisation())
            )
        if is_validated:
            values |= self._validate()
        if values:
            if self.job.get_utilisation() is not None:
                values |= {"merges": float(state.merges), "splits": float(state.splits)}
            self._run_logger.log(state.step, {"seconds": state.train_seconds, **values})
        if is_validated and self.job.on_validation is not None:
            # Called before the step is saved: a run resumed from a checkpoint has then reported
            # every validation up to it.
            try:
                self.job.on_validation(state.step, values[self.job.reported])
            except RunPruned:
                # After the last step pruning saves nothing and would lose the final checkpoint.
                if not last:
                    raise
        if last or (training.checkpoint_every and state.step % training.checkpoint_every == 0):
            self._save_checkpoint()

    def _read_losses(self) -> dict[str, float]:
        """Return the mean training loss and the speed since the last call.

        Only this method waits for the device between validations.

        Raises:
            DivergedError: the loss is not finite.
        """
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
        metrics = self.job.validate(self.device)
        if not math.isfinite(metrics["val_loss"]):
            raise DivergedError(state.step, metrics["val_loss"])
        state.metrics = metrics
        state.curve.append([state.step, metrics[self.job.reported]])
        self._progress.show_validation(state.step, metrics["val_loss"])
        state.evaluation_seconds += self._restart_clock()
        return metrics

    def _stop_clock(self) -> None:
        """Add the time since the last call to the training time; the device must be idle."""
        self.state.train_seconds += self._restart_clock()

    def _restart_clock(self) -> float:
        """Return the seconds since the last call."""
        started_at, self._clock = self._clock, time.perf_counter()
        return self._clock - started_at

    def _save_checkpoint(self) -> None:
        self._stop_clock()
        self.state.loss_sum = float(self._losses)
        save_run(self.job, self.state, self._optimizer)
        self._clock = time.perf_counter()


def save_run(job: Job, state: FitState, optimizer: torch.optim.Optimizer) -> None:
    """Write the checkpoint of a run, from which `fit` continues it."""
    content = dict(
        about=job.describe(),
        fingerprint=job.fingerprint,
        weights=job.model.state_dict(),
        optimizer=optimizer.state_dict(),
        random=checkpoint.get_random_states(),
        state=vars(state),
        sums=list(job.sums),
    )
    checkpoint.save(job.checkpoint_path, content)


def make_noise_seed(seed: int, number: int) -> int:
    """Return the seed of the release noise of one micro-batch.

    The seed is a hash, because torch's CPU generator reads only the low 32 bits.
    """
    return int(
        np.random.SeedSequence([_NOISE_STREAM, seed, number]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )
