"""One tick of the presynaptic terminal and its adjoint in Triton, for a block of keys.

The functions are those of scan.c, with its names; the mechanism files document the equations and
their sources. All values are fp32 in registers.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Params(NamedTuple):
    """Parameters, then constants, in the order of `_PACKED` and `_CONSTANTS` in kernel.py."""

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
    syt1_share: tl.tensor
    syt7_share: tl.tensor
    syt7_clamp: tl.tensor
    doc2_slope: tl.tensor
    doc2_half: tl.tensor
    leak_share: tl.tensor
    birth_primed: tl.tensor
    fill_half: tl.tensor
    ampa_ceiling: tl.tensor
    noise_floor: tl.tensor
    quantum: tl.tensor


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
    """Coefficients of clock.py and their derivatives by the retention."""

    power: tl.tensor
    gain: tl.tensor
    total: tl.tensor
    dpower: tl.tensor
    dgain: tl.tensor
    dtotal: tl.tensor


class Tick(NamedTuple):
    """Values of one tick that the adjoint reads, in the order in which `step` computes them."""

    spike: tl.tensor
    inflow: tl.tensor
    calcium: Sums
    c_raw: tl.tensor
    mean_calcium: tl.tensor
    buffer: Sums
    m_raw: tl.tensor
    y1: tl.tensor
    y7: tl.tensor
    yd: tl.tensor
    rho_raw: tl.tensor
    rho: tl.tensor
    refill: tl.tensor
    pool: Sums
    occupied: tl.tensor
    f1: tl.tensor
    xraw: tl.tensor
    available: tl.tensor
    expected: tl.tensor
    variance: tl.tensor
    sd: tl.tensor
    draw: tl.tensor
    x: tl.tensor
    recovered: tl.tensor
    returned: tl.tensor
    r_raw: tl.tensor
    snare: Sums
    s_raw: tl.tensor
    mean_snare_raw: tl.tensor
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
    probability: tl.tensor
    size: tl.tensor
    fluctuation: tl.tensor
    efficacy: tl.tensor


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(tl.minimum(tl.maximum(-x, -60.0), 60.0)))


@triton.jit
def _softplus(x):
    """log(1 + e) as the series of 2 atanh(e / (2 + e)): accurate for small e, unlike log(1 + e)."""
    e = tl.exp(tl.maximum(-tl.abs(x), -60.0))
    z = e / (2.0 + e)
    q = z * z
    series = 1.0 + q * (
        1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q / 13))))
    )
    return tl.maximum(x, 0.0) + 2.0 * z * series


@triton.jit
def _clamp(x, top):
    return tl.minimum(tl.maximum(x, 0.0), top)


@triton.jit
def _positive(x):
    return (x >= 0.0).to(tl.float32)


@triton.jit
def _within(x, top):
    return ((x >= 0.0) & (x <= top)).to(tl.float32)


@triton.jit
def sums(a, tokens: tl.constexpr, bits: tl.constexpr):
    """`geometric_sums` of clock.py by doubling; bits: binary digits of tokens below the first."""
    slope = _positive(a)
    if tokens == 1:
        slope = slope * 0.0 + 1.0
    else:
        a = tl.maximum(a, 0.0)
    power, dpower = a, slope
    gain, total = slope * 0.0 + 1.0, slope * 0.0
    dgain, dtotal = slope * 0.0, slope * 0.0
    for index in tl.static_range(bits):
        dtotal = 2.0 * dtotal + 2.0 * gain * dgain
        total = 2.0 * total + gain * gain
        dgain = dgain * (1.0 + power) + gain * dpower
        gain = gain * (1.0 + power)
        dpower = 2.0 * power * dpower
        power = power * power
        if (tokens >> (bits - 1 - index)) & 1:
            dtotal += dgain
            total += gain
            dgain = dgain * a + gain * slope
            gain = gain * a + 1.0
            dpower = dpower * a + power * slope
            power = power * a
    return Sums(power, gain, total, dpower, dgain, dtotal)


@triton.jit
def load_params(packed):
    # fmt: off
    return Params(
        tl.load(packed), tl.load(packed + 1), tl.load(packed + 2), tl.load(packed + 3),
        tl.load(packed + 4), tl.load(packed + 5), tl.load(packed + 6), tl.load(packed + 7),
        tl.load(packed + 8), tl.load(packed + 9), tl.load(packed + 10), tl.load(packed + 11),
        tl.load(packed + 12), tl.load(packed + 13), tl.load(packed + 14), tl.load(packed + 15),
        tl.load(packed + 16), tl.load(packed + 17), tl.load(packed + 18), tl.load(packed + 19),
        tl.load(packed + 20), tl.load(packed + 21), tl.load(packed + 22), tl.load(packed + 23),
        tl.load(packed + 24), tl.load(packed + 25), tl.load(packed + 26), tl.load(packed + 27),
        tl.load(packed + 28), tl.load(packed + 29), tl.load(packed + 30), tl.load(packed + 31),
        tl.load(packed + 32), tl.load(packed + 33),
    )
    # fmt: on


@triton.jit
def init_state(params, zero):
    return State(
        zero,
        zero,
        zero + params.init_rrp,
        zero,
        zero,
        zero + params.init_reserve,
        zero + params.birth_primed,
        zero + params.birth_primed,
        zero + params.init_energy,
        zero + 1.0,
    )


@triton.jit
def _evoked(y1, y7, params):
    return params.syt1_share * y1 + params.syt7_share * y7


@triton.jit
def _sense(calcium, params):
    """Occupancies of synaptotagmin 1, 7 and Doc2."""
    return (
        sigmoid(params.syt1_slope * (calcium - params.cpx_thresh)),
        sigmoid(params.syt7_slope * (calcium - params.syt7_clamp * params.cpx_thresh)),
        sigmoid(params.doc2_slope * (calcium - params.doc2_half)),
    )


@triton.jit
def birth_efficacy(params):
    y1, y7, yd = _sense(params.tau_c * 0.0, params)
    probability = params.birth_primed * _evoked(y1, y7, params) + params.doc2_gain * yd
    size = (1.0 + params.fill_half) * params.init_energy / (params.init_energy + params.fill_half)
    return probability * params.init_rrp * size


@triton.jit
def step(old, drive, eta, params, tokens: tl.constexpr, bits: tl.constexpr):
    """One tick; returns the next state and the values that the adjoint needs."""
    spike = sigmoid(drive)
    inflow = (1.0 - params.tau_c) * params.alpha_ca * _softplus(drive) + params.buf_off * old.m
    calcium = sums(params.tau_c - params.buf_on * (1.0 - old.m), tokens, bits)
    c_raw = calcium.power * old.c + calcium.gain * inflow
    c = tl.maximum(c_raw, 0.0)
    mean_calcium = (calcium.gain * old.c + calcium.total * inflow) / tokens
    buffer = sums(params.tau_buf - params.buf_on * mean_calcium - params.buf_off, tokens, bits)
    m_raw = buffer.power * old.m + buffer.gain * params.buf_on * mean_calcium
    m = _clamp(m_raw, 1.0)

    y1, y7, yd = _sense(mean_calcium + (c - old.c) / tokens, params)
    rho_raw = spike * old.p * _evoked(y1, y7, params) + params.leak_share * params.doc2_gain * yd
    rho = _clamp(rho_raw, 1.0)
    refill = old.v / ((old.v + 1.0) * params.tau_rrp)
    pool = sums(1.0 - rho - refill, tokens, bits)
    occupied = pool.gain * old.r + pool.total * refill * params.init_rrp
    f1 = refill * (tokens * params.init_rrp - occupied)
    filled = tl.minimum(tl.maximum(f1, 0.0), old.v)
    xraw = rho * occupied
    available = old.r + filled
    expected = tl.minimum(xraw, available)
    safe = tl.maximum(available, params.quantum * params.noise_floor)
    variance = expected * (1.0 - expected / safe)
    sd = tl.sqrt(tl.maximum(variance, 0.0) + params.noise_floor)
    draw = expected + sd * eta
    x = tl.minimum(tl.maximum(draw, 0.0), available)

    dwell = sums(1.0 - 1.0 / params.endo_delay, tokens, bits)
    q = dwell.power * old.q + dwell.gain * x / tokens
    recovered = old.q + x - q
    recycle = sums(1.0 - params.rec_rate, tokens, bits)
    w = recycle.power * old.w + recycle.gain * tl.maximum(recovered, 0.0) / tokens
    returned = old.w + tl.maximum(recovered, 0.0) - w
    r_raw = old.r - x + filled
    r = tl.maximum(r_raw, 0.0)
    v = old.v + tl.maximum(returned, 0.0) - filled

    used = params.unprime * x / tokens
    snare = sums(1.0 - used - params.nsf, tokens, bits)
    s_raw = snare.power * old.s + snare.gain * params.nsf
    mean_snare_raw = (snare.gain * old.s + snare.total * params.nsf) / tokens
    primes = params.prime_rate * _clamp(mean_snare_raw, 1.0)
    primed = sums(1.0 - primes - used, tokens, bits)
    p_raw = primed.power * old.p + primed.gain * primes
    p = _clamp(p_raw, 1.0)

    refuel = sums(1.0 - params.fill, tokens, bits)
    a_raw = refuel.power * old.a + refuel.gain * (
        params.fill * params.max_energy - params.use * x / tokens
    )
    a = tl.maximum(a_raw, 0.0)
    load = params.amp_load * x / tokens
    ampa = sums(1.0 - load - params.amp_leak, tokens, bits)
    g_raw = ampa.power * old.g + ampa.gain * params.ampa_ceiling * load
    g = _clamp(g_raw, params.ampa_ceiling)

    z1, z7, zd = _sense(c, params)
    probability = p * _evoked(z1, z7, params) + params.doc2_gain * zd
    size = g * (1.0 + params.fill_half) * a / (a + params.fill_half)
    fluctuation = (x + params.quantum) / (expected + params.quantum)
    new = State(c, m, r, q, w, v, _clamp(s_raw, 1.0), p, a, g)
    # fmt: off
    tick = Tick(
        spike, inflow, calcium, c_raw, mean_calcium, buffer, m_raw, y1, y7, yd, rho_raw, rho,
        refill, pool, occupied, f1, xraw, available, expected, variance, sd, draw, x, recovered,
        returned, r_raw, snare, s_raw, mean_snare_raw, primes, primed, p_raw, a_raw, load, ampa,
        g_raw, z1, z7, zd, probability, size, fluctuation, probability * r * size * fluctuation,
    )
    # fmt: on
    return new, tick


@triton.jit
def adjoint(old, drive, eta, d, de, params, tokens: tl.constexpr, bits: tl.constexpr):
    """The adjoint of `step`, as in scan.c.

    Returns the gradient of the old state and that of the drive, from the gradients `d` of the next
    state and `de` of the efficacy.
    """
    new, t = step(old, drive, eta, params, tokens, bits)
    dwell = sums(1.0 - 1.0 / params.endo_delay, tokens, bits)
    recycle = sums(1.0 - params.rec_rate, tokens, bits)
    refuel = sums(1.0 - params.fill, tokens, bits)
    inv = 1.0 / tokens
    size_r = t.size * new.r
    dprob = de * size_r * t.fluctuation
    dsize = de * t.probability * new.r * t.fluctuation
    dfluct = de * t.probability * size_r
    dr = d.r + de * t.probability * t.size * t.fluctuation
    base = 1.0 / (t.expected + params.quantum)
    dx = dfluct * base
    dexp = -dfluct * (t.x + params.quantum) * base * base
    half = 1.0 / (new.a + params.fill_half)
    dg = d.g + dsize * (1.0 + params.fill_half) * new.a * half
    da = d.a + dsize * new.g * (1.0 + params.fill_half) * params.fill_half * half * half
    slope1 = params.syt1_share * params.syt1_slope
    slope7 = params.syt7_share * params.syt7_slope
    sloped = params.doc2_gain * params.doc2_slope
    dp = d.p + dprob * _evoked(t.z1, t.z7, params)
    dc = d.c + dprob * (
        new.p * (slope1 * t.z1 * (1.0 - t.z1) + slope7 * t.z7 * (1.0 - t.z7))
        + sloped * t.zd * (1.0 - t.zd)
    )

    dg *= _within(t.g_raw, params.ampa_ceiling)
    old_g = dg * t.ampa.power
    dload = dg * t.ampa.gain * params.ampa_ceiling
    dload -= dg * (old.g * t.ampa.dpower + params.ampa_ceiling * t.load * t.ampa.dgain)
    dx += dload * params.amp_load * inv
    da *= _positive(t.a_raw)
    old_a = da * refuel.power
    dx -= da * refuel.gain * params.use * inv

    dp *= _within(t.p_raw, 1.0)
    old_p = dp * t.primed.power
    dkeep = dp * (old.p * t.primed.dpower + t.primes * t.primed.dgain)
    dused = -dkeep
    dmean = (dp * t.primed.gain - dkeep) * params.prime_rate * _within(t.mean_snare_raw, 1.0) * inv
    ds = d.s * _within(t.s_raw, 1.0)
    old_s = dmean * t.snare.gain + ds * t.snare.power
    dused -= (
        ds * old.s * t.snare.dpower
        + (dmean * old.s + ds * params.nsf) * t.snare.dgain
        + dmean * params.nsf * t.snare.dtotal
    )
    dx += dused * params.unprime * inv

    dr *= _positive(t.r_raw)
    old_r = dr
    old_v = d.v
    dx -= dr
    dfill = dr - d.v
    dret = d.v * _positive(t.returned)
    dw = d.w - dret
    old_w = dret + dw * recycle.power
    drec = (dret + dw * recycle.gain * inv) * _positive(t.recovered)
    dq = d.q - drec
    old_q = drec + dq * dwell.power
    dx += drec + dq * dwell.gain * inv

    over = (t.draw > t.available).to(tl.float32)
    ddraw = dx * _positive(t.draw) * (1.0 - over)
    dvar = ddraw * eta * 0.5 / t.sd * _positive(t.variance)
    ratio = t.expected / tl.maximum(t.available, params.quantum * params.noise_floor)
    davail = dx * over + dvar * ratio * ratio
    dexp += ddraw + dvar * (1.0 - 2.0 * ratio)
    free = (t.xraw <= t.available).to(tl.float32)
    davail += dexp * (1.0 - free)
    dxraw = dexp * free
    old_r += davail
    dfill += davail
    ample = (t.f1 <= old.v).to(tl.float32)
    old_v += dfill * (1.0 - ample)
    df1 = dfill * ample * _positive(t.f1)
    drefill = df1 * (tokens * params.init_rrp - t.occupied)
    docc = dxraw * t.rho - df1 * t.refill
    drho = dxraw * t.occupied
    old_r += docc * t.pool.gain
    drefill += docc * t.pool.total * params.init_rrp
    dpool = docc * (old.r * t.pool.dgain + t.refill * params.init_rrp * t.pool.dtotal)
    drho -= dpool
    drefill -= dpool
    old_v += drefill / (params.tau_rrp * (old.v + 1.0) * (old.v + 1.0))

    drho *= _within(t.rho_raw, 1.0)
    evoked = _evoked(t.y1, t.y7, params)
    dspike = drho * old.p * evoked
    sp = drho * t.spike * old.p
    old_p += drho * t.spike * evoked
    dsensed = sp * (
        slope1 * t.y1 * (1.0 - t.y1) + slope7 * t.y7 * (1.0 - t.y7)
    ) + drho * params.leak_share * sloped * t.yd * (1.0 - t.yd)
    dc = (dc + dsensed * inv) * _positive(t.c_raw)
    dm = d.m * _within(t.m_raw, 1.0)
    old_m = dm * t.buffer.power
    dmean_calcium = dsensed + params.buf_on * (
        dm * t.buffer.gain
        - dm * (old.m * t.buffer.dpower + params.buf_on * t.mean_calcium * t.buffer.dgain)
    )
    dmean_calcium *= inv
    old_c = dmean_calcium * t.calcium.gain - dsensed * inv + dc * t.calcium.power
    din = dmean_calcium * t.calcium.total + dc * t.calcium.gain
    dretention = (
        dc * old.c * t.calcium.dpower
        + (dmean_calcium * old.c + dc * t.inflow) * t.calcium.dgain
        + dmean_calcium * t.inflow * t.calcium.dtotal
    )
    old_m += dretention * params.buf_on + din * params.buf_off
    ddrive = (
        dspike * t.spike * (1.0 - t.spike) + din * (1.0 - params.tau_c) * params.alpha_ca * t.spike
    )
    grad = State(old_c, old_m, old_r, old_q, old_w, old_v, old_s, old_p, old_a, old_g)
    return grad, ddrive
