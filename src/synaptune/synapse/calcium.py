"""Presynaptic calcium: influx by spikes, decay, and binding by a buffer.

    C' = tau_c C + (1 - tau_c) alpha_ca u - alpha_buf_on C (1 - M) + alpha_buf_off M            (1)
    M' = tau_buf M + alpha_buf_on C (1 - M) - alpha_buf_off M                                   (2)
    C' >= 0,  0 <= M' <= 1

C free calcium [1], M bound share of the buffer [1], u calcium drive of the tick [1].
Source: (1) leaky integration of calcium influx as in Tsodyks and Markram, PNAS 94:719 (1997), with
the endogenous buffer of Neher, Cell Calcium 24:345 (1998); (2) its binding kinetics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import parameter
from synaptune.synapse.clock import geometric_sums

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CalciumParams:
    """Influx, decay and buffering of calcium, and the calcium sensors of release.py."""

    tau_c: float = parameter(
        0.85,
        low=0.5,
        high=0.99,
        unit="1/token",
        meaning="calcium retained per token",
        source="chosen: about 4 tokens of half-life",
    )
    alpha_ca: float = parameter(
        0.55,
        low=0.1,
        high=2.0,
        scale="log",
        phase=1,
        meaning="calcium influx per unit of drive",
        source="chosen: a driven terminal reaches the complexin threshold",
    )
    syt1_slope: float = parameter(
        8.0,
        low=2.0,
        high=20.0,
        phase=1,
        meaning="steepness of the fast sensor synaptotagmin 1",
        source="chosen: cooperativity of evoked release, Schneggenburger and Neher, "
        "Nature 406:889 (2000)",
    )
    syt7_slope: float = parameter(
        3.0,
        low=1.0,
        high=10.0,
        meaning="steepness of the slow sensor synaptotagmin 7",
        source="chosen: shallower than synaptotagmin 1, Jackman et al., Nature 529:88 (2016)",
    )
    cpx_thresh: float = parameter(
        0.55,
        low=0.1,
        high=1.5,
        meaning="calcium at which the complexin clamp opens half-way",
        source="chosen: reached by a terminal driven at threshold",
    )
    doc2_gain: float = parameter(
        0.08,
        low=0.005,
        high=0.3,
        scale="log",
        meaning="asynchronous release by Doc2",
        source="chosen: a tenth of evoked release, Yao et al., Cell 147:666 (2011)",
    )
    tau_buf: float = parameter(
        0.92,
        low=0.5,
        high=0.99,
        unit="1/token",
        meaning="bound calcium retained per token",
        source="chosen: slower than free calcium",
    )
    alpha_buf_on: float = parameter(
        0.1,
        low=0.01,
        high=0.5,
        scale="log",
        unit="1/token",
        meaning="binding rate of the calcium buffer",
        source="chosen: a few per cent of calcium bound per token",
    )
    alpha_buf_off: float = parameter(
        0.1,
        low=0.01,
        high=0.5,
        scale="log",
        unit="1/token",
        meaning="unbinding rate of the calcium buffer",
        source="chosen: balances alpha_buf_on",
    )


class CalciumState(NamedTuple):
    """Calcium per key.

    Attributes:
        free: free calcium C [1].
        bound: bound share M of the buffer [1].
    """

    free: Tensor
    bound: Tensor


def calcium_step(
    state: CalciumState, drive: Tensor, params: CalciumParams, tokens: int
) -> tuple[CalciumState, Tensor]:
    """Advance calcium by one tick.

    Args:
        state: calcium before the tick.
        drive: calcium drive u of the tick [1].
        params: parameters of calcium.
        tokens: tokens of the tick.

    Returns:
        The next state and the mean free calcium at the sensors over the tick [1].
    """
    on, off = params.alpha_buf_on, params.alpha_buf_off
    influx = (1.0 - params.tau_c) * params.alpha_ca * drive
    power, gain, total = geometric_sums(params.tau_c - on * (1.0 - state.bound), tokens)
    inflow = influx + off * state.bound
    free = (power * state.free + gain * inflow).clamp(min=0.0)  # (1)
    mean = (gain * state.free + total * inflow) / tokens  # over C_0 .. C_(c-1)
    power, gain, _ = geometric_sums(params.tau_buf - on * mean - off, tokens)
    bound = (power * state.bound + gain * on * mean).clamp(0.0, 1.0)  # (2)
    # The sensors read the calcium after the influx of each token: the mean over C_1 .. C_c.
    sensed = mean + (free - state.free) / tokens
    return CalciumState(free, bound), sensed
