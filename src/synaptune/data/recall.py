"""Associative-recall rows: key-value pairs, then queries; the answer to a query is the value its key was paired with.

    k1 v1 k2 v2 ... kP vP . . ki . . . . kj . . . . . . . . . kl . .        (. filler; targets at ki, kj, kl: vi, vj, vl)

The keys of a row differ, so each query has one answer, and that answer stands only in its pair: a repeated query finds no
nearer copy. The distance from the last pair to a query is drawn log-uniformly between recall_near and recall_far, so that a
row asks at short and at long distances. Only answers are scored.
Source: multi-query associative recall of Arora et al., "Zoology", ICLR 2024 (arXiv 2312.04927), with its power-law gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from synaptune.data.config import DataConfig

IGNORE_INDEX = -100  # the target that cross-entropy leaves out


class RecallRows(NamedTuple):
    """tokens, targets: (row, token) int64, targets IGNORED but at queries; recall: True at the queries."""

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
    """Draw `rows` rows of `context` tokens; keys, values and the filler are numbered from `first` on, in that order.

    graded: rows hold 1 to recall_pairs pairs, else all of them. In training the easy rows carry the gradient off the plateau of
    guessing among the values of a row (measured: 500 steps where rows of one difficulty need thousands).
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
    head = np.stack([keys, values], axis=-1).reshape(rows, 2 * most)
    tokens[:, : 2 * most] = np.where(np.arange(2 * most) < 2 * pairs, head, tokens[:, : 2 * most])
    places = 2 * pairs - 1 + _draw_distances(config, rows=rows, context=context, random=random)
    asked = (
        _draw_permutations(random, rows, config.recall_queries) % pairs
    )  # every pair equally often, up to one
    line = np.arange(rows)[:, None]
    targets = np.full((rows, context), IGNORE_INDEX, dtype=np.int64)
    tokens[line, places] = keys[line, asked]
    targets[line, places] = values[line, asked]
    return RecallRows(tokens, targets, targets != IGNORE_INDEX)


def _draw_distances(
    config: DataConfig, *, rows: int, context: int, random: np.random.Generator
) -> np.ndarray:
    """Distances of the queries from the end of the last pair [token]: distinct in a row, density 1 / distance; (rows, queries)."""
    far = context - 2 * config.recall_pairs if config.recall_far is None else config.recall_far
    distance = np.arange(config.recall_near, far + 1)
    # The first of exponential clocks with rates 1 / distance: a weighted draw without replacement (Efraimidis and Spirakis 2006).
    clocks = random.standard_exponential((rows, len(distance))) * distance
    return distance[clocks.argsort(axis=1)[:, : config.recall_queries]]


def _draw_permutations(random: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Independent permutations of 0 .. count - 1, one per row."""
    return random.random((rows, count)).argsort(axis=1)
