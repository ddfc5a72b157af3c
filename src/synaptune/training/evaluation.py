"""Evaluation of a model on a split: one pass with one device synchronisation at its end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from synaptune.data.batches import Batch
from synaptune.model.gpt import GPT
from synaptune.training.device import to_device
from synaptune.training.metrics import compute_metrics, dead_fraction, gini, tally


def evaluate(
    model: GPT,
    batches: Iterable[Batch],
    *,
    precision: AbstractContextManager,
    bytes_per_token: float,
    prefix: str,
) -> dict[str, float]:
    """Compute the metrics of a model on the batches of a split.

    The model keeps its training or evaluation mode.

    Args:
        model: the model.
        batches: batches of the split.
        precision: autocast context of the forward passes.
        bytes_per_token: mean of the corpus [byte/token].
        prefix: start of the name of each metric, such as `val_`.

    Returns:
        The metrics by name, in the units of training/metrics.py.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = None
    with torch.no_grad(), precision:
        for batch in batches:
            on_device = to_device(batch, device)
            sums = tally(model(on_device.tokens).logits, on_device.targets, on_device.recall)
            total = sums if total is None else total.add(sums)
    model.train(was_training)
    if total is None:
        raise ValueError(
            f"no batches to evaluate for {prefix!r}: a split must have at least one window"
        )
    return {
        f"{prefix}{name}": value for name, value in compute_metrics(total, bytes_per_token).items()
    }


def compute_expert_metrics(model: GPT) -> dict[str, float]:
    """Return Gini and dead fraction of the experts' use; empty for a dense model."""
    utilisation = model.get_utilisation()
    return {} if utilisation is None else compute_use_metrics(utilisation)


def compute_use_metrics(utilisation: Tensor) -> dict[str, float]:
    """Return Gini and dead fraction of a utilisation (layer, expert)."""
    return {"expert_gini": gini(utilisation), "expert_dead_fraction": dead_fraction(utilisation)}
