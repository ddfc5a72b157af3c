"""One tick of the presynaptic terminal and its adjoint in Triton, for a block of keys.

The mechanism files document the equations and their sources; scan.c has the same adjoint. All
values are fp32 in registers. What depends on the parameters only is computed once, as `Rates`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from synaptune.synapse import energy, priming, release

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
SYT1_SHARE: tl.constexpr = tl.constexpr(float(release.SYT1_SHARE))
SYT7_SHARE: tl.constexpr = tl.constexpr(float(release.SYT7_SHARE))
SYT7_CLAMP: tl.constexpr = tl.constexpr(float(release.SYT7_CLAMP))
DOC2_SLOPE: tl.constexpr = tl.constexpr(float(release.DOC2_SLOPE))
DOC2_HALF: tl.constexpr = tl.constexpr(float(release.DOC2_HALF))
LEAK_SHARE: tl.constexpr = tl.constexpr(float(release.LEAK_SHARE))
NOISE_FLOOR: tl.constexpr = tl.constexpr(float(release.NOISE_FLOOR))
QUANTUM: tl.constexpr = tl.constexpr(float(release.QUANTUM))
INITIAL_PRIMED: tl.constexpr = tl.constexpr(float(priming.INITIAL_PRIMED))
FILL_HALF: tl.constexpr = tl.constexpr(float(energy.FILL_HALF))
AMPA_CEILING: tl.constexpr = tl.constexpr(float(energy.AMPA_CEILING))
# Rounds of Philox: the fewest that pass all tests of Salmon et al., SC11, doi:10.1145/2063384.
ROUNDS: tl.constexpr = tl.constexpr(7)
ONE: tl.constexpr = tl.constexpr(0x3F800000)  # bits of 1.0 in fp32


class Params(NamedTuple):
    """Parameters in the order of `_PACKED` in fused.py."""

    tau_c: tl.tensor
    alpha_ca: tl.tensor
    syt1_slope: tl.tensor
    syt7_slope: tl.tensor
    cpx_thresh: tl.tensor
    doc2_gain: tl.tensor
    tau_buf: tl.tensor
    buf_on: tl.tensor
    buf_off: tl.tensor
    tau_rrp: tl.tensor
    rec_rate: tl.tensor
    prime_rate: tl.tensor
    unprime: tl.tensor
    nsf: tl.tensor
    endo_delay: tl.tensor
    init_rrp: tl.tensor
    init_reserve: tl.tensor
    fill: tl.tensor
    use: tl.tensor
    max_energy: tl.tensor
    init_energy: tl.tensor
    amp_load: tl.tensor
    amp_leak: tl.tensor
    fraction: tl.tensor
    weight: tl.tensor
    epsilon: tl.tensor


class Rates(NamedTuple):
    """Coefficients of a tick, all from the parameters; `inv` below is 1 / tokens.

    Attributes:
        influx: (1 - tau_c) alpha_ca.
        free: tau_c - buf_on, retention of free calcium without bound calcium.
        bound: tau_buf - buf_off, retention of bound calcium without free calcium.
        steep1: slope of synaptotagmin 1 in base 2; so is `steep7` of synaptotagmin 7.
        shift1: `steep1` times its threshold; so is `shift7`.
        leak: release per unit of Doc2.
        refill: 1 / tau_rrp.
        endo_power: share of the endocytosing vesicles that a tick keeps.
        endo_gain: share of the released vesicles that still endocytose after the tick.
        back_power: as `endo_power`, of the recycling vesicles.
        back_gain: as `endo_gain`, of the recovered vesicles.
        unprime: priming used per vesicle, times inv.
        prime: prime_rate.
        fuel_power: share of the energy that a tick keeps.
        fuel_gain: energy gained in a tick.
        fuel_use: energy used per vesicle.
        load: AMPA gained per vesicle, times inv.
        keep: 1 - amp_leak.
        newborn: efficacy of a new terminal.
        tilt: 1 / (epsilon + newborn).
    """

    influx: tl.tensor
    free: tl.tensor
    on: tl.tensor
    off: tl.tensor
    bound: tl.tensor
    steep1: tl.tensor
    shift1: tl.tensor
    steep7: tl.tensor
    shift7: tl.tensor
    doc2: tl.tensor
    leak: tl.tensor
    ready: tl.tensor
    refill: tl.tensor
    endo_power: tl.tensor
    endo_gain: tl.tensor
    back_power: tl.tensor
    back_gain: tl.tensor
    unprime: tl.tensor
    prime: tl.tensor
    nsf: tl.tensor
    fuel_power: tl.tensor
    fuel_gain: tl.tensor
    fuel_use: tl.tensor
    load: tl.tensor
    keep: tl.tensor
    weight: tl.tensor
    epsilon: tl.tensor
    newborn: tl.tensor
    tilt: tl.tensor


class State(NamedTuple):
    """State of a block of terminals, or its gradient; the letters of the equations."""

    c: tl.tensor
    m: tl.tensor
    r: tl.tensor
    q: tl.tensor
    w: tl.tensor
    v: tl.tensor
    s: tl.tensor
    p: tl.tensor
    a: tl.tensor
    g: tl.tensor


class Sums(NamedTuple):
    """Coefficients of clock.py, and their derivatives by the retention where it is positive."""

    power: tl.tensor
    gain: tl.tensor
    total: tl.tensor
    dpower: tl.tensor
    dgain: tl.tensor
    dtotal: tl.tensor
    slope: tl.tensor


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
def _invert(x):
    """1 / x of a positive x: two instructions, relative error below 3e-7."""
    root = tl.rsqrt(x)
    return root * root


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
def _sums(a, tokens: tl.constexpr, bits: tl.constexpr):
    """`geometric_sums` of clock.py by doubling; bits: binary digits of tokens below the first.

    `below` is a^(n - 1), so that the derivative of a^n is n below.
    """
    slope = tl.full(a.shape, 1.0, tl.float32)
    one, zero = slope, tl.full(a.shape, 0.0, tl.float32)
    if tokens > 1:
        slope = tl.where(a >= 0.0, one, zero)
        a = tl.maximum(a, 0.0)
    power, below, gain, total, dgain, dtotal = a, one, one, zero, zero, zero
    for index in tl.static_range(bits):
        if index == 0:
            dgain = one
        else:
            dtotal = 2.0 * (dtotal + gain * dgain)
            dgain = dgain + dgain * power + (tokens >> (bits - index)) * (gain * below)
        total = 2.0 * total + gain * gain
        gain = gain + gain * power
        below = below * power
        power = power * power
        if (tokens >> (bits - 1 - index)) & 1:
            dtotal += dgain
            total += gain
            dgain = dgain * a + gain
            gain = gain * a + 1.0
            below = power
            power = power * a
    return Sums(power, gain, total, tokens * below, dgain, dtotal, slope)


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
def _load_params(packed):
    # fmt: off
    return Params(
        tl.load(packed), tl.load(packed + 1), tl.load(packed + 2), tl.load(packed + 3),
        tl.load(packed + 4), tl.load(packed + 5), tl.load(packed + 6), tl.load(packed + 7),
        tl.load(packed + 8), tl.load(packed + 9), tl.load(packed + 10), tl.load(packed + 11),
        tl.load(packed + 12), tl.load(packed + 13), tl.load(packed + 14), tl.load(packed + 15),
        tl.load(packed + 16), tl.load(packed + 17), tl.load(packed + 18), tl.load(packed + 19),
        tl.load(packed + 20), tl.load(packed + 21), tl.load(packed + 22), tl.load(packed + 23),
        tl.load(packed + 24), tl.load(packed + 25),
    )
    # fmt: on


@triton.jit
def start(packed, zero, tokens: tl.constexpr, bits: tl.constexpr):
    """Return the rates, the state of new terminals and the share of ticks with noise.

    packed: place of the parameters; zero: a block of zeros.
    """
    p = _load_params(packed)
    inv: tl.constexpr = 1.0 / tokens
    endo = _sums(zero + (1.0 - 1.0 / p.endo_delay), tokens, bits)
    back = _sums(zero + (1.0 - p.rec_rate), tokens, bits)
    fuel = _sums(zero + (1.0 - p.fill), tokens, bits)
    steep1, steep7 = LOG2_E * p.syt1_slope, LOG2_E * p.syt7_slope
    shift1, shift7 = steep1 * p.cpx_thresh, SYT7_CLAMP * steep7 * p.cpx_thresh
    y1, y7 = _sigmoid(zero, steep1, shift1), _sigmoid(zero, steep7, shift7)
    size = (1.0 + FILL_HALF) * p.init_energy / (p.init_energy + FILL_HALF)
    probability = INITIAL_PRIMED * _evoke(y1, y7) + p.doc2_gain * _sense_doc2(zero)
    newborn = probability * p.init_rrp * size
    rates = Rates(
        influx=(1.0 - p.tau_c) * p.alpha_ca,
        free=p.tau_c - p.buf_on,
        on=p.buf_on,
        off=p.buf_off,
        bound=p.tau_buf - p.buf_off,
        steep1=steep1,
        shift1=shift1,
        steep7=steep7,
        shift7=shift7,
        doc2=p.doc2_gain,
        leak=LEAK_SHARE * p.doc2_gain,
        ready=p.init_rrp,
        refill=1.0 / p.tau_rrp,
        endo_power=endo.power,
        endo_gain=endo.gain * inv,
        back_power=back.power,
        back_gain=back.gain * inv,
        unprime=p.unprime * inv,
        prime=p.prime_rate,
        nsf=p.nsf,
        fuel_power=fuel.power,
        fuel_gain=fuel.gain * (p.fill * p.max_energy),
        fuel_use=fuel.gain * (p.use * inv),
        load=p.amp_load * inv,
        keep=1.0 - p.amp_leak,
        weight=p.weight,
        epsilon=p.epsilon,
        newborn=newborn,
        tilt=1.0 / (p.epsilon + newborn),
    )
    primed = zero + INITIAL_PRIMED
    ready, reserve = zero + p.init_rrp, zero + p.init_reserve
    full, one = zero + p.init_energy, zero + 1.0
    state = State(zero, zero, ready, zero, zero, reserve, primed, primed, full, one)
    return rates, state, p.fraction


@triton.jit
def _sigmoid(calcium, steep, shift):
    return _invert(1.0 + tl.exp2(shift - steep * calcium))


@triton.jit
def _sense_doc2(calcium):
    return _sigmoid(calcium, DOC2_SLOPE * LOG2_E, DOC2_SLOPE * LOG2_E * DOC2_HALF)


@triton.jit
def _evoke(y1, y7):
    return SYT1_SHARE * y1 + SYT7_SHARE * y7


@triton.jit
def _evoke_gradient(y1, y7, rates):
    """Derivative of the evoked release by calcium."""
    return (LN_2 * SYT1_SHARE) * rates.steep1 * (y1 - y1 * y1) + (
        LN_2 * SYT7_SHARE
    ) * rates.steep7 * (y7 - y7 * y7)


@triton.jit
def draw_noise(seed, row, pair, key, fraction):
    """Standard normal noise of a random fraction, 0 elsewhere, for the two ticks of a pair.

    Box and Muller, Ann Math Stat 29:610 (1958), on counters; sine and cosine of half the angle are
    Chebyshev polynomials with errors of 1e-8 and 4e-8.
    """
    first, second, radius, angle = tl.philox(seed, key, pair, row, 0, ROUNDS)
    length = tl.sqrt((-2.0 * LN_2) * tl.log2(2.0 - _to_unit(radius)))
    z = _to_unit(angle) - 1.5
    y = z * z
    sine = z * (
        3.14159264 + y * (-5.16771008 + y * (2.55007752 + y * (0.07765766 * y - 0.59829129)))
    )
    cosine = 0.99999995 + y * (-4.93479283 + y * (4.05841135 + y * (0.21968961 * y - 1.33187657)))
    edge = 1.0 + fraction
    return (
        tl.where(_to_unit(first) < edge, 2.0 * length * sine * cosine, 0.0),
        tl.where(_to_unit(second) < edge, length - 2.0 * length * sine * sine, 0.0),
    )


@triton.jit
def _to_unit(word):
    """Random bits as a number in [1, 2)."""
    return ((word >> 9) | ONE).to(tl.float32, bitcast=True)


@triton.jit
def step(old, drive, eta, rates, tokens: tl.constexpr, bits: tl.constexpr, has_noise: tl.constexpr):
    """One tick; returns the next state and the values that the adjoint needs."""
    inv: tl.constexpr = 1.0 / tokens
    fall = tl.exp2(-LOG2_E * tl.abs(drive))
    share = _invert(1.0 + fall)
    spike = tl.where(drive >= 0.0, share, fall * share)
    softplus = tl.maximum(drive, 0.0) + LN_2 * tl.log2(1.0 + fall)
    inflow = rates.influx * softplus + rates.off * old.m
    calcium = _sums(rates.free + rates.on * old.m, tokens, bits)
    c_raw = calcium.power * old.c + calcium.gain * inflow
    c = tl.maximum(c_raw, 0.0)
    mean_calcium = (calcium.gain * old.c + calcium.total * inflow) * inv
    bind = rates.on * mean_calcium
    buffer = _sums(rates.bound - bind, tokens, bits)
    m_raw = buffer.power * old.m + buffer.gain * bind
    m = tl.minimum(tl.maximum(m_raw, 0.0), 1.0)

    sensed = mean_calcium + (c - old.c) * inv
    y1 = _sigmoid(sensed, rates.steep1, rates.shift1)
    y7 = _sigmoid(sensed, rates.steep7, rates.shift7)
    yd = _sense_doc2(sensed)
    evoked = _evoke(y1, y7)
    rho_raw = spike * (old.p * evoked) + rates.leak * yd
    rho = tl.minimum(rho_raw, 1.0)
    unfilled = _invert(old.v + 1.0)
    refill = rates.refill * (old.v * unfilled)
    pool = _sums(1.0 - rho - refill, tokens, bits)
    occupied = pool.gain * old.r + pool.total * (refill * rates.ready)
    missing = tokens * rates.ready - occupied
    f1 = refill * missing
    filled = tl.minimum(tl.maximum(f1, 0.0), old.v)
    xraw = rho * occupied
    available = old.r + filled
    expected = tl.minimum(xraw, available)
    ratio, inverse_sd, draw, x = expected, expected, expected, expected
    if has_noise:
        ratio = expected * _invert(tl.maximum(available, QUANTUM * NOISE_FLOOR))
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
    snare = _sums(1.0 - rates.nsf - used, tokens, bits)
    s_raw = snare.power * old.s + snare.gain * rates.nsf
    mean_snare = (snare.gain * old.s + snare.total * rates.nsf) * inv
    primes = rates.prime * _bound(mean_snare, 1.0, tokens)
    primed = _sums(1.0 - used - primes, tokens, bits)
    p_raw = primed.power * old.p + primed.gain * primes
    p = _bound(p_raw, 1.0, tokens)

    a_raw = rates.fuel_power * old.a + rates.fuel_gain - rates.fuel_use * x
    a = tl.maximum(a_raw, 0.0)
    load = rates.load * x
    ampa = _sums(rates.keep - load, tokens, bits)
    g_raw = ampa.power * old.g + ampa.gain * (AMPA_CEILING * load)
    g = _bound(g_raw, AMPA_CEILING, tokens)

    z1 = _sigmoid(c, rates.steep1, rates.shift1)
    z7 = _sigmoid(c, rates.steep7, rates.shift7)
    zd = _sense_doc2(c)
    potency = _evoke(z1, z7)
    probability = p * potency + rates.doc2 * zd
    half = _invert(a + FILL_HALF)
    filling = (1.0 + FILL_HALF) * a * half
    efficacy = probability * r * (g * filling)
    base, fluctuation = efficacy, efficacy
    if has_noise:
        base = _invert(expected + QUANTUM)
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
    de = dbias * rates.weight * _invert(t.efficacy + rates.epsilon)
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
