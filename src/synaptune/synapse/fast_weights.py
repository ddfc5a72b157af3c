"""Fast weights: a memory of the sequence that binds the past to the present.

    p[t] = a[t-1]                              the presynaptic spike comes first                (1)
    beta[t] = 100 post_fast_lr write[t] mean(gate)                                              (2)
    O[t] = beta[t] b[t] p[t]^T                                        hebbian                   (3)
    O[t] = beta[t] (b[t] - post_fast_decay F[t-1] p[t]) p[t]^T        delta                     (4)
    F[t] = post_fast_decay F[t-1] + Z[t]       with the trace Z of eligibility.py               (5)
    recalled[t] = F[t] a[t]                                                                     (6)

a pre-activity (unit vector, rank), b post-activity (rank), write learned factor in [0, 2], gate of
kinase.py, F fast weights (rank x rank). What the present token recalls is what followed its like.
The equations hold per token. `memory_step` is the reference and serves decoding. `memory_scan`
solves (4) in chunks: within a chunk the writes U = O / p satisfy the triangular system

    (I + diag(beta) alpha tril(P P^T * h, -1)) U = diag(beta) (B - alpha F[t-1] p of the state)  (7)

and only the state passes from one chunk to the next, so the cost is linear in the length. On a GPU
the states of all chunks are found together, in a logarithmic number of operations.
Source: (1) spike-timing-dependent plasticity, Bi and Poo, J Neurosci 18:10464 (1998); (3) fast
weights of Ba et al., arXiv 1610.06258; (4) the delta rule of Schlag et al., arXiv 2102.11174, with
decay as in Yang et al., arXiv 2412.06464; (7) Yang et al., arXiv 2406.06484.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synaptune.core.parameters import constant
from synaptune.synapse.eligibility import Response, compute_response, trace_step
from synaptune.synapse.kinase import (
    KinaseState,
    PostsynapticParams,
    gate,
    kinase_scan,
    kinase_step,
    mean_gate,
)
from synaptune.synapse.metaplasticity import BdnfParams, bdnf_step, final_bdnf

WRITE_SCALE = constant(
    "fast_weights.write_scale",
    100.0,
    meaning="share of the difference that a write with post_fast_lr = 1 and an open gate makes up",
    source="chosen: the range of post_fast_lr is then a write of 0.01 to 1",
)
CHUNK = 32  # tokens that memory_scan solves at once; it has no effect on the result


class Activity(NamedTuple):
    """Activity that the memory reads and writes.

    Attributes:
        pre: pre-activity a, unit vectors, (batch, token, rank).
        post: post-activity b, (batch, token, rank).
        write: learned factor of the write, (batch, token) [1].
    """

    pre: Tensor
    post: Tensor
    write: Tensor


class MemoryState(NamedTuple):
    """Memory of one sequence after a token.

    Attributes:
        trace: trace Z, (batch, rank, rank).
        weights: fast weights F, (batch, rank, rank).
        pre: pre-activity of the last token, (batch, rank).
        kinase: CaMKII and PP1 after the last complete tick, (batch, rank).
        calcium: sum of |b| over the current tick, (batch, rank).
        bdnf: BDNF w, (batch, rank).
    """

    trace: Tensor
    weights: Tensor
    pre: Tensor
    kinase: KinaseState
    calcium: Tensor
    bdnf: Tensor


class Consolidation(NamedTuple):
    """What the slow weights consolidate, after the last token of each sequence.

    Attributes:
        gated: gate F, (batch, rank, rank).
        bdnf: w, (batch, rank).
    """

    gated: Tensor
    bdnf: Tensor


def init_memory(batch: int, rank: int, like: Tensor) -> MemoryState:
    """Return the memory of a new sequence."""
    square, row = like.new_zeros(batch, rank, rank), like.new_zeros(batch, rank)
    return MemoryState(square, square, row, KinaseState(row, row), row, row)


def memory_step(
    state: MemoryState,
    activity: Activity,
    post_params: PostsynapticParams,
    bdnf_params: BdnfParams,
    *,
    delta: bool,
    tick: int,
    ends_tick: bool,
) -> MemoryState:
    """Advance the memory by one token.

    Args:
        state: memory before the token.
        activity: activity of the token, one token long.
        post_params: parameters of the memory and its gate.
        bdnf_params: parameters of BDNF.
        delta: use the delta rule (4).
        tick: tokens of a tick of the gate.
        ends_tick: whether the token is the last one of a tick.
    """
    pre, post, write = (value[:, 0] for value in activity)
    decay = post_params.post_fast_decay
    beta = _write_rate(write, mean_gate(gate(state.kinase), post_params), post_params)[:, None]
    change = post
    if delta:
        change = post - decay * recall(state.weights, state.pre)
    change = beta * change
    trace = trace_step(state.trace, change[..., None] * state.pre[:, None], post_params)
    weights = decay * state.weights + trace  # (5)
    bdnf = bdnf_step(state.bdnf, change.detach().abs(), bdnf_params)
    kinase, calcium = state.kinase, state.calcium + post.abs()
    if ends_tick:
        kinase = kinase_step(kinase, calcium / tick, post_params, tick)
        calcium = torch.zeros_like(calcium)
    return MemoryState(trace, weights, pre, kinase, calcium, bdnf)


def recall(weights: Tensor, pre: Tensor) -> Tensor:
    """Return F a (6), (batch, rank), of F (batch, rank, rank) and a (batch, rank)."""
    return (weights @ pre[..., None])[..., 0]


def memory_scan(
    activity: Activity,
    post_params: PostsynapticParams,
    bdnf_params: BdnfParams,
    *,
    delta: bool,
    tick: int,
) -> tuple[Tensor, Consolidation]:
    """Compute what each token of a sequence recalls; equals repeated `memory_step`.

    Args:
        activity: activity of the sequence.
        post_params: parameters of the memory and its gate.
        bdnf_params: parameters of BDNF.
        delta: use the delta rule (4).
        tick: tokens of a tick of the gate.

    Returns:
        F[t] a[t] of each token, (batch, token, rank), and what the slow weights consolidate.
    """
    pre, post, write = activity
    batch, length, rank = pre.shape
    gates = _open_gates(post, post_params, tick)
    opening = mean_gate(gates, post_params).repeat_interleave(tick, 1)[:, :length]
    beta = _write_rate(write, opening, post_params)[..., None]
    past = torch.cat([torch.zeros_like(pre[:, :1]), pre[:, :-1]], 1)  # (1)
    state = (pre.new_zeros(batch, rank, rank), pre.new_zeros(batch, rank, rank))
    results, end = [], length // CHUNK * CHUNK
    for first, last in ((0, end), (end, length)):  # the rest is one shorter chunk
        if first < last:
            count = max(1, (last - first) // CHUNK)
            chunks = [
                value[:, first:last].unflatten(1, (count, -1)) for value in (pre, past, post, beta)
            ]
            found, change, state = _scan_chunks(chunks, state, post_params, delta=delta)
            results.append((found.flatten(1, 2), change.flatten(1, 2)))
    recalled, changes = (torch.cat(parts, 1) for parts in zip(*results, strict=True))
    with torch.no_grad():
        bdnf = final_bdnf(changes.abs(), bdnf_params)
        gated = gates[:, -1, :, None] * state[0]
    return recalled, Consolidation(gated, bdnf)


def _write_rate(write: Tensor, opening: Tensor, params: PostsynapticParams) -> Tensor:
    """Return beta (2) from the learned factor and the mean opening of the gate."""
    return WRITE_SCALE * params.post_fast_lr * write * opening


def _open_gates(post: Tensor, params: PostsynapticParams, tick: int) -> Tensor:
    """Return the gate at the start of each tick and after the last one, (batch, tick + 1, rank)."""
    batch, length, rank = post.shape
    count = length // tick
    calcium = post[:, : count * tick].abs().unflatten(1, (count, tick)).mean(2)
    rest = post.new_zeros(batch, 1, rank)
    kinase = kinase_scan(calcium, params, tick)
    return gate(KinaseState(*(torch.cat([rest, level], 1) for level in kinase)))


def _scan_chunks(
    chunks: Sequence[Tensor],
    state: tuple[Tensor, Tensor],
    params: PostsynapticParams,
    *,
    delta: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Run chunks of equal length.

    Args:
        chunks: a, p, b and beta, each (batch, chunk, token, rank or 1).
        state: F and Z before the first chunk.
        params: parameters of the memory.
        delta: use the delta rule.

    Returns:
        What each token recalls and what it writes, and the state after the last chunk.
    """
    pre, past, post, beta = chunks
    count = pre.shape[2]
    response = compute_response(params, count, pre)
    index = torch.arange(count, device=pre.device)
    lag = index[:, None] - index[None, :]
    inside = response.write[lag.clamp(min=0)].tril()
    changes, erased = beta * post, None
    if delta:
        changes, erased = _solve_delta(past, changes, beta, response, params, lag)
    # What the chunk leaves in F and Z of the next one.
    late = count - 1 - index
    leaves = torch.cat([response.write[late, None] * past, response.fresh[late, None] * past], -1)
    if erased is None:
        erased = torch.zeros_like(leaves)
    kept = _make_retention(response, pre.shape[-1])
    pass_states = _pass_by_doubling if pre.is_cuda else _pass_in_turn
    start, end = pass_states(torch.cat(state, -1), changes, erased, leaves, kept)
    change = changes - erased @ start.transpose(-1, -2)
    reads = torch.cat([response.weights[1:, None] * pre, response.pending[1:, None] * pre], -1)
    recalled = (pre @ past.transpose(-1, -2) * inside) @ change + reads @ start.transpose(-1, -2)
    weights, trace = end.chunk(2, -1)
    return recalled, change, (weights, trace)


