"""The parameters of the synapse as tensors, for the equations."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from synaptune.synapse.bias import AttentionParams
from synaptune.synapse.calcium import CalciumParams
from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.energy import EnergyParams
from synaptune.synapse.experts import StructuralParams
from synaptune.synapse.kinase import PostsynapticParams
from synaptune.synapse.metaplasticity import BdnfParams
from synaptune.synapse.release import StochasticParams
from synaptune.synapse.vesicles import VesicleParams


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
