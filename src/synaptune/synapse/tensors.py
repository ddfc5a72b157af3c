"""The parameters of the synapse as tensors, for the equations."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from synaptune.synapse.bias import AttentionParams
from synaptune.synapse.calcium import CalciumParams
from synaptune.synapse.circuit import SUBSYSTEMS, SynapseParams
from synaptune.synapse.energy import EnergyParams
from synaptune.synapse.experts import StructuralParams
from synaptune.synapse.kinase import PostsynapticParams
from synaptune.synapse.metaplasticity import BdnfParams
from synaptune.synapse.release import StochasticParams
from synaptune.synapse.vesicles import VesicleParams


class SynapseTensors(nn.Module):
    """Parameters of the synapse as 0-dim tensors, with the attribute paths of `SynapseParams`.

    The tensors are non-persistent buffers. The equations read them, so one compiled program serves
    all candidates. A buffer with a leading axis gives a population. The annotations name the
    dataclass whose attribute names a subsystem has; the attribute values are tensors.
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
        for group in SUBSYSTEMS:
            subsystem, values = nn.Module(), getattr(params, group)
            for item in dataclasses.fields(values):
                value = torch.tensor(float(getattr(values, item.name)))
                subsystem.register_buffer(item.name, value, persistent=False)
            self.add_module(group, subsystem)
