"""Batches as a pure function of (seed, step) for training, and of the split alone for evaluation."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.data.recall import draw_recall_rows

_TRAIN, _VAL, _TEST = 0, 1, 2  # streams of random numbers that never meet
_EVALUATION_SEED = 20_260  # one set of evaluation rows for every run, whatever its seed


class Batch(NamedTuple):
    """tokens: (row, token) int64 inputs; targets: (row, token) int64, the next token, recall.IGNORED where it is not scored;
    recall: (row, token) bool, True where the target is the answer of a recall query."""

    tokens: Tensor
    targets: Tensor
    recall: Tensor


def make_train_batch(
    corpus: Corpus, config: DataConfig, *, seed: int, step: int, size: int, context: int
) -> Batch:
    """The batch of a step: random windows of the training split, and recall rows by `recall_fraction`.

    A pure function of its arguments, so a resumed run needs no stored position. The number of recall rows is rounded up or
    down at random to `recall_fraction * size` on average.
    """
    random = _make_generator(_TRAIN, seed, step)
    rows = int(config.recall_fraction * size + random.random())
    starts = random.integers(max(1, len(corpus.train) - context), size=size - rows)
    text = _take_windows(corpus.train, starts, context)
    if rows == 0:
        return text
    drawn = draw_recall_rows(
        config, first=corpus.text_vocab, rows=rows, context=context, random=random, graded=True
    )
    recall = Batch(*(torch.from_numpy(array) for array in drawn))
    return (
        Batch(*(torch.cat(pair) for pair in zip(text, recall, strict=True)))
        if rows < size
        else recall
    )


def make_eval_batches(
    corpus: Corpus,
    config: DataConfig,
    split: Literal["val", "test"],
    *,
    size: int,
    context: int,
    limit: int,
) -> list[Batch]:
    """At most `limit` batches of `size` rows, the same for every run; text and recall rows never share a batch.

    Text windows do not overlap and are spread evenly over the split; when it holds fewer than asked for, all of it is used and the
    last batch may be smaller. Recall batches take `recall_fraction` of the limit, at least one when there is any recall;
    their rows all hold recall_pairs pairs.
    """
    recall = 0 if config.recall_fraction == 0 else max(1, round(config.recall_fraction * limit))
    text = 0 if config.recall_fraction == 1 else max(1, limit - recall)
    tokens = corpus.val if split == "val" else corpus.test
    windows = max(
        0, (len(tokens) - 1) // context
    )  # a text that only recall rows stand beside may be empty
    chosen = (
        np.unique(np.linspace(0, windows - 1, min(windows, text * size)).round().astype(np.int64))
        * context
    )
    batches = [
        _take_windows(tokens, chosen[start : start + size], context)
        for start in range(0, len(chosen), size)
    ]
    stream = _VAL if split == "val" else _TEST
    for number in range(recall):
        random = _make_generator(stream, _EVALUATION_SEED, number)
        drawn = draw_recall_rows(
            config, first=corpus.text_vocab, rows=size, context=context, random=random
        )
        batches.append(Batch(*(torch.from_numpy(array) for array in drawn)))
    return batches


def _make_generator(stream: int, seed: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([stream, seed, step])))


def _take_windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    """Rows of `context` tokens and their next tokens, all scored."""
    rows = torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return Batch(rows[:, :-1], rows[:, 1:], torch.zeros(len(starts), context, dtype=torch.bool))
