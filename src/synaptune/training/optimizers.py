"""The optimizer of a run: AdamW, BiostatisV6 or SGD with momentum; matrices alone decay.

Source: Loshchilov and Hutter 2019, algorithm 2; moment rates 0.9 and 0.95: Brown et al.
2020 (GPT-3), appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from synaptune.core.errors import user_error
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
    """Load the state of a checkpoint for each weight; the settings stay those of this run.

    Raises:
        UserError: it is the state of another optimizer, or of other weights.
    """
    needed, settings = _list_moments(optimizer), optimizer.state_dict()["param_groups"]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    by_index = dict(enumerate(weights))
    for index, moments in saved["state"].items():
        own = {name: getattr(value, "shape", None) for name, value in moments.items()}
        weight = by_index.get(index)
        if weight is None or any(
            own.get(name) != (weight.shape if shape == (1,) else shape)
            for name, shape in needed.items()
        ):
            raise user_error(
                got=f"a checkpoint whose optimizer keeps, of a weight, {', '.join(moments)}",
                expected=f"{', '.join(needed)}, the state of {type(optimizer).__name__}",
                do="give the training=... settings of the run of the checkpoint",
            )
    optimizer.load_state_dict(saved | {"param_groups": settings})


def _list_moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Size]:
    """Return the shapes of what an optimizer keeps of a weight of shape (1,), by name."""
    group = optimizer.param_groups[0]
    weight = torch.nn.Parameter(torch.zeros(1, device=group["params"][0].device))
    weight.grad = torch.zeros_like(weight)
    kind: Any = type(optimizer)
    probe = kind([{**group, "params": [weight]}])
    probe.step()
    return {name: value.shape for name, value in probe.state[weight].items()}