def _make_retention(response: Response, rank: int) -> Tensor:
    """Return R, (2 rank, 2 rank): a chunk without writes makes [F, Z] into [F, Z] R."""
    eye = torch.eye(rank, device=response.write.device, dtype=response.write.dtype)
    weights, pending, trace = (
        part[-1] * eye for part in (response.weights, response.pending, response.trace)
    )
    below = torch.cat([pending, trace], -1)
    return torch.cat([torch.cat([weights, torch.zeros_like(eye)], -1), below])


def _pass_in_turn(
    state: Tensor, changes: Tensor, erased: Tensor, leaves: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Return S = [F, Z] at the start of each chunk, (batch, chunk, rank, 2 rank), and at the end.

    S' = S R + (changes - erased S^T)^T leaves                                                  (8)

    Args:
        state: S before the first chunk, (batch, rank, 2 rank).
        changes: writes of a chunk that starts with empty weights, (batch, chunk, token, rank).
        erased: the part of the writes that S changes, (batch, chunk, token, 2 rank).
        leaves: what is left of a write at the end of the chunk, (batch, chunk, token, 2 rank).
        kept: R, (2 rank, 2 rank).
    """
    states = []
    for n in range(changes.shape[1]):
        states.append(state)
        change = changes[:, n] - erased[:, n] @ state.transpose(-1, -2)
        state = state @ kept + change.transpose(-1, -2) @ leaves[:, n]
    return torch.stack(states, 1), state


def _pass_by_doubling(
    state: Tensor, changes: Tensor, erased: Tensor, leaves: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the same with a number of operations that grows with the logarithm of the chunks.

    By (8) a chunk is an affine map S W + A with W = R - erased^T leaves and A = changes^T leaves.
    Each round composes the maps of twice as many chunks (Hillis and Steele 1986).
    """
    size = kept.shape[-1]
    maps = torch.cat([kept - erased.mT @ leaves, changes.mT @ leaves], -2)
    span = 1
    while span < maps.shape[1]:
        earlier, later = maps[:, :-span], maps[:, span:]
        moved = earlier @ later[..., :size, :]
        moved = torch.cat([moved[..., :size, :], moved[..., size:, :] + later[..., size:, :]], -2)
        maps = torch.cat([maps[:, :span], moved], 1)
        span *= 2
    after = state[:, None] @ maps[..., :size, :] + maps[..., size:, :]
    return torch.cat([state[:, None], after[:, :-1]], 1), after[:, -1]


def _solve_delta(
    past: Tensor,
    changes: Tensor,
    beta: Tensor,
    response: Response,
    params: PostsynapticParams,
    lag: Tensor,
) -> tuple[Tensor, Tensor]:
    """Solve (7) for the writes, and for their part that erases the state, (..., token, 2 rank)."""
    rank = past.shape[-1]
    keys = params.post_fast_decay * beta * past
    system = (keys @ past.transpose(-1, -2)) * response.write[(lag - 1).clamp(min=0)].tril(-1)
    sides = [changes, response.weights[:-1, None] * keys, response.pending[:-1, None] * keys]
    solved = torch.linalg.solve_triangular(
        system, torch.cat(sides, -1), upper=False, unitriangular=True
    )
    return solved[..., :rank], solved[..., rank:]
