"""The presynaptic terminal: one key position, its state over the ticks, and the efficacy a query meets.

The order of the mechanisms in one tick:
    spikes -> calcium -> sensors -> release -> vesicles, priming, energy -> efficacy of the next spike
    e = (p + Doc2) R q                                                                                          (1)

Source: (1) chosen: a spike's mean effect is release probability times vesicles times quantal size, del Castillo and Katz (1954).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from synaptune.synapse.calcium import CalciumState, calcium_step
from synaptune.synapse.energy import EnergyState, energy_step, quantal_size
from synaptune.synapse.priming import INITIAL_PRIMED, PrimingState, priming_step
from synaptune.synapse.release import draw_release, fluctuation, release_probability, sense
from synaptune.synapse.vesicles import VesicleFlow, VesicleState, vesicle_flow, vesicle_step

if TYPE_CHECKING:
    from synaptune.synapse.tensors import SynapseTensors


class TerminalState(NamedTuple):
    """The four mechanisms of a terminal; every tensor is (batch, head, key)."""

    calcium: CalciumState
    vesicles: VesicleState
    priming: PrimingState
    energy: EnergyState


def init_terminals(like: Tensor, params: SynapseTensors) -> TerminalState:
    """New terminals, one per element of `like` (batch, head, key)."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    vesicles = VesicleState(
        one * params.vesicles.init_rrp, zero, zero, one * params.vesicles.init_reserve
    )
    primed = one * INITIAL_PRIMED
    return TerminalState(
        CalciumState(zero, zero),
        vesicles,
        PrimingState(primed, primed),
        EnergyState(one * params.energy.init_energy, one),
    )


def efficacy(state: TerminalState, params: SynapseTensors) -> Tensor:
    """e (1) [vesicle]."""
    sensors = sense(state.calcium.free, params.calcium)
    probability = state.priming.primed * sensors.evoked + sensors.asynchronous
    return probability * state.vesicles.ready * quantal_size(state.energy)


def terminal_step(
    state: TerminalState,
    drive: Tensor,
    params: SynapseTensors,
    tokens: int,
    noise: Tensor | None = None,
) -> tuple[TerminalState, Tensor]:
    """(state, drive l, params, tokens of the tick, noise or None) -> (next state, efficacy e); tensors (batch, head, key)."""
    spike, influx = torch.sigmoid(drive), F.softplus(drive)
    calcium, seen = calcium_step(state.calcium, influx, params.calcium, tokens)
    rho = release_probability(spike, state.priming.primed, sense(seen, params.calcium))
    expected, refilled = vesicle_flow(state.vesicles, rho, params.vesicles, tokens)
    released = (
        expected
        if noise is None
        else draw_release(expected, state.vesicles.ready + refilled, noise)
    )
    vesicles = vesicle_step(
        state.vesicles, VesicleFlow(released, refilled), params.vesicles, tokens
    )
    priming = priming_step(state.priming, released, params.vesicles, tokens)
    energy = energy_step(state.energy, released, params.energy, tokens)
    following = TerminalState(calcium, vesicles, priming, energy)
    return following, efficacy(following, params) * fluctuation(released, expected)


def terminal_scan(
    drive: Tensor, params: SynapseTensors, tokens: int, noise: Tensor | None = None
) -> Tensor:
    """Efficacy that the queries of tick n meet at key j, (batch, head, ticks, key); the slow reference of kernel.py.

    drive: (batch, head, ticks - 1, key), drive of key j in tick n; the last tick's has no query to serve and is left out. Only
    keys born by then (j < (n + 1) tokens) are read. Keys born in tick n meet its queries with the efficacy of birth; later
    ones hold it too (attention never looks there).
    """
    updates, keys = drive.shape[-2:]
    state = init_terminals(drive.new_zeros(*drive.shape[:-2], keys), params)
    newborn = efficacy(state, params)
    rows = [newborn]
    for n in range(updates):
        born = min((n + 1) * tokens, keys)
        part = map_state(state, lambda value, born=born: value[..., :born])
        eta = None if noise is None else noise[..., n, :born]
        moved, e = terminal_step(part, drive[..., n, :born], params, tokens, eta)
        state = map_state(
            state, lambda old, new, born=born: torch.cat([new, old[..., born:]], -1), moved
        )
        rows.append(torch.cat([e, newborn[..., born:]], -1))
    return torch.stack(rows, -2)


def map_state(
    state: TerminalState, change: Callable[..., Tensor], *others: TerminalState
) -> TerminalState:
    """The state with `change` applied to each of its tensors, next to those of `others`."""
    groups = [
        type(group)(*map(change, group, *(other[i] for other in others)))
        for i, group in enumerate(state)
    ]
    return TerminalState(*groups)  # type: ignore[arg-type]
