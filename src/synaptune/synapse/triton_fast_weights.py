"""The chunks of the memory in Triton: the equations of fast_weights.py and their adjoint.

With F and Z at the start of a chunk, beta of its tokens, and the responses of eligibility.py,

    U = M beta (B - alpha (alpha^t P F^T + rho h(t-1) P Z^T)),    M = (I + T)^-1                (1)
    T[t, s] = alpha beta[t] (1 - rho) h(t-1-s) (p[t] . p[s])                      s < t
    recalled = G U + alpha^(t+1) A F^T + rho h(t) A Z^T                                         (2)
    G[t, s] = (1 - rho) h(t-s) (a[t] . p[s])                                      s <= t
    [F', Z'] = [F, Z] W + N                                                                     (3)

t token of the chunk, from 0; A, P, B, U (token x rank) pre-activity, past, post-activity and
writes; M, T, G (token x token). W and N do not depend on the state, and (3) is (8) there. The
inverse M is found from the inverses of ever larger blocks of the diagonal, which is as accurate as
a substitution. Every kernel has one program per row and chunk. The equations of the adjoint are
those of memory.c in matrices: the gradient of [F, Z] passes through W^T.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synaptune.synapse.triton_chunk import (
    State,
    dot,
    find_place,
    load_rate,
    load_response,
    load_state,
    load_tokens,
    store_state,
    store_tokens,
)
from synaptune.synapse.triton_kinase import (
    FRESH,
    GATE,
    LEVELS,
    PARAMETERS,
    PENDING,
    POWERS,
    TABLES,
    load_params,
)

DIGITS: tl.constexpr = tl.constexpr(24)  # binary digits of the number of tokens


@triton.jit
def _open(
    levels,
    place,
    tokens,
    params,
    rank: tl.constexpr,
    tick: tl.constexpr,
    chunk: tl.constexpr,
    wide: tl.constexpr,
):
    """Return the mean gate over the coordinates in use, (token,)."""
    size = (tokens // tick + 1) * rank
    t, i = tl.arange(0, chunk), tl.arange(0, wide)
    used = (i < rank) & (i < params.rank)
    mask = (t < place.count)[:, None] & used[None, :]
    at = ((place.first + t) // tick)[:, None] * rank + i[None, :]
    gates = tl.load(levels + place.row * LEVELS * size + GATE * size + at, mask=mask, other=0.0)
    return tl.sum(gates, 1) / tl.sum(used.to(tl.float32))


@triton.jit
def _invert(system, chunk: tl.constexpr, digits: tl.constexpr):
    """Return (I + T)^-1 of T, strictly lower triangular, (chunk, chunk)."""
    t = tl.arange(0, chunk)
    apart = t[:, None] ^ t[None, :]
    inverse = tl.where(apart == 0, 1.0, 0.0) - tl.where(apart == 1, system, 0.0)
    for digit in tl.static_range(1, digits):
        # Join two blocks of 2^digit tokens.
        below = tl.where((apart >> digit) == 1, system, 0.0)
        inverse -= dot(inverse, dot(below, inverse))
    return inverse


@triton.jit(do_not_specialize=["per_set", "tokens"])
def map_kernel(
    pre,
    post,
    write,
    packed,
    per_set,
    levels,
    table,
    opening,
    inverse,
    maps,
    adds,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    tick: tl.constexpr,
    delta: tl.constexpr,
    chunk: tl.constexpr,
    digits: tl.constexpr,
    wide: tl.constexpr,
):
    """Write `opening`, M (`inverse`), W (`maps`) and N (`adds`) of (1) and (3)."""
    place = find_place(tokens, chunk)
    params = load_params(packed + place.row // per_set * PARAMETERS)
    response = load_response(table, place, params, chunk)
    t, i = tl.arange(0, chunk), tl.arange(0, wide)
    chunks = (tokens + chunk - 1) // chunk
    past = load_tokens(pre, place, tokens, 1, rank, chunk, wide)
    mean = _open(levels, place, tokens, params, rank, tick, chunk, wide)
    at = place.row * tokens + place.first + t
    tl.store(opening + at, mean, mask=t < place.count)
    factor = tl.load(write + at, mask=t < place.count, other=0.0)
    beta = params.write_scale * params.rate * factor * mean
    change = beta[:, None] * load_tokens(post, place, tokens, 0, rank, chunk, wide)
    into_weights = response.late_write[:, None] * past
    into_trace = response.late_fresh[:, None] * past
    # A chunk without writes.
    table += place.row * TABLES * 2 * chunk + place.count
    eye = i[:, None] == i[None, :]
    from_weights = tl.where(eye, tl.load(table + POWERS * 2 * chunk), 0.0)
    pending = params.trace_decay * tl.load(table + PENDING * 2 * chunk - 1)
    from_trace = tl.where(eye, pending, 0.0)
    trace = tl.where(eye, tl.load(table + FRESH * 2 * chunk), 0.0)
    cross = tl.zeros([wide, wide], tl.float32)
    if delta:
        keys = (params.decay * beta)[:, None] * past
        system = response.write_before * dot(keys, tl.trans(past))
        solve = _invert(system, chunk, digits)
        square = t[:, None] * chunk + t[None, :]
        tl.store(inverse + (place.row * chunks + place.index) * chunk * chunk + square, solve)
        change = dot(solve, change)
        erased = tl.trans(dot(solve, response.weights[:, None] * keys))
        from_weights -= dot(erased, into_weights)
        cross -= dot(erased, into_trace)
        erased = tl.trans(dot(solve, response.pending[:, None] * keys))
        from_trace -= dot(erased, into_weights)
        trace -= dot(erased, into_trace)
    mask = (i < half)[:, None] & (i < half)[None, :]
    maps += (place.row * chunks + place.index) * 4 * half * half
    maps += i[:, None] * 2 * half + i[None, :]
    tl.store(maps, from_weights, mask=mask)
    tl.store(maps + half, cross, mask=mask)
    tl.store(maps + 2 * half * half, from_trace, mask=mask)
    tl.store(maps + 2 * half * half + half, trace, mask=mask)
    change = tl.trans(change)
    added = State(dot(change, into_weights), dot(change, into_trace))
    store_state(adds, added, place, tokens, rank, half, chunk, wide)


@triton.jit(do_not_specialize=["tokens"])
def pass_kernel(
    maps,
    adds,
    states,
    levels,
    gated,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    tick: tl.constexpr,
    reverse: tl.constexpr,
    chunk: tl.constexpr,
    stages: tl.constexpr,
):
    """Write [F, Z] at the start of each chunk (3) and gate F at the end; grid: rows times rank.

    With `reverse`, write its gradient at the end of each chunk.
    """
    row = (tl.program_id(0) // rank).to(tl.int64)
    i = tl.program_id(0) % rank
    j = tl.arange(0, 2 * half)
    chunks = (tokens + chunk - 1) // chunk
    maps += row * chunks * 4 * half * half
    begin = (row * chunks * rank + i) * 2 * half
    state = tl.zeros([2 * half], tl.float32)
    for step in tl.range(0, chunks, num_stages=stages):
        n = chunks - 1 - step if reverse else step
        at = begin + n * rank * 2 * half + j
        tl.store(states + at, state)
        passes = tl.load(maps + n * 4 * half * half + j[:, None] * 2 * half + j[None, :])
        added = tl.load(adds + at)
        if reverse:
            state = tl.sum(passes * state[None, :], 1) + added
        else:
            state = tl.sum(passes * state[:, None], 0) + added
    if not reverse:
        size = (tokens // tick + 1) * rank
        last = levels + row * LEVELS * size + GATE * size + tokens // tick * rank
        tl.store(gated + (row * rank + i) * rank + j, tl.load(last + i) * state, mask=j < rank)


@triton.jit
def _find_base(post, past, start, response, params):
    """Return what a write would be with beta = 1 and without the chunk's other writes."""
    found = response.weights[:, None] * dot(past, tl.trans(start.weights))
    found += response.pending[:, None] * dot(past, tl.trans(start.trace))
    return post - params.decay * found


