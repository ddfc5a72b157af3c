"""What the kernels of the synaptic bias compute once, and the parts of a tick, in Triton.

`start` turns the parameters into the coefficients of a tick, `Rates`. The mechanism files document
the equations and their sources. All values are fp32 in registers.
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


@triton.jit
def invert(x):
    """1 / x of a positive x: two instructions, relative error below 3e-7."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def compute_sums(a, tokens: tl.constexpr, bits: tl.constexpr):
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
def sigmoid(calcium, steep, shift):
    return invert(1.0 + tl.exp2(shift - steep * calcium))


@triton.jit
def sense_doc2(calcium):
    return sigmoid(calcium, DOC2_SLOPE * LOG2_E, DOC2_SLOPE * LOG2_E * DOC2_HALF)


@triton.jit
def evoke(y1, y7):
    return SYT1_SHARE * y1 + SYT7_SHARE * y7


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
    endo = compute_sums(zero + (1.0 - 1.0 / p.endo_delay), tokens, bits)
    back = compute_sums(zero + (1.0 - p.rec_rate), tokens, bits)
    fuel = compute_sums(zero + (1.0 - p.fill), tokens, bits)
    steep1, steep7 = LOG2_E * p.syt1_slope, LOG2_E * p.syt7_slope
    shift1, shift7 = steep1 * p.cpx_thresh, SYT7_CLAMP * steep7 * p.cpx_thresh
    y1, y7 = sigmoid(zero, steep1, shift1), sigmoid(zero, steep7, shift7)
    size = (1.0 + FILL_HALF) * p.init_energy / (p.init_energy + FILL_HALF)
    probability = INITIAL_PRIMED * evoke(y1, y7) + p.doc2_gain * sense_doc2(zero)
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
