"""AdamW with decoupled decay on matrices only.

Source: Loshchilov and Hutter 2019, algorithm 2; moment rates 0.9 and 0.95: Brown et al.
2020 (GPT-3), appendix B.
"""

from __future__ import annotations

import torch

from synaptune.model.gpt import GPT
from synaptune.training.config import TrainingConfig

MOMENT_RATES = (0.9, 0.95)


def make_adamw(model: GPT, config: TrainingConfig) -> torch.optim.AdamW:
    """Return the optimizer of a run; the model defines which weights decay."""
    on_gpu = next(model.parameters()).is_cuda
    groups = model.make_decay_groups(config.weight_decay)
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=MOMENT_RATES,
        fused=True if on_gpu else None,
        foreach=None if on_gpu else True,
    )