@triton.jit
def _power(base, exponent):
    """base^exponent by doubling; the fast logarithm of a GPU is inexact near 1."""
    result = exponent * 0.0 + 1.0
    for bit in tl.static_range(DIGITS):
        result = tl.where(((exponent >> bit) & 1) != 0, result * base, result)
        base = base * base
    return result


@triton.jit(do_not_specialize=["per_set", "tokens"])
def recall_kernel(
    pre,
    post,
    write,
    packed,
    per_set,
    table,
    opening,
    inverse,
    starts,
    recalled,
    sizes,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    delta: tl.constexpr,
    chunk: tl.constexpr,
    wide: tl.constexpr,
):
    """Write the recalled (2) and the part of BDNF that a chunk adds, (row, chunk, rank)."""
    place = find_place(tokens, chunk)
    params = load_params(packed + place.row // per_set * PARAMETERS)
    response = load_response(table, place, params, chunk)
    t, i = tl.arange(0, chunk), tl.arange(0, wide)
    chunks = (tokens + chunk - 1) // chunk
    here = load_tokens(pre, place, tokens, 0, rank, chunk, wide)
    past = load_tokens(pre, place, tokens, 1, rank, chunk, wide)
    change = load_tokens(post, place, tokens, 0, rank, chunk, wide)
    beta, _ = load_rate(write, opening, place, tokens, params, chunk)
    start = load_state(starts, place, tokens, rank, half, chunk, wide)
    if delta:
        change = _find_base(change, past, start, response, params)
    change = beta[:, None] * change
    if delta:
        square = t[:, None] * chunk + t[None, :]
        solve = tl.load(inverse + (place.row * chunks + place.index) * chunk * chunk + square)
        change = dot(solve, change)
    out = dot(response.write * dot(here, tl.trans(past)), change)
    out += response.weights_after[:, None] * dot(here, tl.trans(start.weights))
    out += response.pending_after[:, None] * dot(here, tl.trans(start.trace))
    store_tokens(recalled, out, place, tokens, rank, chunk, wide)
    late = tl.maximum(tokens - 1 - place.first - t, 0)
    share = (1.0 - params.bdnf_tau) * _power(params.bdnf_tau, late)
    size = tl.sum(share[:, None] * tl.abs(change), 0)
    tl.store(sizes + (place.row * chunks + place.index) * rank + i, size, mask=i < rank)


@triton.jit(do_not_specialize=["per_set", "tokens"])
def reverse_map_kernel(
    pre,
    write,
    packed,
    per_set,
    table,
    opening,
    inverse,
    dout,
    dadds,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    delta: tl.constexpr,
    chunk: tl.constexpr,
    wide: tl.constexpr,
):
    """Write the part of the gradient of [F, Z] at the start of a chunk that its outputs give."""
    place = find_place(tokens, chunk)
    params = load_params(packed + place.row // per_set * PARAMETERS)
    response = load_response(table, place, params, chunk)
    t = tl.arange(0, chunk)
    chunks = (tokens + chunk - 1) // chunk
    here = load_tokens(pre, place, tokens, 0, rank, chunk, wide)
    d = tl.trans(load_tokens(dout, place, tokens, 0, rank, chunk, wide))
    weights = dot(d, response.weights_after[:, None] * here)
    trace = dot(d, response.pending_after[:, None] * here)
    if delta:
        past = load_tokens(pre, place, tokens, 1, rank, chunk, wide)
        beta, _ = load_rate(write, opening, place, tokens, params, chunk)
        square = t[:, None] * chunk + t[None, :]
        solve = tl.load(inverse + (place.row * chunks + place.index) * chunk * chunk + square)
        dchange = dot(dot(d, response.write * dot(here, tl.trans(past))), solve)
        keys = (params.decay * beta)[:, None] * past
        weights -= dot(dchange, response.weights[:, None] * keys)
        trace -= dot(dchange, response.pending[:, None] * keys)
    store_state(dadds, State(weights, trace), place, tokens, rank, half, chunk, wide)


@triton.jit(do_not_specialize=["per_set", "tokens"])
def gradient_kernel(
    pre,
    post,
    write,
    packed,
    per_set,
    table,
    opening,
    inverse,
    starts,
    dends,
    dout,
    dpre,
    dpast,
    dpost,
    dwrite,
    dbeta,
    tokens,
    rank: tl.constexpr,
    half: tl.constexpr,
    delta: tl.constexpr,
    chunk: tl.constexpr,
    wide: tl.constexpr,
):
    """Write the gradients of A, P, B, write and beta, without what the gates receive."""
    place = find_place(tokens, chunk)
    params = load_params(packed + place.row // per_set * PARAMETERS)
    response = load_response(table, place, params, chunk)
    t = tl.arange(0, chunk)
    chunks = (tokens + chunk - 1) // chunk
    here = load_tokens(pre, place, tokens, 0, rank, chunk, wide)
    past = load_tokens(pre, place, tokens, 1, rank, chunk, wide)
    d = load_tokens(dout, place, tokens, 0, rank, chunk, wide)
    beta, slope = load_rate(write, opening, place, tokens, params, chunk)
    start = load_state(starts, place, tokens, rank, half, chunk, wide)
    end = load_state(dends, place, tokens, rank, half, chunk, wide)
    base = load_tokens(post, place, tokens, 0, rank, chunk, wide)
    solve = tl.zeros([chunk, chunk], tl.float32)
    if delta:
        base = _find_base(base, past, start, response, params)
        square = t[:, None] * chunk + t[None, :]
        solve = tl.load(inverse + (place.row * chunks + place.index) * chunk * chunk + square)
    change = beta[:, None] * base
    if delta:
        change = dot(solve, change)
    # Through the outputs (2) and the state at the end (3) to the writes.
    dchange = dot(tl.trans(response.write * dot(here, tl.trans(past))), d)
    dchange += response.late_write[:, None] * dot(past, tl.trans(end.weights))
    dchange += response.late_fresh[:, None] * dot(past, tl.trans(end.trace))
    by_overlap = response.write * dot(d, tl.trans(change))
    dhere = dot(by_overlap, past)
    dhere += response.weights_after[:, None] * dot(d, start.weights)
    dhere += response.pending_after[:, None] * dot(d, start.trace)
    store_tokens(dpre, dhere, place, tokens, rank, chunk, wide)
    dkeys = dot(tl.trans(by_overlap), here)
    dkeys += response.late_write[:, None] * dot(change, end.weights)
    dkeys += response.late_fresh[:, None] * dot(change, end.trace)
    if delta:
        # Through the system (1).
        dchange = dot(tl.trans(solve), dchange)
        coupling = params.decay * response.write_before
        base -= dot(coupling * dot(past, tl.trans(past)), change)
        rate = (params.decay * beta)[:, None]
        dcoupling = rate * response.write_before * dot(dchange, tl.trans(change))
        dkeys -= dot(dcoupling + tl.trans(dcoupling), past)
        dkeys -= rate * response.weights[:, None] * dot(dchange, start.weights)
        dkeys -= rate * response.pending[:, None] * dot(dchange, start.trace)
    store_tokens(dpast, dkeys, place, tokens, rank, chunk, wide)
    store_tokens(dpost, beta[:, None] * dchange, place, tokens, rank, chunk, wide)
    by_rate = tl.sum(dchange * base, 1)
    at = place.row * tokens + place.first + t
    tl.store(dbeta + at, by_rate, mask=t < place.count)
    tl.store(dwrite + at, slope * by_rate, mask=t < place.count)
