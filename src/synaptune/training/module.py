"""The training step, as a Lightning module with manual optimisation; recorder.py records it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from synaptune.training.cuda_graph import GraphedFunction, can_record, copy_tensors
from synaptune.training.device import make_autocast, to_device
from synaptune.training.job import Job
from synaptune.training.lightning_import import lightning
from synaptune.training.loggers.base import RunLogger
from synaptune.training.loggers.progress import Progress
from synaptune.training.optimizers import load_moments, make_optimizer, set_rate
from synaptune.training.recorder import FitState, RunRecorder
from synaptune.training.schedules import learning_rate

_NOISE_STREAM = 3  # different from the streams of data/batches.py


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
        self._activities: list[Any] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._optimizer = make_optimizer(self.model, self.job.training)
        if self._optimizer_state is not None:
            load_moments(self._optimizer, self._optimizer_state)
        return self._optimizer

    def on_train_start(self) -> None:
        self._weights = [
            weight for group in self._optimizer.param_groups for weight in group["params"]
        ]
        self._noise = torch.Generator(self.device)
        self.model.train()
        self._compute, self._update = self._compute_gradients, self._update_weights
        self._is_graphed = can_record(self.job, self.device)
        if self._is_graphed:
            self._compute = GraphedFunction(self._compute_gradients, [self._noise])
            self._update = GraphedFunction(self._update_weights)
        # A graph adds the gradients of several micro-batches in place.
        self._keeps_gradients = self._is_graphed and self.job.training.accumulate > 1
        if self._keeps_gradients:
            for weight in self._weights:
                weight.grad = torch.zeros_like(weight)
        self._recorder = RunRecorder(
            self.job,
            self.state,
            self._run_logger,
            self._progress,
            self.device,
            load=lambda: None,
            make_checkpoint_optimizer=lambda: self._optimizer,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch if device.type == "cpu" else to_device(batch, device)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        training, state = self.job.training, self.state
        micro = state.step * training.accumulate + len(self._activities)
        self._noise.manual_seed(make_noise_seed(self.job.seed, micro))
        loss, activity, gradients = self._compute(batch)
        self._recorder.add_loss(loss)
        if self._is_graphed:
            for weight, gradient in zip(self._weights, gradients, strict=True):
                weight.grad = gradient
            if self._keeps_gradients:
                activity = copy_tensors(activity)
        self._activities.append(activity)
        if len(self._activities) == training.accumulate:
            self._optimizer_step()

    def _compute_gradients(self, batch: Any) -> tuple[torch.Tensor, Any, list[Any]]:
        """Add the gradients of a micro-batch; return its loss and activity, and the gradients."""
        if self.job.training.accumulate == 1:
            self._optimizer.zero_grad()  # a recording that failed may have left some
        with make_autocast(self.job.training, self.device):
            output = self.job.compute_loss(batch, self._noise)
        (output.total / self.job.training.accumulate).backward()
        return output.loss.detach(), output.activity, [weight.grad for weight in self._weights]

    def _optimizer_step(self) -> None:
        state = self.state
        state.step += 1
        rate = learning_rate(state.step, self.job.training)
        set_rate(self._optimizer, rate)
        self._update(self._activities)
        self._activities = []
        state.add_events(self.job.apply_events(state.step, self._optimizer))
        self._recorder.finish_step(rate)

    def _update_weights(self, activities: list[Any]) -> None:
        """Clip the gradients, and update the weights and the buffers."""
        training = self.job.training
        if training.clip > 0:
            torch.nn.utils.clip_grad_norm_(self._weights, training.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        self.job.update_buffers(activities)


def make_noise_seed(seed: int, number: int) -> int:
    """Return the seed of the release noise of one micro-batch.

    The seed is a hash, because torch's CPU generator reads only the low 32 bits.
    """
    return int(
        np.random.SeedSequence([_NOISE_STREAM, seed, number]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )
