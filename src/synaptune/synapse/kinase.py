"""CaMKII and PP1: the switch that decides how much of an activity becomes a weight.

    s(z) = sigmoid(8 z)
    m' = m + camkii_up s(ca - camkii_thr) (1 - m) - camkii_down s(camkii_thr - ca) m            (1)
    g' = pp1_tau g + (1 - pp1_tau) s(pp1_thr - ca)                                              (2)
    gate = sigmoid(4 (m - g))                                                                   (3)

m CaMKII, g PP1, ca postsynaptic calcium, all per row of the memory [1].
Source: (1)-(3) the kinase-phosphatase switch of Lisman, PNAS 86:9574 (1989), reduced to two
first-order variables; slopes chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import constant, parameter
from synaptune.synapse.clock import geometric_sums, linear_scan

if TYPE_CHECKING:
    from torch import Tensor

SWITCH_SLOPE = constant(
    "kinase.switch_slope",
    8.0,
    meaning="steepness of the calcium switch s",
    source="chosen: half-width 0.14",
)
GATE_SLOPE = constant(
    "kinase.gate_slope",
    4.0,
    meaning="steepness of the gate in m - g",
    source="chosen: 0.98 at full CaMKII",
)


@dataclass(frozen=True)
class PostsynapticParams:
    """The fast-weight memory and its gate (eligibility.py, kinase.py, fast_weights.py)."""

    rank_eligibility: int = parameter(
        8,
        low=4,
        high=32,
        scale="int",
        unit="row",
        phase=1,
        meaning="rank of the memory",
        source="chosen: an eighth of the laptop width",
    )
    post_fast_decay: float = parameter(
        0.95,
        low=0.7,
        high=0.9999,
        scale="decay",
        unit="1/token",
        meaning="fast weights retained per token",
        source="chosen: twenty tokens",
    )
    post_fast_lr: float = parameter(
        1.5e-3,
        low=1e-4,
        high=1e-2,
        scale="log",
        unit="1/token",
        phase=1,
        meaning="size of a write, as a hundredth of the difference that it makes up",
        source="chosen: a write of 0.15 with the gate open",
    )
    post_slow_lr: float = parameter(
        5e-4,
        low=1e-5,
        high=1e-2,
        scale="log",
        unit="1/step",
        meaning="consolidation of fast into slow weights per optimizer step",
        source="chosen: thousands of steps",
    )
    post_trace_decay: float = parameter(
        0.0,
        low=0.0,
        high=0.995,
        unit="1/token",
        meaning="eligibility retained per token, which delays a write",
        source="chosen: a write acts at once",
    )
    camkii_up: float = parameter(
        0.05,
        low=0.01,
        high=0.2,
        scale="log",
        unit="1/token",
        phase=1,
        meaning="CaMKII autophosphorylation above its threshold",
        source="chosen: twenty tokens of sustained calcium",
    )
    camkii_down: float = parameter(
        0.02,
        low=0.002,
        high=0.1,
        scale="log",
        unit="1/token",
        meaning="CaMKII dephosphorylation below its threshold",
        source="chosen: slower than its activation",
    )
    pp1_tau: float = parameter(
        0.985,
        low=0.9,
        high=0.999,
        unit="1/token",
        meaning="PP1 retained per token",
        source="chosen: slow",
    )
    camkii_thr: float = parameter(
        1.0,
        low=0.3,
        high=2.0,
        meaning="calcium that switches CaMKII on",
        source="chosen: above the PP1 threshold",
    )
    pp1_thr: float = parameter(
        0.7,
        low=0.1,
        high=1.5,
        meaning="calcium below which PP1 is active",
        source="chosen: below the CaMKII threshold",
    )


class KinaseState(NamedTuple):
    """State of the switch per row.

    Attributes:
        camkii: CaMKII m [1].
        pp1: PP1 g [1].
    """

    camkii: Tensor
    pp1: Tensor


def kinase_step(
    state: KinaseState, calcium: Tensor, params: PostsynapticParams, tokens: int
) -> KinaseState:
    """Advance m and g by one tick of `tokens` tokens with postsynaptic calcium `calcium` (1, 2)."""
    up, retention = camkii_flow(calcium, params)
    power, gain, _ = geometric_sums(retention, tokens)
    camkii = power * state.camkii + gain * up
    power, _, _ = geometric_sums(params.pp1_tau, tokens)
    return KinaseState(camkii, power * state.pp1 + (1.0 - power) * switch(params.pp1_thr - calcium))


def kinase_scan(calcium: Tensor, params: PostsynapticParams, tokens: int) -> KinaseState:
    """Return m and g after each tick, starting from 0; equals repeated `kinase_step`.

    `calcium` and both results are (batch, tick, rank).
    """
    import torch

    up, retention = camkii_flow(calcium, params)
    power, gain, _ = geometric_sums(retention, tokens)
    slow, _, _ = geometric_sums(params.pp1_tau, tokens)
    inactive = (1.0 - slow) * switch(params.pp1_thr - calcium)
    # One scan over the rows of both: on a CPU the number of operations decides.
    both = linear_scan(
        torch.cat([power, slow.expand_as(inactive)], -1), torch.cat([gain * up, inactive], -1)
    )
    return KinaseState(*both.chunk(2, -1))


def camkii_flow(calcium: Tensor, params: PostsynapticParams) -> tuple[Tensor, Tensor]:
    """Return drive and retention of m in (1), per token."""
    up = params.camkii_up * switch(calcium - params.camkii_thr)
    return up, 1.0 - up - params.camkii_down * switch(params.camkii_thr - calcium)


def switch(z: Tensor) -> Tensor:
    """Return s(z), the calcium switch."""
    return (SWITCH_SLOPE * z).sigmoid()


def gate(state: KinaseState) -> Tensor:
    """Return the share of a write that becomes a weight (3), per row."""
    return (GATE_SLOPE * (state.camkii - state.pp1)).sigmoid()


def mean_gate(gates: Tensor, params: PostsynapticParams) -> Tensor:
    """Return the mean gate over the rows in use, the first `rank_eligibility` of the last axis."""
    import torch

    used = torch.arange(gates.shape[-1], device=gates.device) < params.rank_eligibility
    return (gates * used).sum(-1) / used.sum()
