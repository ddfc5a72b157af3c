"""The job of a training run: what the training module asks of a model and its data."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from synaptune.data.batches import Batch, make_eval_batches, make_train_batch
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams
from synaptune.training import checkpoint
from synaptune.training.config import CHECKPOINT_FILE, LoggerConfig, TrainingConfig
from synaptune.training.device import make_autocast
from synaptune.training.errors import ValidationCallback
from synaptune.training.evaluation import compute_expert_metrics, evaluate
from synaptune.training.loggers.base import CSV_COLUMNS
from synaptune.training.metrics import training_loss
from synaptune.training.needle import compute_needle_metrics
from synaptune.training.representation import measure_last_layer

Split = Literal["val", "test"]


class StepOutput(NamedTuple):
    """What a micro-batch gives.

    Attributes:
        loss: the training loss that is logged, in the unit of the validation loss.
        total: what is differentiated.
        activity: what `Job.update_buffers` needs of the micro-batch.
    """

    loss: Tensor
    total: Tensor
    activity: Any = None


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """One training run of one kind of task.

    Attributes:
        model: the model.
        training: settings of training.
        logger: settings of logging.
        seed: seed of weights, batches and noise.
        name: name of the run.
        run_dir: folder of the run.
        fingerprint: hash of all settings that determine the result.
        flat_config: the configuration by dotted names, for the loggers.
        in_search: whether the run is a trial of a search, which then controls the terminal.
        on_validation: called after every validation; None without a callback.
        reported: the metric that `on_validation` gets.
        summarise: returns what the loggers record of a result (FitResult) beside its metrics.
        sums: what a job adds up between validations; a checkpoint contains it.
        unit: what a batch consists of, for the speed and the unit of the loss.
        columns: columns of metrics.csv.
    """

    model: Any
    training: TrainingConfig
    logger: LoggerConfig
    seed: int
    name: str
    run_dir: Path
    fingerprint: str
    flat_config: dict[str, Any]
    in_search: bool
    on_validation: ValidationCallback | None = None
    reported: str = "val_loss"
    summarise: Callable[[Any], Mapping[str, Any]] = lambda result: {}
    sums: list[float] = field(default_factory=list)

    unit: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @property
    def checkpoint_path(self) -> Path:
        """Path of the run's latest checkpoint."""
        return self.run_dir / CHECKPOINT_FILE

    @property
    @abstractmethod
    def units_per_step(self) -> int:
        """Tokens, images or samples of an optimizer step."""

    @abstractmethod
    def make_batch(self, number: int) -> Any:
        """Return the micro-batch of a number, from 0, a NamedTuple of tensors."""

    @abstractmethod
    def compute_loss(self, batch: Any, noise: torch.Generator) -> StepOutput:
        """Compute the loss of a micro-batch; `noise` is seeded by the number of the batch."""

    @abstractmethod
    def score_split(self, device: torch.device, split: Split) -> dict[str, float]:
        """Return the metrics of a split; their names start with `val_` or `test_`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the plain values from which the model of a checkpoint is rebuilt."""

    def validate(self, device: torch.device) -> dict[str, float]:
        """Return the metrics of a validation."""
        return self.score_split(device, "val")

    def update_buffers(self, activities: Sequence[Any]) -> None:
        """Change the buffers of the model after an optimizer step, without reading them."""
        return None

    def apply_events(self, step: int, optimizer: torch.optim.Optimizer) -> list[tuple[int, int]]:
        """Change the structure of the model when it is due after an optimizer step.

        Returns:
            Merges and splits of each layer; empty when nothing was due.
        """
        return []

    def get_utilisation(self) -> Tensor | None:
        """Return the use of the experts, (layer, expert); None without experts."""
        return None

    def compute_final_metrics(self, device: torch.device) -> dict[str, float]:
        """Return metrics that are computed once, after the last step."""
        return {}


@dataclass(frozen=True, kw_only=True)
class LanguageJob(Job):
    """A run of the transformer.

    Attributes:
        model: the model.
        config: configuration of the model.
        synapse: synapse parameters of the model.
        corpus: tokens of the text.
        data: settings of the data.
    """

    model: GPT
    config: ModelConfig
    synapse: SynapseParams
    corpus: Corpus
    data: DataConfig

    unit: ClassVar[str] = "token"
    columns: ClassVar[tuple[str, ...]] = CSV_COLUMNS

    @property
    def units_per_step(self) -> int:
        return self.training.batch * self.training.accumulate * self.config.context

    def make_batch(self, number: int) -> Batch:
        return make_train_batch(
            self.corpus,
            self.data,
            seed=self.seed,
            step=number,
            size=self.training.batch,
            context=self.config.context,
        )

    def compute_loss(self, batch: Batch, noise: torch.Generator) -> StepOutput:
        output = self.model(batch.tokens, noise=noise)
        loss = training_loss(output.logits, batch.targets)
        return StepOutput(loss, loss + output.balance, output.activity)

    def update_buffers(self, activities: Sequence[Any]) -> None:
        self.model.update_buffers(list(activities))

    def apply_events(self, step: int, optimizer: torch.optim.Optimizer) -> list[tuple[int, int]]:
        return self.model.apply_events(step, optimizer)

    def get_utilisation(self) -> Tensor | None:
        return self.model.get_utilisation()

    def score_split(self, device: torch.device, split: Split) -> dict[str, float]:
        return evaluate(
            self.model,
            self._get_batches(split),
            precision=make_autocast(self.training, device),
            bytes_per_token=self.corpus.bytes_per_token,
            prefix=f"{split}_",
        )

    def _get_batches(self, split: Split) -> list[Batch]:
        training = self.training
        return _get_batches(
            self.corpus,
            self.data,
            split,
            training.batch,
            self.config.context,
            training.eval_batches,
        )

    def validate(self, device: torch.device) -> dict[str, float]:
        """Return the validation metrics and the metrics of the experts' use."""
        return self.score_split(device, "val") | compute_expert_metrics(self.model)

    def compute_final_metrics(self, device: torch.device) -> dict[str, float]:
        metrics = self.model.get_learned_values()
        if self.data.needle_lengths or self.training.representation:
            self.model.to(device)  # Lightning leaves a trained model on the CPU
        if self.data.needle_lengths:
            metrics |= compute_needle_metrics(self.model, self.corpus, self.data)
        if self.training.representation:
            tokens = self._get_batches("val")[0].tokens.to(device)
            metrics |= measure_last_layer(self.model, self.model.head, tokens)
        return metrics

    def describe(self) -> dict[str, Any]:
        return checkpoint.describe_model(
            self.config, self.synapse, self.data, vocab=self.corpus.vocab, seed=self.seed
        )


@functools.lru_cache(maxsize=8)
def _get_batches(
    corpus: Corpus,
    data: DataConfig,
    split: Split,
    size: int,
    context: int,
    limit: int,
) -> list[Batch]:
    return make_eval_batches(corpus, data, split, size=size, context=context, limit=limit)
