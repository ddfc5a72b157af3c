"""The attention bias that a synapse adds to a logit.

    bias[n, j] = lambda_loge (log(epsilon + e[n, j]) - log(epsilon + e_birth))
                 + barrier_strength c[j] / T_max                                                (1)

e efficacy [vesicle], e_birth efficacy of a new terminal [vesicle], c[j] time of key j on the clock
of its head (model/distance.py; j + 1 without a clock), T_max context length [token].
A softmax over keys is unchanged by a term that all keys of a row share. So (1) takes the efficacy
relative to that of a new terminal, and of the distance c[t] - c[j] only the part of the key: the
attention is the same.
Source: (1) derived: attention weight times efficacy^lambda, with a linear distance penalty as in
ALiBi, Press et al., arXiv 2108.12409.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from synaptune.core.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AttentionParams:
    """Weights of efficacy and distance in the attention bias."""

    lambda_loge: float = parameter(
        1.0,
        low=0.1,
        high=5.0,
        phase=1,
        neutral=0.0,
        meaning="weight of the log efficacy in the attention logit",
        source="derived: 1 multiplies the attention weight by the efficacy",
    )
    barrier_strength: float = parameter(
        0.1,
        low=0.01,
        high=128.0,
        scale="log",
        phase=1,
        neutral=0.0,
        unit="nat/context",
        meaning="how much less a head attends to a key a full context away",
        source="chosen: a locality prior, nearly off; a plain model is best at 30 to 128",
    )
    epsilon: float = parameter(
        1e-6,
        low=1e-8,
        high=1e-2,
        scale="log",
        meaning="floor of the efficacy inside the logarithm",
        source="chosen: below any live synapse",
    )


def efficacy_bias(efficacy: Tensor, newborn: Tensor, params: AttentionParams) -> Tensor:
    """Return the synaptic part of (1), shaped as `efficacy` [nat].

    Args:
        efficacy: e, (batch, head, tick, key) [vesicle].
        newborn: e_birth, broadcast to the shape of `efficacy` [vesicle].
        params: weights of the bias.
    """
    return params.lambda_loge * (
        (efficacy + params.epsilon).log() - (newborn + params.epsilon).log()
    )


def distance_bias(time: Tensor, params: AttentionParams, *, context: int) -> Tensor:
    """Return the distance part of (1), shaped as `time` [nat].

    Args:
        time: c of the keys [token].
        params: weights of the bias.
        context: T_max, fixed by the model [token].
    """
    return params.barrier_strength * time / context
