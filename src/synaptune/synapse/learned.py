"""Which parameters of the synapse can be learned by gradient, and on which scale.

    value = from_scale(first + sigmoid(GAIN w) (last - first))                                 (1)

w learned weight of a layer, first and last the ends of the parameter's range on the scale of its
search. A value thus stays inside its range and starts at the configured one; a start at an end of
the range begins END_MARGIN inside of it, where the sigmoid has a slope.
Source: (1) chosen: bounds and scales of the search, so that searched and learned values compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from synaptune.core.errors import suggest
from synaptune.core.parameters import SCALES, Spec, constant
from synaptune.synapse.circuit import SPECS, SynapseParams

GAIN = constant(
    "learned.gain",
    10.0,
    meaning="logit of a learned parameter over its weight",
    source="chosen: AdamW moves a weight by the learning rate, which would move a logit too slowly",
)
END_MARGIN = constant(
    "learned.end_margin",
    1e-3,
    meaning="distance of a learned parameter's start from the ends of its range",
    source="chosen: a thousandth of the range",
)
# The equations of these subsystems and of this parameter run outside of the gradient.
_NO_GRADIENT = ("structural", "bdnf", "stochastic")
_NO_GRADIENT_NAMES = ("synapse.postsynaptic.post_slow_lr",)


def list_learned(params: SynapseParams) -> list[Spec]:
    """Return the specs of the learned parameters, in the order of declaration."""
    names = {_complete(name) for name in params.learn}
    return [spec for spec in SPECS if spec.name in names]


def find_learn_faults(params: SynapseParams, unused: Mapping[str, str]) -> list[str]:
    """Return one line for each entry of `learn` that cannot be learned.

    Args:
        params: the parameters.
        unused: by name, why the model does not use a parameter.
    """
    faults, known = [], {spec.name: spec for spec in SPECS}
    for entry in params.learn:
        name = _complete(entry)
        spec = known.get(name)
        reason = None
        if spec is None:
            close = suggest(name, known)
            reason = f"expected parameters such as calcium.tau_c{close}"
        elif spec.scale == "int" or spec.of_run:
            reason = "expected a continuous parameter; this one is an integer"
        elif spec.subsystem in _NO_GRADIENT or name in _NO_GRADIENT_NAMES:
            reason = "expected a parameter with a gradient; this one acts outside of it"
        elif name in unused:
            reason = f"{unused[name]}, or leave the parameter out"
        elif not spec.low <= (value := params.get_value(name)) <= spec.high:
            reason = f"{name}={value:g} is off; expected {spec.low:g} to {spec.high:g}"
        faults += [f"synapse.learn={entry}: {reason}"] if reason else []
    return faults


def get_initial_weight(spec: Spec, value: float) -> float:
    """Return w of (1) that gives a value."""
    first, last = get_scale_ends(spec)
    share = (SCALES[spec.scale][0](value) - first) / (last - first)
    share = min(max(share, END_MARGIN), 1.0 - END_MARGIN)
    return math.log(share / (1.0 - share)) / GAIN


def get_scale_ends(spec: Spec) -> tuple[float, float]:
    """Return first and last of (1)."""
    to_scale = SCALES[spec.scale][0]
    return to_scale(spec.low), to_scale(spec.high)


def _complete(name: str) -> str:
    return name if name.startswith("synapse.") else f"synapse.{name}"
