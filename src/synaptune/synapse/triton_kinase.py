"""The gate of the memory in Triton: the equations of kinase.py over a sequence, and their adjoint.

One program advances one coordinate of one row over all ticks, a block of ticks at a time. Within a
block the two linear recurrences are associative scans. All values are fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from synaptune.synapse.triton_rates import compute_sums


class Params(NamedTuple):
    """Parameters and constants, in the order of `_PACKED` and `_CONSTANTS` in memory_kernel.py."""

    rank: tl.tensor
    decay: tl.tensor
    rate: tl.tensor
    trace_decay: tl.tensor
    camkii_up: tl.tensor
    camkii_down: tl.tensor
    pp1_tau: tl.tensor
    camkii_thr: tl.tensor
    pp1_thr: tl.tensor
    bdnf_tau: tl.tensor
    write_scale: tl.tensor
    switch_slope: tl.tensor
    gate_slope: tl.tensor


PARAMETERS: tl.constexpr = tl.constexpr(len(Params._fields))
# Arrays of `levels`, (row, array, tick + 1, rank). The calcium of a tick stands one further on, at
# the level that it leads to.
CAMKII: tl.constexpr = tl.constexpr(0)
GATE: tl.constexpr = tl.constexpr(1)
CALCIUM: tl.constexpr = tl.constexpr(2)
LEVELS: tl.constexpr = tl.constexpr(3)
# Arrays of `table`, (row, array, lag): alpha^k, rho^k and h(k) of eligibility.py.
POWERS: tl.constexpr = tl.constexpr(0)
FRESH: tl.constexpr = tl.constexpr(1)
PENDING: tl.constexpr = tl.constexpr(2)
TABLES: tl.constexpr = tl.constexpr(3)


@triton.jit
def load_params(packed):
    # fmt: off
    return Params(
        tl.load(packed), tl.load(packed + 1), tl.load(packed + 2), tl.load(packed + 3),
        tl.load(packed + 4), tl.load(packed + 5), tl.load(packed + 6), tl.load(packed + 7),
        tl.load(packed + 8), tl.load(packed + 9), tl.load(packed + 10), tl.load(packed + 11),
        tl.load(packed + 12),
    )
    # fmt: on


@triton.jit
def _compose(retention, drive, later_retention, later_drive):
    """Compose two steps of x' = retention x + drive."""
    return retention * later_retention, drive * later_retention + later_drive


@triton.jit
def _make_table(table, params, chunk: tl.constexpr):
    """Write alpha^k, rho^k and h(k) for lags k of 0 to chunk."""
    lag = tl.arange(0, 2 * chunk)
    powers = tl.full([2 * chunk], 1.0, tl.float32)
    fresh, pending = powers, powers
    power = params.trace_decay
    for k in range(1, chunk + 1):
        reached = lag >= k
        powers = tl.where(reached, powers * params.decay, powers)
        fresh = tl.where(reached, power, fresh)
        pending = tl.where(reached, pending * params.decay + power, pending)
        power *= params.trace_decay
    tl.store(table + POWERS * 2 * chunk + lag, powers)
    tl.store(table + FRESH * 2 * chunk + lag, fresh)
    tl.store(table + PENDING * 2 * chunk + lag, pending)


@triton.jit
def _logistic(x):
    return 1.0 / (1.0 + tl.exp(-tl.minimum(tl.maximum(x, -60.0), 60.0)))


@triton.jit
def _flow(calcium, params, tick: tl.constexpr, bits: tl.constexpr):
    """Return s(ca - camkii_thr), s(pp1_thr - ca) and the sums of the retention of m."""
    on = _logistic(params.switch_slope * (calcium - params.camkii_thr))
    off = _logistic(params.switch_slope * (params.camkii_thr - calcium))
    silent = _logistic(params.switch_slope * (params.pp1_thr - calcium))
    return (
        on,
        silent,
        compute_sums(1.0 - params.camkii_up * on - params.camkii_down * off, tick, bits),
    )


