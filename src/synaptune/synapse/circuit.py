"""All parameters of the synapse, as numbers for the configuration; tensors.py makes them tensors.

terminal.py (presynaptic), fast_weights.py (postsynaptic) and experts.py (structural) document the
order of the mechanisms. The modules imported here hold parameters beside their equations. They
import torch inside the functions that need it, so that no configuration has to wait for torch.
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
    """Parameters of the synapse by subsystem, as the numbers of a configuration.

    Attributes:
        learn: parameters that each layer learns by gradient, such as `calcium.tau_c`
            (synapse/learned.py).
    """

    calcium: CalciumParams = field(default_factory=CalciumParams)
    vesicles: VesicleParams = field(default_factory=VesicleParams)
    energy: EnergyParams = field(default_factory=EnergyParams)
    postsynaptic: PostsynapticParams = field(default_factory=PostsynapticParams)
    bdnf: BdnfParams = field(default_factory=BdnfParams)
    stochastic: StochasticParams = field(default_factory=StochasticParams)
    structural: StructuralParams = field(default_factory=StructuralParams)
    attention: AttentionParams = field(default_factory=AttentionParams)
    learn: tuple[str, ...] = ()

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


SUBSYSTEMS: dict[str, Any] = {
    item.name: item.default_factory
    for item in dataclasses.fields(SynapseParams)
    if item.default_factory is not dataclasses.MISSING
}
SPECS = tuple(list_specs(SynapseParams))
