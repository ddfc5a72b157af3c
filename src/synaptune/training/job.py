"""The job of a training run, and the evaluation of its model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from synaptune.data.batches import Batch, make_eval_batches
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.config import CHECKPOINT_FILE, LoggerConfig, TrainingConfig
from synaptune.training.errors import ValidationCallback
from synaptune.training.evaluation import compute_expert_metrics, evaluate, make_autocast


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        model: the model.
        config: configuration of the model.
        synapse: synapse parameters of the model.
        corpus: tokens of the text.
        data: settings of the data.
        training: settings of training.
        logger: settings of logging.
        seed: seed of weights, batches and release noise.
        name: name of the run.
        run_dir: folder of the run.
        fingerprint: hash of all settings that determine the result.
        flat_config: the configuration by dotted names, for the loggers.
        in_search: whether the run is a trial of a search, which then controls the terminal.
        on_validation: called after every validation; None without a callback.
        summarise: returns what the loggers record of a result (FitResult) beside its metrics.
    """

    model: GPT
    config: ModelConfig
    synapse: SynapseParams
    corpus: Corpus
    data: DataConfig
    training: TrainingConfig
    logger: LoggerConfig
    seed: int
    name: str
    run_dir: Path
    fingerprint: str
    flat_config: dict[str, Any]
    in_search: bool
    on_validation: ValidationCallback | None = None
    summarise: Callable[[Any], Mapping[str, Any]] = lambda result: {}

    @property
    def checkpoint_path(self) -> Path:
        """Path of the run's latest checkpoint."""
        return self.run_dir / CHECKPOINT_FILE

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step."""
        return self.training.batch * self.training.accumulate * self.config.context


@functools.lru_cache(maxsize=8)
def _get_batches(
    corpus: Corpus,
    data: DataConfig,
    split: Literal["val", "test"],
    size: int,
    context: int,
    limit: int,
) -> list[Batch]:
    return make_eval_batches(corpus, data, split, size=size, context=context, limit=limit)


def score_split(job: Job, device: torch.device, split: Literal["val", "test"]) -> dict[str, float]:
    """Return the metrics of the model on a split; their names start with `val_` or `test_`."""
    training = job.training
    batches = _get_batches(
        job.corpus, job.data, split, training.batch, job.config.context, training.eval_batches
    )
    return evaluate(
        job.model,
        batches,
        precision=make_autocast(training, device),
        bytes_per_token=job.corpus.bytes_per_token,
        prefix=f"{split}_",
    )


def validate(job: Job, device: torch.device) -> dict[str, float]:
    """Return the validation metrics and the metrics of the experts' use."""
    return score_split(job, device, "val") | compute_expert_metrics(job.model)
