"""Needle in a haystack: a fact in real text, asked for at the end of the row.

    t t t k v t t t ... t t k        (t text, k a key, v its value; the target at the last k is v)

The key and the value are symbols of the recall rows (recall.py), from which a model learns to
answer. The distance from the fact to the question grows with the length of the row and falls with
the depth of the fact.
Source: needle in a haystack of Kamradt (2023), with one token for the fact's answer, so that the
accuracy is exact and chance is 1 / recall_values.
"""

from __future__ import annotations

import numpy as np

from synaptune.data.config import DataConfig
from synaptune.data.recall import IGNORE_INDEX, RecallRows


def draw_needle_rows(
    text: np.ndarray,
    config: DataConfig,
    *,
    first: int,
    rows: int,
    length: int,
    depth: float,
    random: np.random.Generator,
) -> RecallRows:
    """Draw rows with one fact each.

    Args:
        text: tokens of a split, longer than a row.
        config: settings of the data, with recall symbols.
        first: number of the first key in the vocabulary; values follow the keys.
        rows: number of rows.
        length: length of a row, at least 3 [token].
        depth: place of the fact in the row, 0 (begin) to 1 (before the question).
        random: source of the draws.
    """
    starts = random.integers(len(text) - length + 1, size=rows)
    tokens = text[starts[:, None] + np.arange(length)].astype(np.int64)
    keys = first + random.integers(config.recall_keys, size=rows)
    values = first + config.recall_keys + random.integers(config.recall_values, size=rows)
    place = round(depth * (length - 3))
    tokens[:, place], tokens[:, place + 1], tokens[:, -1] = keys, values, keys
    targets = np.full((rows, length), IGNORE_INDEX, dtype=np.int64)
    targets[:, -1] = values
    return RecallRows(tokens, targets, targets != IGNORE_INDEX)
