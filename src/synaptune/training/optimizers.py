"""The optimizer of a run: AdamW, BiostatisV6 or SGD with momentum; matrices alone decay.

Source: Loshchilov and Hutter 2019, algorithm 2; moment rates 0.9 and 0.95: Brown et al.
2020 (GPT-3), appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from synaptune.training.config import TrainingConfig

MOMENT_RATES = (0.9, 0.95)


class DecayingModel(Protocol):
    """A model that defines which weights decay."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def make_decay_groups(self, weight_decay: float) -> list[dict[str, Any]]: ...


def make_optimizer(model: DecayingModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a run; the model defines which weights decay."""
    on_gpu = next(iter(model.parameters())).is_cuda
    groups = model.make_decay_groups(config.weight_decay)
    if config.optimizer == "biostatis":
        from synaptune.training.biostatis import BiostatisV6

        constants = dict(vars(config.biostatis))
        betas = (MOMENT_RATES[0], constants.pop("beta2"))
        return BiostatisV6(groups, lr=config.learning_rate, betas=betas, **constants)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENT_RATES[0])
    if on_gpu:  # a CUDA graph reads the learning rate from the device
        rate = torch.tensor(config.learning_rate, device=groups[0]["params"][0].device)
        return torch.optim.AdamW(groups, lr=rate, betas=MOMENT_RATES, fused=True, capturable=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=MOMENT_RATES, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all weights."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of a checkpoint for each weight; the settings stay those of this run."""
    optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
