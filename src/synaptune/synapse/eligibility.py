"""Eligibility: coincident activity in a tick leaves a trace that a gate can turn into a weight.

    O = mean over the tick of b a^T        ca = mean over the tick of |b|                   (1)
    Z' = post_trace_decay Z + O            per token, O held over the tick                  (2)

a pre-activity (rank), b post-activity (rank), O coincidence (rank x rank), ca postsynaptic calcium
(rank), Z trace (rank x rank).
Source: (1), (2) three-factor eligibility traces, Gerstner et al., Front Neural Circuits 12:53
(2018).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from synaptune.synapse.clock import geometric_sums, powers
from synaptune.synapse.kinase import PostsynapticParams


class Coincidence(NamedTuple):
    """Coincidence of pre- and postsynaptic activity in a tick.

    Attributes:
        outer: mean outer product O, (..., rank, rank).
        calcium: postsynaptic calcium ca, (..., rank).
    """

    outer: Tensor
    calcium: Tensor


def coincidence(pre: Tensor, post: Tensor) -> Coincidence:
    """Return O and ca (1) from a and b of the tokens of a tick, each (..., token, rank)."""
    return Coincidence(post.transpose(-1, -2) @ pre / pre.shape[-2], post.abs().mean(-2))


def trace_step(trace: Tensor, outer: Tensor, params: PostsynapticParams, tokens: int) -> Tensor:
    """Advance Z by one tick of `tokens` tokens (2)."""
    power, gain, _ = geometric_sums(params.post_trace_decay, tokens)
    return power * trace + gain * outer


def trace_scan(outer: Tensor, params: PostsynapticParams, tokens: int) -> Tensor:
    """Return Z after each tick, starting from an empty trace; equals repeated `trace_step`.

    `outer` and the result are (batch, tick, rank, rank).
    """
    power, gain, _ = geometric_sums(params.post_trace_decay, tokens)
    return gain * (powers(power, outer.shape[1]) @ outer.flatten(2)).view_as(outer)
