"""Evaluation of a model on a split: one pass with one device synchronisation at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synaptune.core.errors import user_error
from synaptune.data.batches import Batch
from synaptune.model.gpt import GPT
from synaptune.training.config import TrainingConfig
from synaptune.training.metrics import compute_metrics, dead_fraction, gini, tally


def pick_device(choice: str) -> torch.device:
    """Return the device for `training.device`; raise UserError when CUDA is not available."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise user_error(
            got="training.device=cuda",
            expected="a CUDA device that torch can use",
            do="training.device=auto, or install a CUDA build of torch",
        )
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def make_autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager:
    """Return the autocast context of forward passes.

    The precision `auto` is bf16 on a GPU that supports it, else fp32: a CPU emulates bf16 slowly.
    """
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Let the CPU treat denormal numbers as 0 in this thread, and in threads that start meanwhile.

    The weights of far keys under a strong distance are denormal (below 1.2e-38), and arithmetic
    with them is so slow that a step takes up to 1.5 times as long (docs/results.md).
    """
    for name in ("float32", "float64"):
        np.finfo(np.dtype(name))  # computed once; it would warn that denormals are missing
    was_flushing = bool(torch.tensor(1e-40) == 0.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a batch, a NamedTuple of tensors, to a device."""
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


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
