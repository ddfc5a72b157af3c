"""The presynaptic terminal of one key: its state over the ticks, and its efficacy.

The order of the mechanisms in one tick:
    spikes -> calcium -> sensors -> release -> vesicles, priming, energy -> efficacy
    e = (p + Doc2) R q                                                                          (1)

Source: (1) chosen: the mean effect of a spike is release probability times vesicles times quantal
size, del Castillo and Katz (1954).
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
    """States of the four mechanisms of a terminal; every tensor is (batch, head, key)."""

    calcium: CalciumState
    vesicles: VesicleState
    priming: PrimingState
    energy: EnergyState


def init_terminals(like: Tensor, params: SynapseTensors) -> TerminalState:
    """Return new terminals, one per element of `like` (batch, head, key)."""
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
    """Return e (1) [vesicle]."""
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
    """Advance the terminals by one tick; tensors are (batch, head, key).

    Args:
        state: terminals before the tick.
        drive: drive l of the tick.
        params: parameters of the synapse.
        tokens: tokens of the tick.
        noise: standard normal noise of the release; None for the expected release.

    Returns:
        The next state and its efficacy e [vesicle].
    """
    spike, influx = torch.sigmoid(drive), F.softplus(drive)
    calcium, mean_calcium = calcium_step(state.calcium, influx, params.calcium, tokens)
    rho = release_probability(spike, state.priming.primed, sense(mean_calcium, params.calcium))
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
    next_state = TerminalState(calcium, vesicles, priming, energy)
    return next_state, efficacy(next_state, params) * fluctuation(released, expected)


def terminal_scan(
    drive: Tensor, params: SynapseTensors, tokens: int, noise: Tensor | None = None
) -> Tensor:
    """Return the efficacy of every key in every tick; the reference implementation of kernel.py.

    Only the drive of keys born by tick n, j < (n + 1) tokens, is read. A key born in tick n has the
    efficacy of a new terminal in that tick. Keys born later have it too; attention masks them.

    Args:
        drive: (batch, head, ticks - 1, key), drive of key j in tick n. The drive of the last tick
            would change no output and is left out.
        params: parameters of the synapse.
        tokens: tokens of a tick.
        noise: standard normal noise of the release, shaped as `drive`; None for no noise.

    Returns:
        (batch, head, ticks, key): the efficacy of key j for the queries of tick n [vesicle].
    """
    updates, keys = drive.shape[-2:]
    state = init_terminals(drive.new_zeros(*drive.shape[:-2], keys), params)
    newborn = efficacy(state, params)
    rows = [newborn]
    for n in range(updates):
        born = min((n + 1) * tokens, keys)
        before = map_state(state, lambda value, born=born: value[..., :born])
        eta = None if noise is None else noise[..., n, :born]
        after, e = terminal_step(before, drive[..., n, :born], params, tokens, eta)
        state = map_state(
            state, lambda old, new, born=born: torch.cat([new, old[..., born:]], -1), after
        )
        rows.append(torch.cat([e, newborn[..., born:]], -1))
    return torch.stack(rows, -2)


def map_state(
    state: TerminalState, change: Callable[..., Tensor], *others: TerminalState
) -> TerminalState:
    """Apply `change` to each tensor of the state and the same tensors of `others`."""
    groups = [
        type(group)(*map(change, group, *(other[i] for other in others)))
        for i, group in enumerate(state)
    ]
    return TerminalState(*groups)  # type: ignore[arg-type]
