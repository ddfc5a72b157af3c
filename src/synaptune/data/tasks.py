"""Tasks whose answer a program can check, as prompts and answers of a model's own tokens.

    recall  key-value pairs, fillers, and a key; the answer is its value (recall.py)
    copy    letters and a line break; the answer repeats them
    sums    07+15= ; the answer is 022

All prompts of a batch have one length. A reward is 1 for the whole right answer, else 0.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from synaptune.core.errors import user_error
from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.data.recall import draw_recall_rows

_TRAIN, _EVALUATION = 7, 8  # streams of random numbers, different from those of the other data
_EVALUATION_SEED = 20_260
_LETTERS = 6  # of a copy


class PolicyBatch(NamedTuple):
    """Prompts and their answers.

    Attributes:
        prompts: (prompt, token) int64.
        answers: (prompt, token) int64.
        number: number of the micro-batch, a tensor of one number.
    """

    prompts: Tensor
    answers: Tensor
    number: Tensor


def make_policy_batch(
    task: str, corpus: Corpus, data: DataConfig, *, context: int, seed: int, number: int, size: int
) -> PolicyBatch:
    """Return the prompts of a micro-batch, a pure function of the arguments."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([_TRAIN, seed, number])))
    return _draw(task, corpus, data, context, random, number, size)


def make_evaluation_batches(
    task: str, corpus: Corpus, data: DataConfig, *, context: int, test: bool, prompts: int
) -> list[PolicyBatch]:
    """Return the prompts of an evaluation, the same for every run, in batches of 64."""
    batches = []
    for number in range(-(-prompts // 64)):
        key = [_EVALUATION, _EVALUATION_SEED + test, number]
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        size = min(64, prompts - 64 * number)
        batches.append(_draw(task, corpus, data, context, random, number, size))
    return batches


def check_task(task: str, corpus: Corpus, data: DataConfig, context: int) -> None:
    """Raise UserError where a model cannot do a task."""
    if task == "recall" and data.recall_fraction == 0.0:
        raise user_error(
            got="policy.task=recall of a model that was trained without recall rows",
            expected="a checkpoint whose vocabulary has the keys and values",
            do="train one with experiment=recall, or choose another policy.task",
        )
    if task != "recall" and (len(corpus.encode("a+1=\n")) != 5 or context < 2 * _LETTERS + 2):
        raise user_error(
            got=f"policy.task={task} of a model without a byte tokenizer or with a short context",
            expected=f"data.tokenizer=byte and a context of at least {2 * _LETTERS + 2} tokens",
            do="choose another checkpoint, or policy.task=recall",
        )


def _draw(
    task: str,
    corpus: Corpus,
    data: DataConfig,
    context: int,
    random: np.random.Generator,
    number: int,
    size: int,
) -> PolicyBatch:
    if task == "recall":
        prompts, answers = _draw_recall(corpus, data, context, random, size)
    else:
        texts = [_draw_text(task, random) for _ in range(size)]
        prompts, answers = (
            np.array([corpus.encode(pair[side]) for pair in texts]) for side in (0, 1)
        )
    return PolicyBatch(
        torch.from_numpy(prompts.astype(np.int64)),
        torch.from_numpy(answers.astype(np.int64)),
        torch.tensor(number),
    )


def _draw_recall(
    corpus: Corpus, data: DataConfig, context: int, random: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of one query each, all at one distance of log-uniform size, up to the query."""
    far = context - 2 * data.recall_pairs if data.recall_far is None else data.recall_far
    near = data.recall_near
    distance = int(np.exp(random.uniform(np.log(near), np.log(far + 1))))
    distance = min(max(distance, near), far)
    one = dataclasses.replace(data, recall_queries=1, recall_near=distance, recall_far=distance)
    rows = draw_recall_rows(one, first=corpus.text_vocab, rows=size, context=context, random=random)
    place = int(rows.recall[0].argmax())
    return rows.tokens[:, : place + 1], rows.targets[:, place : place + 1]


def _draw_text(task: str, random: np.random.Generator) -> tuple[str, str]:
    if task == "copy":
        word = "".join(map(chr, random.integers(ord("a"), ord("z") + 1, size=_LETTERS)))
        return f"{word}\n", word
    first, second = random.integers(100, size=2)
    return f"{first:02d}+{second:02d}=", f"{first + second:03d}"
