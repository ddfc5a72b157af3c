"""Fast weights: a gated trace becomes a weight that the next ticks read.

    F' = post_fast_decay F + post_fast_lr gate Z'           per token                       (1)
    output of a token in tick n: (F[n] + K) a                                               (2)
    delta variant: O of eligibility.py becomes mean over the tick of (b - F a) a^T          (3)

F, K (rank x rank), Z trace, a pre-activity (rank).
Source: (1) fast weights of Ba et al., arXiv 1610.06258, written through the three-factor gate of
kinase.py; (3) the delta rule of Schlag et al., arXiv 2102.11174: it does not write again what the
key already recalls.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synaptune.synapse.clock import geometric_sums, powers
from synaptune.synapse.eligibility import Coincidence, coincidence, trace_scan, trace_step
from synaptune.synapse.kinase import KinaseState, PostsynapticParams, gate, kinase_scan, kinase_step
from synaptune.synapse.metaplasticity import BdnfParams, bdnf_step, final_bdnf


class MemoryState(NamedTuple):
    """Memory of one sequence.

    Attributes:
        trace: trace Z, (batch, rank, rank).
        weights: fast weights F, (batch, rank, rank).
        kinase: CaMKII and PP1, (batch, rank).
        bdnf: BDNF w, (batch, rank).
    """

    trace: Tensor
    weights: Tensor
    kinase: KinaseState
    bdnf: Tensor


class Consolidation(NamedTuple):
    """Means over a batch that the slow weights consolidate.

    Attributes:
        gated: mean of gate F, (rank, rank).
        bdnf: mean of w, (rank,).
    """

    gated: Tensor
    bdnf: Tensor


def init_memory(batch: int, rank: int, like: Tensor) -> MemoryState:
    """Return the memory of a new sequence."""
    square, row = like.new_zeros(batch, rank, rank), like.new_zeros(batch, rank)
    return MemoryState(square, square, KinaseState(row, row), row)


def memory_step(
    state: MemoryState,
    pre: Tensor,
    post: Tensor,
    post_params: PostsynapticParams,
    bdnf_params: BdnfParams,
    *,
    delta: bool,
) -> MemoryState:
    """Advance the memory by one tick.

    Args:
        state: memory before the tick.
        pre: a of the tick's tokens, (batch, token, rank).
        post: b of the tick's tokens, (batch, token, rank).
        post_params: parameters of the memory and its gate.
        bdnf_params: parameters of BDNF.
        delta: use the delta rule (3).
    """
    tokens = pre.shape[1]
    outer, calcium = coincidence(pre, post)
    if delta:
        outer = coincidence(pre, post - pre @ state.weights.transpose(-1, -2)).outer
    trace = trace_step(state.trace, outer, post_params, tokens)
    kinase = kinase_step(state.kinase, calcium, post_params, tokens)
    power, gain, _ = geometric_sums(post_params.post_fast_decay, tokens)
    weights = (
        power * state.weights + gain * post_params.post_fast_lr * gate(kinase)[..., None] * trace
    )  # (1)
    bdnf = bdnf_step(state.bdnf, (weights - state.weights).detach(), bdnf_params, tokens)
    return MemoryState(trace, weights, kinase, bdnf)


def memory_scan(
    pre: Tensor,
    post: Tensor,
    post_params: PostsynapticParams,
    bdnf_params: BdnfParams,
    *,
    delta: bool,
) -> tuple[Tensor, Consolidation]:
    """Compute the fast weights of all ticks of a sequence.

    The Hebbian memory is linear in its writes, so all its ticks are solved at once. The delta rule
    reads before it writes, so its ticks are computed one after another.

    Args:
        pre: a, (batch, tick, token, rank).
        post: b, (batch, tick, token, rank).
        post_params: parameters of the memory and its gate.
        bdnf_params: parameters of BDNF.
        delta: use the delta rule (3).

    Returns:
        F at the start of each tick and after the last one, (batch, tick + 1, rank, rank), and the
        means that the slow weights consolidate.
    """
    if delta:
        return _delta_scan(pre, post, post_params, bdnf_params)
    tokens = pre.shape[2]
    ticks: Coincidence = coincidence(pre, post)
    trace = trace_scan(ticks.outer, post_params, tokens)
    gates = gate(kinase_scan(ticks.calcium, post_params, tokens))
    power, gain, _ = geometric_sums(post_params.post_fast_decay, tokens)
    writes = gates[..., None] * trace
    after = (
        gain
        * post_params.post_fast_lr
        * (powers(power, pre.shape[1]) @ writes.flatten(2)).view_as(writes)
    )
    weights = torch.cat([torch.zeros_like(after[:, :1]), after], 1)
    with torch.no_grad():
        bdnf = final_bdnf(weights.diff(dim=1), bdnf_params, tokens)
        gated = gates[:, -1, :, None] * after[:, -1]
    return weights, Consolidation(gated.mean(0), bdnf.mean(0))


def _delta_scan(
    pre: Tensor, post: Tensor, post_params: PostsynapticParams, bdnf_params: BdnfParams
) -> tuple[Tensor, Consolidation]:
    state = init_memory(pre.shape[0], pre.shape[-1], pre)
    weights = [state.weights]
    for n in range(pre.shape[1]):
        state = memory_step(state, pre[:, n], post[:, n], post_params, bdnf_params, delta=True)
        weights.append(state.weights)
    gated = (gate(state.kinase)[..., None] * state.weights).detach()
    return torch.stack(weights, 1), Consolidation(gated.mean(0), state.bdnf.mean(0))