@triton.jit(do_not_specialize=["per_set", "tokens"])
def open_gates_kernel(
    post,
    packed,
    per_set,
    levels,
    table,
    tokens,
    rank: tl.constexpr,
    tick: tl.constexpr,
    bits: tl.constexpr,
    chunk: tl.constexpr,
    block: tl.constexpr,
):
    """Write `levels` and `table`. Grid: rows times coordinates."""
    row = (tl.program_id(0) // rank).to(tl.int64)
    i = tl.program_id(0) % rank
    params = load_params(packed + row // per_set * PARAMETERS)
    if i == 0:
        _make_table(table + row * TABLES * 2 * chunk, params, chunk)
    ticks = tokens // tick
    size = (ticks + 1) * rank
    levels += row * LEVELS * size + i
    post += row * tokens * rank + i
    index = tl.arange(0, block)
    slow = compute_sums(params.pp1_tau, tick, bits).power
    camkii, pp1 = params.rank * 0.0, params.rank * 0.0
    tl.store(levels + CAMKII * size, camkii)
    tl.store(levels + GATE * size, camkii + 0.5)
    for first in range(0, ticks, block):
        n = first + index
        inside = n < ticks
        calcium = tl.zeros([block], tl.float32)
        for t in tl.static_range(tick):
            calcium += tl.abs(tl.load(post + (n * tick + t) * rank, mask=inside, other=0.0))
        calcium = calcium / tick
        on, silent, z = _flow(calcium, params, tick, bits)
        kept, m = tl.associative_scan(
            (tl.where(inside, z.power, 1.0), tl.where(inside, z.gain * params.camkii_up * on, 0.0)),
            0,
            _compose,
        )
        m += kept * camkii
        kept, g = tl.associative_scan(
            (tl.where(inside, slow, 1.0), tl.where(inside, (1.0 - slow) * silent, 0.0)), 0, _compose
        )
        g += kept * pp1
        at = (n + 1) * rank
        tl.store(levels + CAMKII * size + at, m, mask=inside)
        tl.store(levels + GATE * size + at, _logistic(params.gate_slope * (m - g)), mask=inside)
        tl.store(levels + CALCIUM * size + at, calcium, mask=inside)
        # A step outside changes nothing, so the last value is that of the last tick.
        camkii = tl.sum(tl.where(index == block - 1, m, 0.0))
        pp1 = tl.sum(tl.where(index == block - 1, g, 0.0))


@triton.jit
def _add_past(dpre, dpast, share, tokens, rank: tl.constexpr, block: tl.constexpr):
    """Add to dpre the gradient of the next token's past, in one of `rank` shares of a row."""
    begin = share * (tokens - 1)
    for first in range(begin, begin + tokens - 1, block):
        at = first + tl.arange(0, block)
        inside = at < begin + tokens - 1
        later = tl.load(dpast + at + rank, mask=inside, other=0.0)
        tl.store(dpre + at, tl.load(dpre + at, mask=inside, other=0.0) + later, mask=inside)


@triton.jit(do_not_specialize=["per_set", "tokens"])
def reverse_gates_kernel(
    post,
    write,
    packed,
    per_set,
    levels,
    dbeta,
    dpast,
    dpre,
    dpost,
    tokens,
    rank: tl.constexpr,
    tick: tl.constexpr,
    bits: tl.constexpr,
    block: tl.constexpr,
):
    """Add to dpost what the openings receive, and dpast to dpre. Grid: rows times coordinates."""
    row = (tl.program_id(0) // rank).to(tl.int64)
    i = tl.program_id(0) % rank
    params = load_params(packed + row // per_set * PARAMETERS)
    ticks = tokens // tick
    size = (ticks + 1) * rank
    begin = row * tokens * rank
    _add_past(dpre + begin, dpast + begin, i, tokens, rank, block)
    post += begin + i
    dpost += begin + i
    levels += row * LEVELS * size + i
    write += row * tokens
    dbeta += row * tokens
    index = tl.arange(0, block)
    slow = compute_sums(params.pp1_tau, tick, bits).power
    used = tl.minimum(tl.ceil(params.rank), rank)
    share = tl.where(i < used, 1.0 / used, 0.0) * params.gate_slope
    share *= params.write_scale * params.rate
    dm, dg = params.rank * 0.0, params.rank * 0.0
    for first in range(0, ticks, block):
        n = ticks - first - index  # levels from the last to the first
        inside = n > 0
        dopening = tl.zeros([block], tl.float32)
        for t in tl.static_range(tick):
            token = n * tick + t
            mask = inside & (token < tokens)
            dopening += tl.load(write + token, mask=mask, other=0.0) * tl.load(
                dbeta + token, mask=mask, other=0.0
            )
        at = n * rank
        gate = tl.load(levels + GATE * size + at, mask=inside, other=0.0)
        dgate = share * dopening * gate * (1.0 - gate)
        # What level n receives from the next one passes through the tick between them.
        after = inside & (n < ticks)
        later = tl.load(levels + CALCIUM * size + at + rank, mask=after, other=0.0)
        _, _, z = _flow(later, params, tick, bits)
        kept, m = tl.associative_scan((tl.where(inside, z.power, 1.0), dgate), 0, _compose)
        m += kept * dm
        kept, g = tl.associative_scan((tl.where(inside, slow, 1.0), -dgate), 0, _compose)
        g += kept * dg
        dm = tl.sum(tl.where(index == block - 1, m, 0.0))
        dg = tl.sum(tl.where(index == block - 1, g, 0.0))
        calcium = tl.load(levels + CALCIUM * size + at, mask=inside, other=0.0)
        before = tl.load(levels + CAMKII * size + at - rank, mask=inside, other=0.0)
        on, silent, z = _flow(calcium, params, tick, bits)
        up = params.camkii_up * on
        dretention = m * z.slope * (z.dpower * before + z.dgain * up)
        # The retention is 1 - up - camkii_down (1 - on).
        don = params.camkii_up * (m * z.gain - dretention) + params.camkii_down * dretention
        dcalcium = don * on * (1.0 - on) - g * (1.0 - slow) * silent * (1.0 - silent)
        dcalcium *= params.switch_slope / tick
        for t in tl.static_range(tick):
            token = ((n - 1) * tick + t) * rank
            b = tl.load(post + token, mask=inside, other=0.0)
            sign = (b > 0.0).to(tl.float32) - (b < 0.0).to(tl.float32)
            old = tl.load(dpost + token, mask=inside, other=0.0)
            tl.store(dpost + token, old + dcalcium * sign, mask=inside)
