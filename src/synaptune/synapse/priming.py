"""Priming: free SNAREs make vesicles fusion-competent; release consumes both.

    S' = S - unprime_per_release x S + nsf_recover (1 - S)              0 <= S' <= 1    (1)
    P' = P + prime_rate S (1 - P) - unprime_per_release x P             0 <= P' <= 1    (2)

S free SNARE share [1], P primed share [1], x released per token [vesicle].
Source: (1) SNARE recycling by NSF, Littleton et al., J Neurosci 21:1421 (2001); (2) priming as in
Neher and Brose, Neuron 100:1283 (2018), first order.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from synaptune.core.parameters import constant
from synaptune.synapse.clock import geometric_sums
from synaptune.synapse.vesicles import VesicleParams

INITIAL_PRIMED = constant(
    "priming.birth",
    0.7,
    meaning="free SNAREs and primed share of a new terminal",
    source="chosen: near rest",
)


class PrimingState(NamedTuple):
    """State of priming per key.

    Attributes:
        snare: free SNARE share S [1].
        primed: primed share P [1].
    """

    snare: Tensor
    primed: Tensor


def priming_step(
    state: PrimingState, released: Tensor, params: VesicleParams, tokens: int
) -> PrimingState:
    """Advance priming by one tick of `tokens` tokens that released `released` vesicles."""
    used = params.unprime_per_release * released / tokens
    power, gain, total = geometric_sums(1.0 - used - params.nsf_recover, tokens)
    snare = (power * state.snare + gain * params.nsf_recover).clamp(0.0, 1.0)  # (1)
    mean_snare = ((gain * state.snare + total * params.nsf_recover) / tokens).clamp(0.0, 1.0)
    rate = params.prime_rate * mean_snare
    power, gain, _ = geometric_sums(1.0 - rate - used, tokens)
    return PrimingState(snare, (power * state.primed + gain * rate).clamp(0.0, 1.0))  # (2)
