"""Associative-recall rows: key-value pairs, then queries; the answer to a query is the value its key was paired with.

    k1 v1 k2 v2 ... kP vP . . ki . . . . kj . . . . . . . . . kl . .        (. filler; targets at ki, kj, kl: vi, vj, vl)

The keys of a row differ, so each query has one answer, and that answer stands only in its pair: a repeated query finds no
nearer copy. The gap between the last pair and a query is drawn log-uniformly between recall_near and recall_far, so that a
row asks at short and at long distances. Only answers are scored.
Source: multi-query associative recall of Arora et al., "Zoology", ICLR 2024 (arXiv 2312.04927), with its power-law gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from synaptune.data.config import DataConfig

IGNORED = -100  # the target that cross-entropy leaves out


class RecallRows(NamedTuple):
    """tokens, targets: (row, token) int64, targets IGNORED but at queries; recall: True at the queries."""

    tokens: np.ndarray
    targets: np.ndarray
    recall: np.ndarray


def recall_rows(config: DataConfig, *, first: int, rows: int, context: int, random: np.random.Generator) -> RecallRows:
    """Draw `rows` rows of `context` tokens; keys, values and the filler are numbered from `first` on, in that order."""
    pairs, queries, span = config.recall_pairs, config.recall_queries, 2 * config.recall_pairs
    keys = _shuffled(random, rows, config.recall_keys)[:, :pairs]
    values = random.integers(config.recall_values, size=(rows, pairs))
    tokens = np.full((rows, context), first + config.recall_keys + config.recall_values, dtype=np.int64)
    tokens[:, 0:span:2] = first + keys
    tokens[:, 1:span:2] = first + config.recall_keys + values
    places = span + _gaps(config, rows=rows, context=context, random=random)
    # Every pair is asked equally often, up to one; which of the places asks for which pair is shuffled.
    asked = _shuffled(random, rows, queries) % pairs
    targets = np.full((rows, context), IGNORED, dtype=np.int64)
    line = np.arange(rows)[:, None]
    tokens[line, places] = first + keys[line, asked]
    targets[line, places] = first + config.recall_keys + values[line, asked]
    return RecallRows(tokens, targets, targets != IGNORED)


def _gaps(config: DataConfig, *, rows: int, context: int, random: np.random.Generator) -> np.ndarray:
    """Distances of the queries from the last pair, minus one: distinct within a row, density 1 / distance (rows, queries)."""
    far = config.recall_far or context - 2 * config.recall_pairs
    distance = np.arange(config.recall_near, far + 1)
    # The smallest of exponential clocks with rates 1 / distance: a weighted draw without replacement (Efraimidis and Spirakis 2006).
    clocks = random.standard_exponential((rows, len(distance))) * distance
    chosen = clocks.argpartition(config.recall_queries - 1, axis=1)[:, : config.recall_queries]
    return chosen + config.recall_near - 1


def _shuffled(random: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Independent permutations of 0 .. count - 1, one per row."""
    return random.random((rows, count)).argsort(axis=1)
