"""The synapse as a whole: its parameters by subsystem, as numbers for the configuration and as tensors for the equations.

The order of the mechanisms stands in terminal.py (presynaptic), fast_weights.py (postsynaptic) and experts.py (structural).
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
    """Every parameter of the synapse, by subsystem; the numbers of a configuration."""

    calcium: CalciumParams = field(default_factory=CalciumParams)
    vesicles: VesicleParams = field(default_factory=VesicleParams)
    energy: EnergyParams = field(default_factory=EnergyParams)
    postsynaptic: PostsynapticParams = field(default_factory=PostsynapticParams)
    bdnf: BdnfParams = field(default_factory=BdnfParams)
    stochastic: StochasticParams = field(default_factory=StochasticParams)
    structural: StructuralParams = field(default_factory=StructuralParams)
    attention: AttentionParams = field(default_factory=AttentionParams)

    def with_values(self, values: dict[str, float]) -> SynapseParams:
        """A copy with some parameters set by their full names (`synapse.calcium.tau_c`)."""
        changed: Any = self
        for name, value in values.items():
            _, subsystem, label = name.split(".")
            group = dataclasses.replace(getattr(changed, subsystem), **{label: value})
            changed = dataclasses.replace(changed, **{subsystem: group})
        return changed

    def get_value(self, name: str) -> float:
        """The value of one parameter by its full name."""
        return lookup(self, name.removeprefix("synapse."))


SPECS = tuple(list_specs(SynapseParams))


class SynapseTensors(nn.Module):
    """The same parameters as 0-dim tensors (non-persistent buffers), with the attribute paths of `SynapseParams`.

    The equations read these, so one program serves every candidate; replacing a buffer by a tensor with leading axes makes a
    population, replacing it by an `nn.Parameter` makes it learnable. The annotations name the dataclass whose attributes a subsystem
    has; what the attributes hold are tensors.
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
