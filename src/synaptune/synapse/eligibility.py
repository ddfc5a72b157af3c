"""Eligibility: what fired together in a tick leaves a trace that a gate may later turn into a weight.

    O = mean over the tick of b a^T        ca = mean over the tick of |b|                   (1)
    Z' = post_trace_decay Z + O            per token, O held over the tick                  (2)

a pre-activity, b post-activity (rank), O coincidence, ca postsynaptic calcium (rank), Z trace (rank x rank).
Source: (1), (2) three-factor eligibility traces, Gerstner et al., Front Neural Circuits 12:53 (2018).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from synaptune.synapse.clock import geometric_sums, powers
from synaptune.synapse.kinase import PostsynapticParams


class Coincidence(NamedTuple):
    """outer product O (..., rank, rank) and postsynaptic calcium (..., rank) of a tick."""

    outer: Tensor
    calcium: Tensor


def coincidence(pre: Tensor, post: Tensor) -> Coincidence:
    """(a, b) of the tokens of a tick, each (..., token, rank) -> O and ca (1)."""
    return Coincidence(post.transpose(-1, -2) @ pre / pre.shape[-2], post.abs().mean(-2))


def trace_step(trace: Tensor, outer: Tensor, params: PostsynapticParams, tokens: int) -> Tensor:
    """(Z, O, params, tokens) -> Z' (2)."""
    power, gain, _ = geometric_sums(params.post_trace_decay, tokens)
    return power * trace + gain * outer


def trace_scan(outer: Tensor, params: PostsynapticParams, tokens: int) -> Tensor:
    """Z after each tick, from an empty trace: (batch, tick, rank, rank) -> same; equals `trace_step` applied in turn."""
    power, gain, _ = geometric_sums(params.post_trace_decay, tokens)
    return gain * (powers(power, outer.shape[1]) @ outer.flatten(2)).view_as(outer)
