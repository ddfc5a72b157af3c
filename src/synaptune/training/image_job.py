"""The job of a small image network: cross-entropy, accuracy, and the resampling of synapses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from synaptune.data.images import ImageBatch, ImageData, make_image_batch, split_batches
from synaptune.model.budget import PARAMETERS
from synaptune.model.dendrites import ImageNetwork
from synaptune.training.device import make_autocast, to_device
from synaptune.training.job import Job, Split, StepOutput
from synaptune.training.representation import measure_last_layer

_COLUMNS = (
    *("step", "seconds", "train_loss", "learning_rate", "images_per_second"),
    *("val_loss", "val_accuracy"),
)


@dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """A run of a small image network.

    Attributes:
        model: the network.
        images: the images.
        source: name of the set of images.
    """

    model: ImageNetwork
    images: ImageData
    source: str

    unit: ClassVar[str] = "image"
    columns: ClassVar[tuple[str, ...]] = _COLUMNS

    @property
    def units_per_step(self) -> int:
        size = min(self.training.batch, len(self.images.train.labels))
        return size * self.training.accumulate

    def make_batch(self, number: int) -> ImageBatch:
        return make_image_batch(self.images, seed=self.seed, step=number, size=self.training.batch)

    def compute_loss(self, batch: ImageBatch, noise: torch.Generator) -> StepOutput:
        loss = F.cross_entropy(self.model(batch.images), batch.labels)
        return StepOutput(loss, loss)

    def apply_events(self, step: int, optimizer: torch.optim.Optimizer) -> list[tuple[int, int]]:
        """Move the weakest synapses when that is due."""
        self.model.resample(step, self.seed, optimizer)
        return []

    def score_split(self, device: torch.device, split: Split) -> dict[str, float]:
        return self._score(device, split_batches(self.images, split), f"{split}_")

    def compute_final_metrics(self, device: torch.device) -> dict[str, float]:
        """Return the training accuracy and the number of trained parameters."""
        self.model.to(device)  # Lightning leaves a trained model on the CPU
        metrics = self._score(device, split_batches(self.images, "train"), "train_")
        if self.training.representation:
            images = split_batches(self.images, "val")[0].images.to(device)
            metrics |= measure_last_layer(self.model, self.model.head, images)
        count = sum(weight.numel() for weight in self.model.parameters())
        del metrics["train_loss"]  # of the log, not of the whole split
        return metrics | {PARAMETERS: float(count)}

    def describe(self) -> dict[str, Any]:
        return {
            "network": dataclasses.asdict(self.model.config),
            "shape": list(self.images.shape),
            "source": self.source,
            "seed": self.seed,
        }

    @torch.no_grad()
    def _score(
        self, device: torch.device, batches: Sequence[ImageBatch], prefix: str
    ) -> dict[str, float]:
        was_training = self.model.training
        self.model.eval()
        loss = torch.zeros((), device=device, dtype=torch.float64)
        right = torch.zeros((), device=device, dtype=torch.float64)
        with make_autocast(self.training, device):
            for batch in batches:
                images, labels = to_device(batch, device)
                logits = self.model(images).float()
                loss += F.cross_entropy(logits, labels, reduction="sum")
                right += (logits.argmax(1) == labels).sum()
        self.model.train(was_training)
        count = sum(len(batch.labels) for batch in batches)
        return {f"{prefix}loss": float(loss) / count, f"{prefix}accuracy": float(right) / count}
