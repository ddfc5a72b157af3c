"""Parameters of the synapse that each layer learns by gradient (synapse/learned.py, eq. (1))."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn

from synaptune.core.parameters import Spec
from synaptune.synapse.circuit import SUBSYSTEMS, SynapseParams
from synaptune.synapse.learned import GAIN, get_initial_weight, get_scale_ends, list_learned
from synaptune.synapse.tensors import SynapseTensors


class LearnedParameters(nn.Module):
    """One weight per layer for each learned parameter.

    Args:
        params: the numbers at which the parameters start, and which of them are learned.
        layers: layers of the model.
    """

    def __init__(self, params: SynapseParams, layers: int) -> None:
        super().__init__()
        self.specs = list_learned(params)
        self.weights = nn.ParameterList(
            torch.full((layers,), get_initial_weight(spec, params.get_value(spec.name)))
            for spec in self.specs
        )

    def compute_values(self) -> dict[str, Tensor]:
        """Return the values (1) by name, each (layer,)."""
        return {
            spec.name: _compute_value(spec, weight)
            for spec, weight in zip(self.specs, self.weights, strict=True)
        }

    def substitute(self, tensors: SynapseTensors, layer: int) -> SynapseTensors:
        """Return the parameters of a layer: `tensors`, with its learned values in their place."""
        groups = {
            name: SimpleNamespace(**dict(getattr(tensors, name).named_buffers()))
            for name in SUBSYSTEMS
        }
        for spec, weight in zip(self.specs, self.weights, strict=True):
            setattr(groups[spec.subsystem], spec.label, _compute_value(spec, weight[layer]))
        return cast(SynapseTensors, SimpleNamespace(**groups))


def _compute_value(spec: Spec, weight: Tensor) -> Tensor:
    first, last = get_scale_ends(spec)
    coordinate = first + (GAIN * weight).sigmoid() * (last - first)
    value = coordinate
    if spec.scale == "log":
        value = coordinate.exp()
    elif spec.scale == "decay":
        value = -torch.expm1(-coordinate)
    return value.clamp(spec.low, spec.high)  # rounding may leave the range
