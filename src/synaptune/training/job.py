"""Everything one training run needs, as typed values."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from synaptune.data.batches import Batch, eval_batches
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.config import LoggerConfig, TrainingConfig
from synaptune.training.errors import Report
from synaptune.training.evaluation import autocast, evaluate, expert_metrics


@dataclass(frozen=True)
class Job:
    """One run: the model and what it was built from, its data, how it is trained, where it is written.

    fingerprint: of everything that determines the result; record: the flat configuration, for people; in_search: a trial of
    a search, whose terminal belongs to the search; report: told every validation.
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
    record: dict[str, Any]
    in_search: bool
    report: Report | None = None

    @property
    def checkpoint(self) -> Path:
        """The run's checkpoint, replaced as the run goes on."""
        return self.run_dir / "checkpoint.pt"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.training.batch * self.training.accumulate * self.config.context


@functools.lru_cache(maxsize=8)
def _batches(corpus: Corpus, data: DataConfig, split: Literal["val", "test"], size: int, context: int, limit: int) -> list[Batch]:
    return eval_batches(corpus, data, split, size=size, context=context, limit=limit)


def score_split(job: Job, device: torch.device, split: Literal["val", "test"]) -> dict[str, float]:
    """Metrics of the model on a split, names led by `val_` or `test_`."""
    training = job.training
    batches = _batches(job.corpus, job.data, split, training.batch, job.config.context, training.eval_batches)
    return evaluate(
        job.model, batches, precision=autocast(training, device), bytes_per_token=job.corpus.bytes_per_token, prefix=f"{split}_"
    )


def validate(job: Job, device: torch.device) -> dict[str, float]:
    """Validation metrics and the use of the experts."""
    return score_split(job, device, "val") | expert_metrics(job.model)
