"""Scoring a model on a split: one pass, one synchronisation with the device at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from synaptune.core.errors import user_error
from synaptune.data.batches import Batch
from synaptune.model.gpt import GPT
from synaptune.training.config import TrainingConfig
from synaptune.training.metrics import compute_metrics, dead_fraction, gini, tally


def pick_device(wanted: str) -> torch.device:
    """The device of `training.device`; raises UserError when CUDA is asked for and not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise user_error(
            got="training.device=cuda",
            expected="a CUDA device that torch can use",
            do="training.device=auto, or install a CUDA build of torch",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def make_autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager:
    """The precision of forward passes: `auto` is bf16 on a GPU that has it and fp32 on a CPU, where bf16 is emulated and slow."""
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device of the model."""
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def evaluate(
    model: GPT,
    batches: Iterable[Batch],
    *,
    precision: AbstractContextManager,
    bytes_per_token: float,
    prefix: str,
) -> dict[str, float]:
    """Metrics of the model on batches of a split, each name led by `prefix`; units as in objective/metrics.py.

    The model is left in the mode it was in.
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
            f"no batches to evaluate for {prefix!r}: a split holds at least one window"
        )
    return {
        f"{prefix}{name}": value for name, value in compute_metrics(total, bytes_per_token).items()
    }


def compute_expert_metrics(model: GPT) -> dict[str, float]:
    """Gini and dead fraction of the experts' use; empty for a dense model."""
    utilisation = model.get_utilisation()
    return {} if utilisation is None else compute_use_metrics(utilisation)


def compute_use_metrics(utilisation: Tensor) -> dict[str, float]:
    """Gini and dead fraction of a use (layer, expert)."""
    return {"expert_gini": gini(utilisation), "expert_dead_fraction": dead_fraction(utilisation)}
