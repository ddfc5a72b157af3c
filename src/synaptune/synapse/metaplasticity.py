"""BDNF: the size of the writes sets the strength of their consolidation.

    w' = bdnf_tau w + (1 - bdnf_tau) |write|                    per token and row   (1)
    K' = (1 - post_slow_lr) K + post_slow_lr (1 + bdnf_scale w) gate F              (2)

w BDNF per row [1], write change of a row of the fast weights by a token (the key is a unit vector,
so its norm is that of the row's change), F fast weights, K slow weights (rank x rank), gate of
kinase.py per row.
Source: (1), (2) activity-dependent BDNF as a gain of late-phase plasticity, Park and Poo, Nat Rev
Neurosci 14:7 (2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from synaptune.core.parameters import parameter
from synaptune.synapse.kinase import PostsynapticParams

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BdnfParams:
    """Decay and gain of BDNF."""

    bdnf_tau: float = parameter(
        0.985,
        low=0.9,
        high=0.999,
        unit="1/token",
        meaning="BDNF retained per token",
        source="chosen: as slow as PP1",
    )
    bdnf_scale: float = parameter(
        1.0,
        low=0.0,
        high=4.0,
        meaning="gain of BDNF on consolidation",
        source="chosen: doubles at w = 1",
    )


def bdnf_step(bdnf: Tensor, size: Tensor, params: BdnfParams) -> Tensor:
    """Advance w by one token (1) with the size of its write, both (batch, rank)."""
    return params.bdnf_tau * bdnf + (1.0 - params.bdnf_tau) * size


def final_bdnf(sizes: Tensor, params: BdnfParams) -> Tensor:
    """Return w after the last token, (batch, rank), starting from w = 0.

    `sizes` holds the size of each write, (batch, token, rank).
    """
    import torch

    late = torch.arange(sizes.shape[1] - 1, -1, -1, device=sizes.device)
    weights = (1.0 - params.bdnf_tau) * params.bdnf_tau**late
    return (weights[:, None] * sizes).sum(1)


def consolidate(
    slow: Tensor, gated: Tensor, bdnf: Tensor, post: PostsynapticParams, params: BdnfParams
) -> Tensor:
    """Return K' (2) from K and the batch means of gate F, (..., rank, rank), and w, (..., rank)."""
    return (1.0 - post.post_slow_lr) * slow + post.post_slow_lr * (
        1.0 + params.bdnf_scale * bdnf[..., None]
    ) * gated
