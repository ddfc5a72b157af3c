"""A training loop without Lightning, for benchmarks that act between the steps.

A test compares it with a run of train.py: the losses are equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from synaptune.config.settings import Settings
from synaptune.data.batches import Batch, make_eval_batches, make_train_batch
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus, load_corpus
from synaptune.model.gpt import GPT, Activity
from synaptune.training.device import flush_denormals
from synaptune.training.evaluation import evaluate
from synaptune.training.metrics import training_loss
from synaptune.training.module import make_noise_seed
from synaptune.training.optimizers import make_optimizer, set_rate
from synaptune.training.schedules import learning_rate


class Text(NamedTuple):
    """A text and the settings that it was read with."""

    corpus: Corpus
    data: DataConfig


def load_text(settings: Settings, path: str | None = None) -> Text:
    """Load the text of the settings, or another file or folder."""
    data = settings.data
    if path is not None:
        data = dataclasses.replace(data, source="text", path=path)
    return Text(load_corpus(data, settings.model.context), data)


class Loop:
    """A language model that trains step by step on texts of one vocabulary.

    Attributes:
        settings: of the model, the optimizer and the seed.
        model: the model.
        optimizer: its optimizer.
        step: optimizer steps so far.
        seconds: wall time of `train` so far [s].
    """

    def __init__(self, settings: Settings, vocab: int) -> None:
        self.settings = settings
        self.model = GPT(settings.model, settings.synapse, vocab, seed=settings.seed)
        self.optimizer = make_optimizer(self.model, settings.training)
        self.step, self.seconds = 0, 0.0
        self._noise = torch.Generator()

    def train(
        self,
        text: Text,
        *,
        span: tuple[float, float] = (0.0, 1.0),
        replay: tuple[Text, int] | None = None,
        add_loss: Callable[[], Tensor] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train a part of a run of `training.steps` steps on a text.

        Args:
            text: the text.
            span: begin and end of the part, as fractions of the run, whose schedule it has.
            replay: another text, and how many rows of a batch come from it.
            add_loss: a term of the loss.
            after_step: called after each step, while the weights still have their gradients.
        """
        start, training = time.perf_counter(), self.settings.training
        with flush_denormals():
            for number in range(round(span[0] * training.steps), round(span[1] * training.steps)):
                set_rate(self.optimizer, learning_rate(number + 1, training))
                self.optimizer.zero_grad(set_to_none=True)
                activities = self.add_gradients(text, replay, add_loss)
                self.finish_step(activities)
                if after_step is not None:
                    after_step()
        self.seconds += time.perf_counter() - start

    def add_gradients(
        self,
        text: Text,
        replay: tuple[Text, int] | None = None,
        add_loss: Callable[[], Tensor] | None = None,
    ) -> list[Activity]:
        """Add up the gradients of the micro-batches of the next step; return their activities."""
        count, activities = self.settings.training.accumulate, []
        for micro in range(count):
            number = self.step * count + micro
            batch = self._make_batch(text, replay, number)
            self._noise.manual_seed(make_noise_seed(self.settings.seed, number))
            output = self.model(batch.tokens, self._noise)
            loss = training_loss(output.logits, batch.targets) + output.balance
            if add_loss is not None:
                loss = loss + add_loss()
            (loss / count).backward()
            activities.append(output.activity)
        return activities

    def finish_step(self, activities: Sequence[Activity]) -> None:
        """Clip the gradients, change the weights, and run the plasticity of a step."""
        clip = self.settings.training.clip or torch.inf
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.step += 1
        self.model.apply_plasticity(list(activities), self.step, self.optimizer)

    def _make_batch(self, text: Text, replay: tuple[Text, int] | None, number: int) -> Batch:
        size = self.settings.training.batch
        parts = [(text, size)]
        if replay is not None and replay[1]:
            parts = [(text, size - replay[1]), replay]
        batches = [
            make_train_batch(
                part.corpus,
                part.data,
                seed=self.settings.seed,
                step=number,
                size=rows,
                context=self.settings.model.context,
            )
            for part, rows in parts
        ]
        return Batch(*(torch.cat(columns) for columns in zip(*batches, strict=True)))

    def score(
        self, text: Text, split: Literal["val", "test"] = "test", *, multiple: int = 1
    ) -> dict[str, float]:
        """Return the metrics on a split, in rows of `multiple` contexts.

        The number of tokens does not depend on the length of the rows.
        """
        training, length = self.settings.training, multiple * self.settings.model.context
        if multiple > 1:
            self.model.extend_positions(length)
        rows = max(1, training.batch // multiple)
        batches = make_eval_batches(
            text.corpus,
            text.data,
            split,
            size=rows,
            context=length,
            limit=max(1, training.eval_batches * training.batch // (multiple * rows)),
        )
        return evaluate(
            self.model,
            batches,
            precision=contextlib.nullcontext(),
            bytes_per_token=text.corpus.bytes_per_token,
            prefix="",
        )
