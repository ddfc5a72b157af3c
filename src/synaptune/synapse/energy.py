"""Energy and quantal size: release consumes ATP and adds AMPA receptors on the postsynaptic side.

    A' = A + energy_fill (energy_max - A) - energy_use x        A' >= 0                 (1)
    G' = G + amp_load x (2 - G) - amp_leak G                    0 <= G' <= 2            (2)
    q = G * 1.25 A / (A + 0.25)                                                         (3)

A ATP [1], G AMPA density [1], x released per token [vesicle], q quantal size [1] (1 at A = G = 1).
Source: (1) ATP cost of release, Attwell and Laughlin, J Cereb Blood Flow Metab 21:1133 (2001);
(2) activity-dependent AMPA insertion with saturation; (3) Michaelis-Menten filling of the vesicle.
Rates chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import constant, parameter
from synaptune.synapse.clock import geometric_sums

if TYPE_CHECKING:
    from torch import Tensor

AMPA_CEILING = constant(
    "energy.ampa_ceiling",
    2.0,
    meaning="largest AMPA density",
    source="chosen: twice that of a new synapse",
)
FILL_HALF = constant(
    "energy.fill_half",
    0.25,
    meaning="ATP at which a vesicle fills half-way",
    source="chosen: a quarter of the resting level",
)


@dataclass(frozen=True)
class EnergyParams:
    """Energy of the terminal; the experts use the same energy_fill and energy_max."""

    energy_fill: float = parameter(
        0.02,
        low=0.002,
        high=0.1,
        scale="log",
        unit="1/token",
        meaning="share of the missing energy restored per token",
        source="chosen: recovery over fifty tokens",
    )
    energy_use: float = parameter(
        0.02,
        low=0.002,
        high=0.1,
        scale="log",
        unit="1/vesicle",
        meaning="energy per released vesicle",
        source="chosen: one vesicle per token is the steady limit",
    )
    energy_max: float = parameter(
        1.0, low=0.5, high=2.0, meaning="energy at rest", source="chosen: the unit of energy"
    )
    init_energy: float = parameter(
        0.85,
        low=0.2,
        high=1.0,
        meaning="energy of a new terminal",
        source="chosen: a little below rest",
    )
    amp_load: float = parameter(
        0.02,
        low=0.002,
        high=0.1,
        scale="log",
        unit="1/vesicle",
        meaning="AMPA gained per released vesicle",
        source="chosen: tens of vesicles to potentiate",
    )
    amp_leak: float = parameter(
        0.006,
        low=0.001,
        high=0.05,
        scale="log",
        unit="1/token",
        meaning="AMPA lost per token",
        source="chosen: over a hundred tokens",
    )


class EnergyState(NamedTuple):
    """State of energy and receptors per key.

    Attributes:
        energy: energy A [1].
        ampa: AMPA density G [1].
    """

    energy: Tensor
    ampa: Tensor


def energy_step(
    state: EnergyState, released: Tensor, params: EnergyParams, tokens: int
) -> EnergyState:
    """Advance energy by one tick of `tokens` tokens that released `released` vesicles."""
    per_token = released / tokens
    power, gain, _ = geometric_sums(1.0 - params.energy_fill, tokens)
    energy = power * state.energy + gain * (
        params.energy_fill * params.energy_max - params.energy_use * per_token
    )  # (1)
    load = params.amp_load * per_token
    power, gain, _ = geometric_sums(1.0 - load - params.amp_leak, tokens)
    ampa = power * state.ampa + gain * AMPA_CEILING * load  # (2)
    return EnergyState(energy.clamp(min=0.0), ampa.clamp(0.0, AMPA_CEILING))


def quantal_size(state: EnergyState) -> Tensor:
    """Return q (3)."""
    return state.ampa * (1.0 + FILL_HALF) * state.energy / (state.energy + FILL_HALF)
