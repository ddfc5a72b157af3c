"""A chunk of the memory in Triton: where its program works, what it loads and what it stores.

The kernels are those of triton_fast_weights.py. Arrays are contiguous and fp32; `rank` is padded to
`wide` in registers, and a chunk that the sequence does not fill is padded with zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from synaptune.synapse.triton_kinase import (
    FRESH,
    PENDING,
    POWERS,
    TABLES,
)


class Place(NamedTuple):
    """Where a program works: its row, chunk, first token and number of tokens."""

    row: tl.tensor
    index: tl.tensor
    first: tl.tensor
    count: tl.tensor


class Response(NamedTuple):
    """Coefficients of eligibility.py by token t of a chunk.

    Attributes:
        weights: alpha^t.
        weights_after: alpha^(t+1).
        pending: rho h(t-1); 0 at t = 0.
        pending_after: rho h(t).
        late_write: (1 - rho) h(k), k lag from t to the end of the chunk.
        late_fresh: (1 - rho) rho^k.
        write: (1 - rho) h(t-s), (token, token); 0 for s > t.
        write_before: (1 - rho) h(t-1-s); 0 for s >= t.
    """

    weights: tl.tensor
    weights_after: tl.tensor
    pending: tl.tensor
    pending_after: tl.tensor
    late_write: tl.tensor
    late_fresh: tl.tensor
    write: tl.tensor
    write_before: tl.tensor


class State(NamedTuple):
    """F and Z, or their gradients, (rank, rank)."""

    weights: tl.tensor
    trace: tl.tensor


@triton.jit
def dot(x, y):
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def find_place(tokens, chunk: tl.constexpr):
    chunks = (tokens + chunk - 1) // chunk
    index = tl.program_id(0) % chunks
    first = index * chunk
    return Place(
        (tl.program_id(0) // chunks).to(tl.int64), index, first, tl.minimum(tokens - first, chunk)
    )


@triton.jit
def load_response(table, place, params, chunk: tl.constexpr):
    table += place.row * TABLES * 2 * chunk
    powers, fresh, h = (
        table + POWERS * 2 * chunk,
        table + FRESH * 2 * chunk,
        table + PENDING * 2 * chunk,
    )
    t = tl.arange(0, chunk)
    live = t < place.count
    late = place.count - 1 - t
    lag = t[:, None] - t[None, :]
    rho = params.trace_decay
    new = 1.0 - rho
    return Response(
        tl.load(powers + t),
        tl.load(powers + t + 1),
        rho * tl.load(h + t - 1, mask=t > 0, other=0.0),
        rho * tl.load(h + t),
        new * tl.load(h + late, mask=live, other=0.0),
        new * tl.load(fresh + late, mask=live, other=0.0),
        new * tl.load(h + lag, mask=lag >= 0, other=0.0),
        new * tl.load(h + lag - 1, mask=lag >= 1, other=0.0),
    )


@triton.jit
def load_tokens(
    x, place, tokens, shift, rank: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr
):
    """Return the tokens of a chunk of x (row, token, rank), or those `shift` tokens before."""
    t, i = tl.arange(0, chunk), tl.arange(0, wide)
    token = place.first + t - shift
    mask = ((t < place.count) & (token >= 0))[:, None] & (i < rank)[None, :]
    at = (place.row * tokens + token)[:, None] * rank + i[None, :]
    return tl.load(x + at, mask=mask, other=0.0)


@triton.jit
def store_tokens(
    x, value, place, tokens, rank: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr
):
    t, i = tl.arange(0, chunk), tl.arange(0, wide)
    mask = (t < place.count)[:, None] & (i < rank)[None, :]
    at = (place.row * tokens + place.first + t)[:, None] * rank + i[None, :]
    tl.store(x + at, value, mask=mask)


@triton.jit
def _locate_state(
    place, tokens, rank: tl.constexpr, half: tl.constexpr, chunk: tl.constexpr, wide: tl.constexpr
):
    """Return offsets and mask of F in (row, chunk, rank, 2 half); Z is `half` further on."""
    chunks = (tokens + chunk - 1) // chunk
    i = tl.arange(0, wide)
    mask = (i < rank)[:, None] & (i < half)[None, :]
    at = ((place.row * chunks + place.index) * rank + i)[:, None] * 2 * half + i[None, :]
    return at, mask


@triton.jit
def load_state(
    x,
    place,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    chunk: tl.constexpr,
    wide: tl.constexpr,
):
    at, mask = _locate_state(place, tokens, rank, half, chunk, wide)
    return State(
        tl.load(x + at, mask=mask, other=0.0), tl.load(x + at + half, mask=mask, other=0.0)
    )


@triton.jit
def store_state(
    x,
    state,
    place,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    chunk: tl.constexpr,
    wide: tl.constexpr,
):
    at, mask = _locate_state(place, tokens, rank, half, chunk, wide)
    tl.store(x + at, state.weights, mask=mask)
    tl.store(x + at + half, state.trace, mask=mask)


@triton.jit
def load_rate(write, opening, place, tokens, params, chunk: tl.constexpr):
    """Return beta and its derivative by `write`, (token,)."""
    t = tl.arange(0, chunk)
    at = place.row * tokens + place.first + t
    live = t < place.count
    slope = params.write_scale * params.rate * tl.load(opening + at, mask=live, other=0.0)
    return slope * tl.load(write + at, mask=live, other=0.0), slope
