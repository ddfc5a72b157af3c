"""All parameters of the synapse: as numbers for the configuration, as tensors for the equations.

terminal.py (presynaptic), fast_weights.py (postsynaptic) and experts.py (structural) document the
order of the mechanisms.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from synaptune.core.parameters import list_specs, lookup
from synaptune.synapse.bias import AttentionParams
from synaptune.synapse.calcium import CalciumParams
from synaptune.synapse.energy import EnergyParams
from synaptune.synapse.experts import StructuralParams
from synaptune.synapse.kinase import PostsynapticParams
from synaptune.synapse.metaplasticity import BdnfParams
from synaptune.synapse.release import StochasticParams
from synaptune.synapse.vesicles import VesicleParams


@dataclass(frozen=True)
class SynapseParams:
    """Parameters of the synapse by subsystem, as the numbers of a configuration."""

    calcium: CalciumParams = field(default_factory=CalciumParams)
    vesicles: VesicleParams = field(default_factory=VesicleParams)
    energy: EnergyParams = field(default_factory=EnergyParams)
    postsynaptic: PostsynapticParams = field(default_factory=PostsynapticParams)
    bdnf: BdnfParams = field(default_factory=BdnfParams)
    stochastic: StochasticParams = field(default_factory=StochasticParams)
    structural: StructuralParams = field(default_factory=StructuralParams)
    attention: AttentionParams = field(default_factory=AttentionParams)

    def with_values(self, values: dict[str, float]) -> SynapseParams:
        """Return a copy with parameters set by their full names (`synapse.calcium.tau_c`)."""
        params: Any = self
        for name, value in values.items():
            _, subsystem, label = name.split(".")
            group = dataclasses.replace(getattr(params, subsystem), **{label: value})
            params = dataclasses.replace(params, **{subsystem: group})
        return params

    def get_value(self, name: str) -> float:
        """Return the value of one parameter by its full name."""
        return lookup(self, name.removeprefix("synapse."))


SPECS = tuple(list_specs(SynapseParams))


class SynapseTensors(nn.Module):
    """Parameters of the synapse as 0-dim tensors, with the attribute paths of `SynapseParams`.

    The tensors are non-persistent buffers. The equations read them, so one compiled program serves
    all candidates. A buffer with a leading axis gives a population; an `nn.Parameter` in its place
    makes the value learnable. The annotations name the dataclass whose attribute names a subsystem
    has; the attribute values are tensors.
    """

    calcium: CalciumParams
    vesicles: VesicleParams
    energy: EnergyParams
    postsynaptic: PostsynapticParams
    bdnf: BdnfParams
    stochastic: StochasticParams
    structural: StructuralParams
    attention: AttentionParams

    def __init__(self, params: SynapseParams) -> None:
        super().__init__()
        for group in dataclasses.fields(params):
            subsystem, values = nn.Module(), getattr(params, group.name)
            for item in dataclasses.fields(values):
                value = torch.tensor(float(getattr(values, item.name)))
                subsystem.register_buffer(item.name, value, persistent=False)
            self.add_module(group.name, subsystem)
