"""The parameters of the synapse by subsystem, as the numbers of a configuration; tensors.py has them as tensors.

The order of the mechanisms stands in terminal.py (presynaptic), fast_weights.py (postsynaptic) and experts.py (structural).
The modules imported here hold parameters and equations side by side. They import torch inside the
functions that need it, so that a configuration can be composed without it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

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
