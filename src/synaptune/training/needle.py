"""Accuracy of a trained model on facts in real text, by the length of the row (data/needle.py)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.data.needle import draw_needle_rows
from synaptune.model.gpt import GPT

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # places of the fact, see `draw_needle_rows`
ROWS = 64  # of each length and depth
_SEED = 20_261  # one set of rows for every model


def compute_needle_metrics(model: GPT, corpus: Corpus, config: DataConfig) -> dict[str, float]:
    """Return the accuracy on facts in the validation text: `val_needle_accuracy`, and by length.

    The accuracy at n contexts is `val_needle_accuracy_nx`; both are means over DEPTHS.
    """
    training = model.training
    by_length = measure_needle(
        model.eval(),
        corpus,
        config,
        split="val",
        multiples=range(1, config.needle_lengths + 1),
        depths=DEPTHS,
        rows=ROWS,
    )
    model.train(training)
    means = {f"{count}x": statistics.fmean(values) for count, values in by_length.items()}
    name = "val_needle_accuracy"
    return {name: statistics.fmean(means.values())} | {
        f"{name}_{length}": mean for length, mean in means.items()
    }


def measure_needle(
    model: GPT,
    corpus: Corpus,
    config: DataConfig,
    *,
    split: Literal["val", "test"],
    multiples: Sequence[int],
    depths: Sequence[float],
    rows: int,
) -> dict[int, list[float]]:
    """Return the accuracy at each depth, by the length as a multiple of the context.

    The model has been trained on rows of its context; rotary angles continue beyond it.

    Args:
        model: a model that was trained with recall rows, in evaluation mode.
        corpus: its text.
        config: settings of its data.
        split: of the text.
        multiples: lengths of the rows, as multiples of the context.
        depths: places of the fact.
        rows: rows of each length and depth.
    """
    context, device = model.config.context, next(model.parameters()).device
    model.extend_positions(max(multiples) * context)
    random = np.random.default_rng(_SEED)
    accuracies: dict[int, list[float]] = {}
    for multiple in multiples:
        accuracies[multiple] = []
        for depth in depths:
            drawn = draw_needle_rows(
                corpus.val if split == "val" else corpus.test,
                config,
                first=corpus.text_vocab,
                rows=rows,
                length=multiple * context,
                depth=depth,
                random=random,
            )
            with torch.no_grad():
                logits = model(torch.from_numpy(drawn.tokens).to(device)).logits[:, -1].cpu()
            answers = torch.from_numpy(drawn.targets[:, -1])
            accuracies[multiple].append(float((logits.argmax(-1) == answers).float().mean()))
    return accuracies
