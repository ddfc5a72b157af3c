"""Noise of training on the attention weights: release per event, and dropout as its control.

Each (query, key) event multiplies an attention weight by a factor of its own:

    event    max(0, 1 + s xi) on a share `stochastic_train_frac` of the events, else 1           (1)
             s^2 = (1 - p) / (n p)        xi standard normal
    dropout  0 with probability `model.dropout`, else 1 / (1 - model.dropout)                    (2)

n = init_rrp vesicles at rest, p release probability per vesicle: e / n of the terminal where the
release is dynamic (e holds its depletion too), else that of a new terminal at the defaults.
Source: (1) coefficient of variation of binomial release, del Castillo and Katz, J Physiol 124:560
(1954); (2) Srivastava et al., JMLR 15:1929 (2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

from synaptune.core.parameters import constant
from synaptune.model.attention import upcast
from synaptune.synapse.release import draw_noise
from synaptune.synapse.tensors import SynapseTensors

RESTING_PROBABILITY = constant(
    "noise.resting_probability",
    0.077,
    meaning="release probability per vesicle of an event without dynamic release",
    source="derived: efficacy of a new terminal at the defaults over its vesicles",
)
LOWEST_PROBABILITY = constant(
    "noise.lowest_probability",
    0.01,
    meaning="floor of the release probability in the noise of an event",
    source="chosen: bounds the spread of a factor",
)


def draw_attention_noise(
    q: Tensor,
    efficacy: Tensor | None,
    params: SynapseTensors,
    generator: torch.Generator,
    *,
    is_event: bool,
    dropout: float,
    tick: int,
) -> Tensor:
    """Draw the factors (1) and (2) of the attention weights, (batch, head, token, token).

    Args:
        q: queries, (batch, head, token, d).
        efficacy: e, (batch, head, tick, key) [vesicle]; None without dynamic release.
        params: parameters of the synapse.
        generator: source of the draws.
        is_event: draw (1).
        dropout: probability of (2).
        tick: tokens of a tick.
    """
    length, like = q.shape[2], upcast(q)
    shape = (*q.shape[:3], length)
    factor = torch.ones((), device=q.device, dtype=like.dtype)
    if is_event:
        factor = _draw_events(shape, efficacy, params, generator, like, tick)
    if dropout > 0.0:
        kept = torch.rand(shape, generator=generator, device=q.device, dtype=like.dtype) >= dropout
        factor = factor * kept / (1.0 - dropout)
    return factor


def _draw_events(
    shape: tuple[int, ...],
    efficacy: Tensor | None,
    params: SynapseTensors,
    generator: torch.Generator,
    like: Tensor,
    tick: int,
) -> Tensor:
    vesicles = params.vesicles.init_rrp
    probability = torch.as_tensor(RESTING_PROBABILITY, device=like.device, dtype=like.dtype)
    if efficacy is not None:
        index = torch.arange(shape[2], device=like.device) // tick
        share = (efficacy.detach() / vesicles).clamp(LOWEST_PROBABILITY, 1.0)
        probability = share.index_select(2, index)
    spread = ((1.0 - probability) / (vesicles * probability)).sqrt()
    xi = draw_noise(shape, params.stochastic.stochastic_train_frac, generator, like)
    return (1.0 + spread * xi).clamp(min=0.0)
