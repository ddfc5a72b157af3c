"""The vesicle cycle: ready -> released -> endocytosed -> recycling -> reserve -> ready.

    x = R clamp(rho, 0, 1)                                       released per token             (1)
    f = (init_rrp - R)+ / tau_rrp * V / (V + 1)                  refill per token               (2)
    R' = R - x + f        Q' = Q + x - Q / endo_delay                                           (3)
    W' = W + Q / endo_delay - rec_rate W        V' = V + rec_rate W - f                         (4)

R ready, Q endocytosing, W recycling, V reserve [vesicle]; rho release probability per token and
vesicle [1]. R + Q + W + V is conserved.
Source: (1)-(4) the vesicle cycle of Rizzoli and Betz, Nat Rev Neurosci 6:57 (2005), pools as
compartments; depletion and refill as in Tsodyks and Markram, PNAS 94:719 (1997), with the refill
limited by the reserve (half-saturation at one vesicle, chosen).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import parameter
from synaptune.synapse.clock import geometric_sums

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VesicleParams:
    """Pool sizes and rates of the vesicle cycle, and rates of priming (priming.py)."""

    tau_rrp: float = parameter(
        40.0,
        low=10.0,
        high=100.0,
        scale="log",
        unit="token",
        phase=1,
        meaning="refill time of the ready pool",
        source="chosen: recovery over some fifty tokens after a burst",
    )
    rec_rate: float = parameter(
        0.06,
        low=0.01,
        high=0.3,
        scale="log",
        unit="1/token",
        meaning="return rate of the recycling pool to the reserve",
        source="chosen: about the refill time",
    )
    prime_rate: float = parameter(
        0.075,
        low=0.01,
        high=0.3,
        scale="log",
        unit="1/token",
        meaning="priming rate by free SNAREs",
        source="chosen: balances unpriming at rest",
    )
    unprime_per_release: float = parameter(
        0.05,
        low=0.005,
        high=0.3,
        scale="log",
        unit="1/vesicle",
        meaning="SNAREs and priming used per released vesicle",
        source="chosen: a full release of the pool uses a third",
    )
    nsf_recover: float = parameter(
        0.08,
        low=0.01,
        high=0.3,
        scale="log",
        unit="1/token",
        meaning="rate of SNARE recovery by NSF",
        source="chosen: as fast as priming, so neither limits alone",
    )
    endo_delay: int = parameter(
        3,
        low=1,
        high=12,
        scale="int",
        unit="token",
        meaning="mean dwell time of an endocytosed vesicle",
        source="chosen: fast endocytosis, Watanabe et al., Nature 504:242 (2013)",
    )
    init_rrp: float = parameter(
        6.0,
        low=1.0,
        high=20.0,
        scale="log",
        unit="vesicle",
        meaning="ready vesicles of a new terminal, and the pool's capacity",
        source="chosen: about ten in a hippocampal bouton, Schikorski and Stevens, "
        "J Neurosci 17:5858 (1997)",
    )
    init_reserve: float = parameter(
        18.0,
        low=2.0,
        high=60.0,
        scale="log",
        unit="vesicle",
        meaning="reserve vesicles of a new terminal",
        source="chosen: three ready pools",
    )


class VesicleState(NamedTuple):
    """Vesicle pools per key.

    Attributes:
        ready: R [vesicle].
        endocytosing: Q [vesicle].
        recycling: W [vesicle].
        reserve: V [vesicle].
    """

    ready: Tensor
    endocytosing: Tensor
    recycling: Tensor
    reserve: Tensor


class VesicleFlow(NamedTuple):
    """Flow through the ready pool in a tick.

    Attributes:
        released: vesicles that leave the pool [vesicle].
        refilled: vesicles that enter the pool [vesicle].
    """

    released: Tensor
    refilled: Tensor


def vesicle_flow(
    state: VesicleState, probability: Tensor, params: VesicleParams, tokens: int
) -> VesicleFlow:
    """Return the expected release (1) and the refill (2) of a tick; both run at the same time.

    Args:
        state: pools before the tick.
        probability: rho of the tick [1/token].
        params: parameters of the vesicle cycle.
        tokens: tokens of the tick.
    """
    refill = state.reserve / (state.reserve + 1.0) / params.tau_rrp
    _, gain, total = geometric_sums(1.0 - probability - refill, tokens)
    # The sum of R over the tokens of the tick.
    occupied = gain * state.ready + total * refill * params.init_rrp
    refilled = (refill * (tokens * params.init_rrp - occupied)).clamp(min=0.0)
    # The refill of a whole tick cannot exceed the reserve.
    refilled = refilled.minimum(state.reserve)
    return VesicleFlow((probability * occupied).minimum(state.ready + refilled), refilled)


def vesicle_step(
    state: VesicleState, flow: VesicleFlow, params: VesicleParams, tokens: int
) -> VesicleState:
    """Advance the pools by one tick (3, 4); the outflow of a pool is the inflow of the next."""
    import torch

    released, refilled = flow
    power, gain, _ = geometric_sums(1.0 - 1.0 / torch.as_tensor(params.endo_delay), tokens)
    endocytosing = power * state.endocytosing + gain * released / tokens
    recovered = (state.endocytosing + released - endocytosing).clamp(min=0.0)
    power, gain, _ = geometric_sums(1.0 - torch.as_tensor(params.rec_rate), tokens)
    recycling = power * state.recycling + gain * recovered / tokens
    returned = (state.recycling + recovered - recycling).clamp(min=0.0)
    ready = (state.ready - released + refilled).clamp(min=0.0)
    return VesicleState(ready, endocytosing, recycling, state.reserve + returned - refilled)
