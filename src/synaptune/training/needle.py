"""Accuracy of a trained model on facts in real text, by the length of the row (data/needle.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.data.needle import draw_needle_rows
from synaptune.model.gpt import GPT

_SEED = 20_261  # one set of rows for every model


def measure_needle(
    model: GPT,
    corpus: Corpus,
    config: DataConfig,
    *,
    multiples: Sequence[int],
    depths: Sequence[float],
    rows: int,
) -> dict[int, list[float]]:
    """Return the accuracy at each depth, by the length as a multiple of the context.

    The model has been trained on rows of its context; rotary angles continue beyond it.

    Args:
        model: a model that was trained with recall rows, in evaluation mode.
        corpus: its text; the rows are of the test split.
        config: settings of its data.
        multiples: lengths of the rows, as multiples of the context.
        depths: places of the fact, see `draw_needle_rows`.
        rows: rows of each length and depth.
    """
    context = model.config.context
    model.extend_positions(max(multiples) * context)
    random = np.random.default_rng(_SEED)
    accuracies: dict[int, list[float]] = {}
    for multiple in multiples:
        accuracies[multiple] = []
        for depth in depths:
            drawn = draw_needle_rows(
                corpus.test,
                config,
                first=corpus.text_vocab,
                rows=rows,
                length=multiple * context,
                depth=depth,
                random=random,
            )
            with torch.no_grad():
                logits = model(torch.from_numpy(drawn.tokens)).logits[:, -1]
            answers = torch.from_numpy(drawn.targets[:, -1])
            accuracies[multiple].append(float((logits.argmax(-1) == answers).float().mean()))
    return accuracies
