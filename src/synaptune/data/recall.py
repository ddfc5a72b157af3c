"""Associative-recall rows: key-value pairs, then queries for the value of a key.

    k1 v1 k2 v2 ... kP vP . . ki . . . . kj . . . . . . . . . kl . .
    (. filler, or one of recall_distractors random tokens; the targets at ki, kj, kl are vi, vj, vl)

The keys of a row differ, so each query has one answer. The answer appears only in its pair, so a
repeated query has no nearer copy of it. The distance from the last pair to a query is log-uniform
between recall_near and recall_far, so a row has queries at short and at long distances. Only the
answers are scored.
Source: multi-query associative recall of Arora et al., "Zoology", ICLR 2024 (arXiv 2312.04927),
with its power-law gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from synaptune.data.config import DataConfig

IGNORE_INDEX = -100  # target that cross-entropy ignores


class RecallRows(NamedTuple):
    """Rows of associative recall, arrays of (row, token).

    Attributes:
        tokens: int64 tokens.
        targets: int64 answers at the queries, IGNORE_INDEX elsewhere.
        recall: bool, True at the queries.
    """

    tokens: np.ndarray
    targets: np.ndarray
    recall: np.ndarray


def draw_recall_rows(
    config: DataConfig,
    *,
    first: int,
    rows: int,
    context: int,
    random: np.random.Generator,
    graded: bool = False,
) -> RecallRows:
    """Draw rows of associative recall.

    Args:
        config: settings of the data.
        first: number of the first key in the vocabulary; values and the filler follow the keys.
        rows: number of rows.
        context: length of a row [token].
        random: source of the draws.
        graded: draw 1 to recall_pairs pairs for each row instead of recall_pairs. In training the
            easy rows give a gradient on the plateau where the model guesses among the values of a
            row (measured: 500 steps instead of thousands).
    """
    most = config.recall_pairs
    keys = first + _draw_permutations(random, rows, config.recall_keys)[:, :most]
    values = first + config.recall_keys + random.integers(config.recall_values, size=(rows, most))
    pairs = (
        random.integers(1, most, size=(rows, 1), endpoint=True)
        if graded
        else np.full((rows, 1), most)
    )
    tokens = np.full(
        (rows, context), first + config.recall_keys + config.recall_values, dtype=np.int64
    )
    if config.recall_distractors > 1:
        tokens += random.integers(config.recall_distractors, size=tokens.shape)
    head = np.stack([keys, values], axis=-1).reshape(rows, 2 * most)
    tokens[:, : 2 * most] = np.where(np.arange(2 * most) < 2 * pairs, head, tokens[:, : 2 * most])
    positions = 2 * pairs - 1 + _draw_distances(config, rows=rows, context=context, random=random)
    # The numbers of queries of any two pairs differ by at most one.
    queries = _draw_permutations(random, rows, config.recall_queries) % pairs
    row = np.arange(rows)[:, None]
    targets = np.full((rows, context), IGNORE_INDEX, dtype=np.int64)
    tokens[row, positions] = keys[row, queries]
    targets[row, positions] = values[row, queries]
    return RecallRows(tokens, targets, targets != IGNORE_INDEX)


def _draw_distances(
    config: DataConfig, *, rows: int, context: int, random: np.random.Generator
) -> np.ndarray:
    """Draw the distances of the queries from the last pair, (rows, queries) [token].

    The distances of a row differ; their density is proportional to 1 / distance.
    """
    far = context - 2 * config.recall_pairs if config.recall_far is None else config.recall_far
    distance = np.arange(config.recall_near, far + 1)
    # The shortest of exponential times with rates 1 / distance: a weighted draw without replacement
    # (Efraimidis and Spirakis 2006).
    times = random.standard_exponential((rows, len(distance))) * distance
    return distance[times.argsort(axis=1)[:, : config.recall_queries]]


def _draw_permutations(random: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Draw a permutation of 0 .. count - 1 for each row."""
    return random.random((rows, count)).argsort(axis=1)
