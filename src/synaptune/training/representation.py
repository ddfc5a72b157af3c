"""How many directions the last hidden layer uses.

    top five        sum of the five largest s_i / sum of all                           [0..1]  (1)
    effective rank  exp(-sum_i p_i ln p_i), p_i = s_i / sum s                          [1]     (2)
    participation   (sum_i s_i^2)^2 / sum_i s_i^4                                      [1]     (3)

s_i are the singular values of the centred features (sample, feature) that the last linear layer
reads.
Source: (2) Roy and Vetterli 2007, eq. 4; (3) the participation ratio of the covariance's
eigenvalues s_i^2, Gao et al. 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TOP = 5


def measure_representation(features: Tensor) -> dict[str, float]:
    """Return eqs. (1) to (3) of features, (sample, feature)."""
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    total = values.sum().clamp_min(1e-30)
    share = values / total
    squares = values.square()
    participation = squares.sum().square() / squares.square().sum().clamp_min(1e-60)
    return {
        "representation_top5_share": float(values[:_TOP].sum() / total),
        "representation_effective_rank": float(torch.exp(-torch.xlogy(share, share).sum())),
        "representation_participation": float(participation),
    }


@torch.no_grad()
def measure_last_layer(model: nn.Module, last: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Measure what the last linear layer of a model reads for a batch of inputs."""
    captured: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0]))
    was_training = model.training
    try:
        model.eval()
        model(inputs)
    finally:
        hook.remove()
        model.train(was_training)
    return measure_representation(captured[0].flatten(0, -2).float())
