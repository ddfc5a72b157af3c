"""One tick of the presynaptic terminal and its adjoint in Triton, for a block of keys.

The mechanism files document the equations and their sources; scan.c has the same adjoint. `inv` is
1 / tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from synaptune.synapse.triton_rates import (
    AMPA_CEILING,
    DOC2_SLOPE,
    FILL_HALF,
    LN_2,
    LOG2_E,
    NOISE_FLOOR,
    QUANTUM,
    SYT1_SHARE,
    SYT7_SHARE,
    State,
    Sums,
    compute_sums,
    evoke,
    invert,
    sense_doc2,
    sigmoid,
)


class Tick(NamedTuple):
    """Values of one tick that the adjoint reads, in the order in which `step` computes them."""

    spike: tl.tensor
    inflow: tl.tensor
    calcium: Sums
    c_raw: tl.tensor
    bind: tl.tensor
    buffer: Sums
    m_raw: tl.tensor
    y1: tl.tensor
    y7: tl.tensor
    yd: tl.tensor
    evoked: tl.tensor
    rho_raw: tl.tensor
    rho: tl.tensor
    unfilled: tl.tensor
    refill: tl.tensor
    pool: Sums
    missing: tl.tensor
    occupied: tl.tensor
    f1: tl.tensor
    xraw: tl.tensor
    available: tl.tensor
    expected: tl.tensor
    ratio: tl.tensor
    inverse_sd: tl.tensor
    draw: tl.tensor
    x: tl.tensor
    snare: Sums
    s_raw: tl.tensor
    mean_snare: tl.tensor
    primes: tl.tensor
    primed: Sums
    p_raw: tl.tensor
    a_raw: tl.tensor
    load: tl.tensor
    ampa: Sums
    g_raw: tl.tensor
    z1: tl.tensor
    z7: tl.tensor
    zd: tl.tensor
    potency: tl.tensor
    probability: tl.tensor
    half: tl.tensor
    filling: tl.tensor
    base: tl.tensor
    fluctuation: tl.tensor
    efficacy: tl.tensor


@triton.jit
def _bound(x, top, tokens: tl.constexpr):
    """Clamp a mean of values in [0, top]; only a tick of one token may overshoot (clock.py)."""
    if tokens == 1:
        x = tl.minimum(tl.maximum(x, 0.0), top)
    return x


@triton.jit
def _bound_gradient(x, top, grad, tokens: tl.constexpr):
    if tokens == 1:
        grad = tl.where((x >= 0.0) & (x <= top), grad, 0.0)
    return grad


@triton.jit
def _pull(sums, by_power, by_gain):
    """Gradient of the retention from those of power and gain."""
    return sums.slope * (by_power * sums.dpower + by_gain * sums.dgain)


@triton.jit
def _pull_total(sums, by_gain, by_total):
    return sums.slope * (by_gain * sums.dgain + by_total * sums.dtotal)


@triton.jit
def _pull_all(sums, by_power, by_gain, by_total):
    return sums.slope * (by_power * sums.dpower + by_gain * sums.dgain + by_total * sums.dtotal)


@triton.jit
def _evoke_gradient(y1, y7, rates):
    """Derivative of the evoked release by calcium."""
    return (LN_2 * SYT1_SHARE) * rates.steep1 * (y1 - y1 * y1) + (
        LN_2 * SYT7_SHARE
    ) * rates.steep7 * (y7 - y7 * y7)


@triton.jit
def step(old, drive, eta, rates, tokens: tl.constexpr, bits: tl.constexpr, has_noise: tl.constexpr):
    """One tick; returns the next state and the values that the adjoint needs."""
    inv: tl.constexpr = 1.0 / tokens
    fall = tl.exp2(-LOG2_E * tl.abs(drive))
    share = invert(1.0 + fall)
    spike = tl.where(drive >= 0.0, share, fall * share)
    softplus = tl.maximum(drive, 0.0) + LN_2 * tl.log2(1.0 + fall)
    inflow = rates.influx * softplus + rates.off * old.m
    calcium = compute_sums(rates.free + rates.on * old.m, tokens, bits)
    c_raw = calcium.power * old.c + calcium.gain * inflow
    c = tl.maximum(c_raw, 0.0)
    mean_calcium = (calcium.gain * old.c + calcium.total * inflow) * inv
    bind = rates.on * mean_calcium
    buffer = compute_sums(rates.bound - bind, tokens, bits)
    m_raw = buffer.power * old.m + buffer.gain * bind
    m = tl.minimum(tl.maximum(m_raw, 0.0), 1.0)

    sensed = mean_calcium + (c - old.c) * inv
    y1 = sigmoid(sensed, rates.steep1, rates.shift1)
    y7 = sigmoid(sensed, rates.steep7, rates.shift7)
    yd = sense_doc2(sensed)
    evoked = evoke(y1, y7)
    rho_raw = spike * (old.p * evoked) + rates.leak * yd
    rho = tl.minimum(rho_raw, 1.0)
    unfilled = invert(old.v + 1.0)
    refill = rates.refill * (old.v * unfilled)
    pool = compute_sums(1.0 - rho - refill, tokens, bits)
    occupied = pool.gain * old.r + pool.total * (refill * rates.ready)
    missing = tokens * rates.ready - occupied
    f1 = refill * missing
    filled = tl.minimum(tl.maximum(f1, 0.0), old.v)
    xraw = rho * occupied
    available = old.r + filled
    expected = tl.minimum(xraw, available)
    ratio, inverse_sd, draw, x = expected, expected, expected, expected
    if has_noise:
        ratio = expected * invert(tl.maximum(available, QUANTUM * NOISE_FLOOR))
        variance = tl.maximum(ratio * (available - expected), 0.0) + NOISE_FLOOR
        inverse_sd = tl.rsqrt(variance)
        draw = expected + variance * inverse_sd * eta
        x = tl.minimum(tl.maximum(draw, 0.0), available)

    q = rates.endo_power * old.q + rates.endo_gain * x
    recovered = (1.0 - rates.endo_power) * old.q + (1.0 - rates.endo_gain) * x
    w = rates.back_power * old.w + rates.back_gain * recovered
    returned = (1.0 - rates.back_power) * old.w + (1.0 - rates.back_gain) * recovered
    r = available - x
    v = old.v + returned - filled

    used = rates.unprime * x
    snare = compute_sums(1.0 - rates.nsf - used, tokens, bits)
    s_raw = snare.power * old.s + snare.gain * rates.nsf
    mean_snare = (snare.gain * old.s + snare.total * rates.nsf) * inv
    primes = rates.prime * _bound(mean_snare, 1.0, tokens)
    primed = compute_sums(1.0 - used - primes, tokens, bits)
    p_raw = primed.power * old.p + primed.gain * primes
    p = _bound(p_raw, 1.0, tokens)

    a_raw = rates.fuel_power * old.a + rates.fuel_gain - rates.fuel_use * x
    a = tl.maximum(a_raw, 0.0)
    load = rates.load * x
    ampa = compute_sums(rates.keep - load, tokens, bits)
    g_raw = ampa.power * old.g + ampa.gain * (AMPA_CEILING * load)
    g = _bound(g_raw, AMPA_CEILING, tokens)

    z1 = sigmoid(c, rates.steep1, rates.shift1)
    z7 = sigmoid(c, rates.steep7, rates.shift7)
    zd = sense_doc2(c)
    potency = evoke(z1, z7)
    probability = p * potency + rates.doc2 * zd
    half = invert(a + FILL_HALF)
    filling = (1.0 + FILL_HALF) * a * half
    efficacy = probability * r * (g * filling)
    base, fluctuation = efficacy, efficacy
    if has_noise:
        base = invert(expected + QUANTUM)
        fluctuation = (x + QUANTUM) * base
        efficacy = efficacy * fluctuation
    new = State(c, m, r, q, w, v, _bound(s_raw, 1.0, tokens), p, a, g)
    # fmt: off
    tick = Tick(
        spike, inflow, calcium, c_raw, bind, buffer, m_raw, y1, y7, yd, evoked, rho_raw, rho,
        unfilled, refill, pool, missing, occupied, f1, xraw, available, expected, ratio,
        inverse_sd, draw, x, snare, s_raw, mean_snare, primes, primed, p_raw, a_raw, load, ampa,
        g_raw, z1, z7, zd, potency, probability, half, filling, base, fluctuation, efficacy,
    )
    # fmt: on
    return new, tick


@triton.jit
def bias_of(efficacy, rates):
    """The bias (1) of bias.py."""
    return (LN_2 * rates.weight) * tl.log2((efficacy + rates.epsilon) * rates.tilt)


@triton.jit
def adjoint(
    old,
    drive,
    eta,
    d,
    dbias,
    rates,
    tokens: tl.constexpr,
    bits: tl.constexpr,
    has_noise: tl.constexpr,
):
    """The adjoint of `step` and `bias_of`.

    Returns the gradient of the old state and that of the drive, from the gradients `d` of the next
    state and `dbias` of the bias.
    """
    new, t = step(old, drive, eta, rates, tokens, bits, has_noise)
    inv: tl.constexpr = 1.0 / tokens
    de = dbias * rates.weight * invert(t.efficacy + rates.epsilon)
    dx, dexp = de * 0.0, de * 0.0
    size = new.g * t.filling
    if has_noise:
        dfluct = de * (t.probability * new.r * size) * t.base
        dx = dfluct
        dexp = -dfluct * t.fluctuation
        de = de * t.fluctuation
    dready = de * t.probability
    dprob = de * new.r * size
    dr = d.r + dready * size
    dsize = dready * new.r
    dg = d.g + dsize * t.filling
    da = d.a + dsize * new.g * ((1.0 + FILL_HALF) * FILL_HALF * t.half * t.half)
    dp = d.p + dprob * t.potency
    sloped: tl.constexpr = DOC2_SLOPE
    dc = d.c + dprob * (
        new.p * _evoke_gradient(t.z1, t.z7, rates) + sloped * rates.doc2 * (t.zd - t.zd * t.zd)
    )

    dg = _bound_gradient(t.g_raw, AMPA_CEILING, dg, tokens)
    old_g = dg * t.ampa.power
    insert = AMPA_CEILING * t.load
    dload = AMPA_CEILING * (dg * t.ampa.gain) - _pull(t.ampa, dg * old.g, dg * insert)
    dx += dload * rates.load
    da = tl.where(t.a_raw >= 0.0, da, 0.0)
    old_a = da * rates.fuel_power
    dx -= da * rates.fuel_use

    dp = _bound_gradient(t.p_raw, 1.0, dp, tokens)
    old_p = dp * t.primed.power
    dkeep = _pull(t.primed, dp * old.p, dp * t.primes)
    dmean = (dp * t.primed.gain - dkeep) * (rates.prime * inv)
    dmean = _bound_gradient(t.mean_snare, 1.0, dmean, tokens)
    ds = _bound_gradient(t.s_raw, 1.0, d.s, tokens)
    old_s = dmean * t.snare.gain + ds * t.snare.power
    dkeep += _pull_all(t.snare, ds * old.s, dmean * old.s + ds * rates.nsf, dmean * rates.nsf)
    dx -= dkeep * rates.unprime

    old_w = rates.back_power * d.w + (1.0 - rates.back_power) * d.v
    drec = rates.back_gain * d.w + (1.0 - rates.back_gain) * d.v
    old_q = rates.endo_power * d.q + (1.0 - rates.endo_power) * drec
    dx += rates.endo_gain * d.q + (1.0 - rates.endo_gain) * drec
    dx -= dr
    davail = dr

    if has_noise:
        over = t.draw > t.available
        davail += tl.where(over, dx, 0.0)
        dx = tl.where(over | (t.draw < 0.0), 0.0, dx)
        dvar = dx * eta * (0.5 * t.inverse_sd)
        davail += dvar * t.ratio * t.ratio
        dx += dvar * (1.0 - 2.0 * t.ratio)
    dexp += dx
    free = t.xraw <= t.available
    davail += tl.where(free, 0.0, dexp)
    dxraw = tl.where(free, dexp, 0.0)
    dfill = davail - d.v
    ample = t.f1 <= old.v
    old_v = d.v + tl.where(ample, 0.0, dfill)
    df1 = tl.where(ample & (t.f1 >= 0.0), dfill, 0.0)
    docc = dxraw * t.rho - df1 * t.refill
    old_r = davail + docc * t.pool.gain
    fresh = docc * rates.ready
    dpool = _pull_total(t.pool, docc * old.r, fresh * t.refill)
    drho = dxraw * t.occupied - dpool
    drefill = df1 * t.missing + fresh * t.pool.total - dpool
    old_v += drefill * rates.refill * (t.unfilled * t.unfilled)

    drho = tl.where(t.rho_raw <= 1.0, drho, 0.0)
    dspike = drho * (old.p * t.evoked)
    spiked = drho * t.spike
    old_p += spiked * t.evoked
    dsensed = (spiked * old.p) * _evoke_gradient(t.y1, t.y7, rates)
    dsensed += drho * rates.leak * sloped * (t.yd - t.yd * t.yd)
    dsensed *= inv
    dc = tl.where(t.c_raw >= 0.0, dc + dsensed, 0.0)
    dm = tl.where((t.m_raw >= 0.0) & (t.m_raw <= 1.0), d.m, 0.0)
    old_m = dm * t.buffer.power
    dbind = dm * t.buffer.gain - _pull(t.buffer, dm * old.m, dm * t.bind)
    dmean_calcium = dsensed + dbind * (rates.on * inv)
    old_c = dmean_calcium * t.calcium.gain - dsensed + dc * t.calcium.power
    din = dmean_calcium * t.calcium.total + dc * t.calcium.gain
    dretention = _pull_all(
        t.calcium,
        dc * old.c,
        dmean_calcium * old.c + dc * t.inflow,
        dmean_calcium * t.inflow,
    )
    old_m += dretention * rates.on + din * rates.off
    ddrive = t.spike * (dspike * (1.0 - t.spike) + din * rates.influx)
    grad = State(old_c, old_m, old_r, old_q, old_w, old_v, old_s, old_p, old_a, old_g)
    return grad, ddrive
