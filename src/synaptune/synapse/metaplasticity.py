"""BDNF: the change of the fast weights sets the strength of their consolidation.

    w' = bdnf_tau w + (1 - bdnf_tau) |F' - F|_row                                   (1)
    K' = (1 - post_slow_lr) K + post_slow_lr (1 + bdnf_scale w) gate F              (2)

w BDNF per row [1], F fast weights, K slow weights (rank x rank), gate of kinase.py per row.
Source: (1), (2) activity-dependent BDNF as a gain of late-phase plasticity, Park and Poo, Nat Rev
Neurosci 14:7 (2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from synaptune.core.parameters import parameter
from synaptune.synapse.clock import geometric_sums, powers
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


def bdnf_step(bdnf: Tensor, change: Tensor, params: BdnfParams, tokens: int) -> Tensor:
    """Advance w by one tick (1); the change F' - F spreads evenly over the tick's tokens."""
    power, _, _ = geometric_sums(params.bdnf_tau, tokens)
    return power * bdnf + (1.0 - power) * change.norm(dim=-1) / tokens


def final_bdnf(changes: Tensor, params: BdnfParams, tokens: int) -> Tensor:
    """Return w after the last tick, (batch, rank), starting from w = 0.

    `changes` holds F' - F of each tick, (batch, tick, rank, rank).
    """
    power, _, _ = geometric_sums(params.bdnf_tau, tokens)
    weights = powers(power, changes.shape[1])[-1]
    return (1.0 - power) / tokens * (weights[:, None] * changes.norm(dim=-1)).sum(1)


def consolidate(
    slow: Tensor, gated: Tensor, bdnf: Tensor, post: PostsynapticParams, params: BdnfParams
) -> Tensor:
    """Return K' (2) from K and the batch means of gate F and w."""
    return (1.0 - post.post_slow_lr) * slow + post.post_slow_lr * (
        1.0 + params.bdnf_scale * bdnf[:, None]
    ) * gated
