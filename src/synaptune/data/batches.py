"""Batches: for training a function of (seed, step), for evaluation a function of the split."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synaptune.data.chains import draw_chain_rows
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.data.recall import draw_recall_rows

_TRAIN, _VAL, _TEST = 0, 1, 2  # independent streams of random numbers
_EVALUATION_SEED = 20_260  # one set of evaluation rows for every run, whatever its seed


class Batch(NamedTuple):
    """Rows of tokens and their targets.

    Attributes:
        tokens: inputs, (row, token) int64.
        targets: next tokens, (row, token) int64; IGNORE_INDEX where a token is not scored.
        recall: (row, token) bool, True where the target is the answer of a recall query.
    """

    tokens: Tensor
    targets: Tensor
    recall: Tensor


def make_train_batch(
    corpus: Corpus, config: DataConfig, *, seed: int, step: int, size: int, context: int
) -> Batch:
    """Return the batch of a step: random windows of the training split, and recall rows.

    The batch is a pure function of the arguments, so a resumed run needs no stored position. The
    number of recall rows is an integer next to `recall_fraction * size`, drawn so that its mean is
    that value.

    Args:
        corpus: tokens of the text.
        config: settings of the data.
        seed: seed of the run.
        step: number of the micro-batch, from 0.
        size: rows.
        context: length of a row [token].
    """
    random = _make_generator(_TRAIN, seed, step)
    rows = int(config.recall_fraction * size + random.random())
    if config.source == "chains":
        text = _draw_chains(config, size - rows, context, random)
    else:
        starts = random.integers(max(1, len(corpus.train) - context), size=size - rows)
        text = _take_windows(corpus.train, starts, context)
    if rows == 0:
        return text
    arrays = draw_recall_rows(
        config, first=corpus.text_vocab, rows=rows, context=context, random=random, graded=True
    )
    recall = Batch(*map(torch.from_numpy, arrays))
    if rows == size:
        return recall
    return Batch(*(torch.cat(pair) for pair in zip(text, recall, strict=True)))


def make_eval_batches(
    corpus: Corpus,
    config: DataConfig,
    split: Literal["val", "test"],
    *,
    size: int,
    context: int,
    limit: int,
) -> list[Batch]:
    """Return the batches of a split for evaluation, the same for every run.

    A batch has either text rows or recall rows. Text windows do not overlap and are spread evenly
    over the split. A short split is used completely, and its last batch can be smaller. Recall
    batches take `recall_fraction` of the limit, and at least one batch unless the fraction is 0.
    Their rows have recall_pairs pairs each.

    Args:
        corpus: tokens of the text.
        config: settings of the data.
        split: the split to read.
        size: rows of a batch.
        context: length of a row [token].
        limit: largest number of batches.
    """
    recall = 0 if config.recall_fraction == 0 else max(1, round(config.recall_fraction * limit))
    text = 0 if config.recall_fraction == 1 else max(1, limit - recall)
    tokens = corpus.val if split == "val" else corpus.test
    windows = max(0, (len(tokens) - 1) // context)  # with recall alone the text can be empty
    starts = (
        np.unique(np.linspace(0, windows - 1, min(windows, text * size)).round().astype(np.int64))
        * context
    )
    batches = [
        _take_windows(tokens, starts[row : row + size], context)
        for row in range(0, len(starts), size)
    ]
    stream = _VAL if split == "val" else _TEST
    if config.source == "chains":
        batches = [
            _draw_chains(config, size, context, _make_generator(stream, _EVALUATION_SEED + 1, n))
            for n in range(text)
        ]
    for number in range(recall):
        random = _make_generator(stream, _EVALUATION_SEED, number)
        arrays = draw_recall_rows(
            config, first=corpus.text_vocab, rows=size, context=context, random=random
        )
        batches.append(Batch(*map(torch.from_numpy, arrays)))
    return batches


def _make_generator(stream: int, seed: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([stream, seed, step])))


def _draw_chains(config: DataConfig, rows: int, context: int, random: np.random.Generator) -> Batch:
    """Return rows of in-context Markov chains and their next states, all scored."""
    tokens = torch.from_numpy(draw_chain_rows(config, rows=rows, context=context, random=random))
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros(rows, context, dtype=torch.bool))


def _take_windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    """Return rows of `context` tokens and their next tokens, all scored."""
    rows = torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return Batch(rows[:, :-1], rows[:, 1:], torch.zeros(len(starts), context, dtype=torch.bool))
