"""Structural plasticity: the metabolism of experts, and their merging and splitting.

After every optimizer step, with u the share of routed slots of an expert in the batch (sum 1):
    U' = U + structural_tau_util (u - U)                                                       (1)
    T' = T + structural_tau_util (E U - T)      fatigue follows the relative utilisation       (2)
    A' = A + energy_fill (energy_max - A) - energy_cost_rel E U        A' >= 0                 (3)
    v' = unit(v + lr (probe - v) - lr push sum_j max(cos(v, v_j), 0) v_j)                      (4)
with lr = router_contrastive_lr and push = router_contrastive_push.

Every `structural_interval` steps, half-way through the interval so that no event falls on the last
steps of a run:
    health = h^8 / (1 + h^8),   h = U A / mean(U A)                                            (5)
The expert of lowest health merges into its nearest neighbour if its health is below
merge_health_max and their cosine exceeds router_sim_threshold. The healthiest expert is then copied
into the free slot if its health is above split_health_min.

Source: (1)-(3) chosen: first-order homeostasis, as synaptic scaling in Turrigiano, Cell 135:422
(2008); (4) spherical k-means with repulsion; (5) derived: an expert of mean wealth has health 0.5,
and with the Hill exponent 8 the measured spread of routing reaches both thresholds (h = 1.19 for
0.8, h = 0.87 for 0.25).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import constant, parameter
from synaptune.synapse.energy import EnergyParams

if TYPE_CHECKING:
    from torch import Tensor

ROUTER_SIMILARITY = constant(
    "experts.similarity_weight",
    0.1,
    unit="nat",
    meaning="weight of cos(probe, embedding) in the router",
    source="chosen: a hint",
)
ROUTER_METABOLISM = constant(
    "experts.metabolism_weight",
    3.0,
    unit="nat",
    meaning="weight of energy - fatigue in the router",
    source="chosen: measured, with a bad start of the router 4 % of the experts die, 52 % at 0.1",
)
HEALTH_HILL = constant(
    "experts.health_hill",
    8.0,
    meaning="Hill exponent of health",
    source="derived: see (5)",
)
OWN_EMBEDDING_LENGTH = constant(
    "experts.kinship",
    0.5,
    meaning="length of an expert's own part of its first embedding, the common part being 1",
    source="chosen: first cosines near 0.8, so experts start as kin and have to differentiate",
)
SPLIT_NOISE = constant(
    "experts.twin_noise",
    0.01,
    meaning="antisymmetric noise on twins, relative to the weights' spread",
    source="chosen: breaks the tie",
)


@dataclass(frozen=True)
class StructuralParams:
    """Metabolism, routing embeddings, split and merge of the experts."""

    structural_interval: int = parameter(
        50000,
        low=0.02,
        high=2.5,
        scale="log",
        unit="step",
        of_run=True,
        meaning="optimizer steps between structural events; more than twice the run: none",
        source="chosen: a fraction of the run when searched; at the small scales the upper end, "
        "because events harm short runs",
    )
    structural_tau_util: float = parameter(
        0.2,
        low=0.02,
        high=0.5,
        scale="log",
        unit="1/step",
        meaning="rate of the utilisation average",
        source="chosen: five steps",
    )
    router_embed_dim: int = parameter(
        24,
        low=4,
        high=64,
        scale="int",
        unit="dimension",
        meaning="width of the routing embeddings",
        source="chosen: enough to tell experts apart",
    )
    router_contrastive_lr: float = parameter(
        1e-4,
        low=1e-5,
        high=1e-2,
        scale="log",
        unit="1/step",
        meaning="rate at which embeddings move to their tokens",
        source="chosen: slow",
    )
    router_contrastive_push: float = parameter(
        0.1,
        low=0.01,
        high=0.5,
        phase=1,
        meaning="repulsion of similar embeddings",
        source="chosen: a tenth of the attraction",
    )
    router_sim_threshold: float = parameter(
        0.6,
        low=0.2,
        high=0.95,
        meaning="embedding cosine above which a weak expert may merge",
        source="chosen: clearly similar",
    )
    energy_cost_rel: float = parameter(
        0.015,
        low=0.001,
        high=0.05,
        scale="log",
        unit="1/step",
        phase=1,
        meaning="energy used per relative utilisation",
        source="chosen: below the fill at even use",
    )
    split_health_min: float = parameter(
        0.8,
        low=0.5,
        high=1.0,
        meaning="health above which an expert may split",
        source="chosen: well above even",
    )
    merge_health_max: float = parameter(
        0.25,
        low=0.05,
        high=0.45,
        meaning="health below which an expert may merge",
        source="chosen: half of even",
    )


class Metabolism(NamedTuple):
    """Metabolic state of the experts.

    Attributes:
        utilisation: average share of routed slots U, (expert,) [1].
        fatigue: fatigue T, (expert,) [1].
        energy: energy A, (expert,) [1].
        embedding: routing embeddings v, unit vectors, (expert, dimension).
    """

    utilisation: Tensor
    fatigue: Tensor
    energy: Tensor
    embedding: Tensor


class Routing(NamedTuple):
    """Routing of one batch.

    Attributes:
        share: share of routed slots u, (expert,) [1].
        probe: mean unit probe of the tokens of each expert, (expert, dimension).
    """

    share: Tensor
    probe: Tensor


class RemodelPlan(NamedTuple):
    """A structural event.

    A merge moves the tokens of an expert to its neighbour, not its weights: the hidden units of two
    experts have no common order, and their average behaves like neither (Ainsworth et al., arXiv
    2209.04836). Without a split the merged expert keeps its slot and its weights.

    Attributes:
        mix: (expert, expert); the routing of expert i becomes sum_j mix[i, j] of the old routing.
        copy: (expert, expert); the feed-forward weights of expert i become sum_j copy[i, j] of the
            old weights.
        bias: (expert,), change of the routing bias [nat].
        noise_sign: (expert,), sign of the noise on the weights of the two copies; 0 elsewhere.
        merged: 0-dim bool, whether an expert merges.
        split: 0-dim bool, whether an expert splits.
    """

    mix: Tensor
    copy: Tensor
    bias: Tensor
    noise_sign: Tensor
    merged: Tensor
    split: Tensor


def router_logits(linear: Tensor, probe: Tensor, state: Metabolism) -> Tensor:
    """Return the router logits, (..., expert).

    Args:
        linear: W x + bias, (..., expert).
        probe: unit probe, (..., dimension).
        state: metabolism of the experts.
    """
    cosine = probe @ state.embedding.transpose(-1, -2)
    return linear + ROUTER_SIMILARITY * cosine + ROUTER_METABOLISM * (state.energy - state.fatigue)


def metabolism_step(
    state: Metabolism, routing: Routing, params: StructuralParams, energy: EnergyParams
) -> Metabolism:
    """Advance the metabolism by one optimizer step (1-4)."""
    import torch

    count = routing.share.shape[0]
    rate = params.structural_tau_util
    utilisation = state.utilisation + rate * (routing.share - state.utilisation)
    fatigue = state.fatigue + rate * (count * utilisation - state.fatigue)
    cost = params.energy_cost_rel * count * utilisation
    store = (state.energy + energy.energy_fill * (energy.energy_max - state.energy) - cost).clamp(
        min=0.0
    )
    v, lr = state.embedding, params.router_contrastive_lr
    others = (v @ v.T).clamp(min=0.0) * (1.0 - torch.eye(count, device=v.device, dtype=v.dtype))
    # An expert without tokens has no mean probe to move towards.
    active = (routing.share > 0).to(v.dtype)[:, None]
    attraction = active * (routing.probe - v)
    embedding = v + lr * attraction - lr * params.router_contrastive_push * (others @ v)
    return Metabolism(utilisation, fatigue, store, torch.nn.functional.normalize(embedding, dim=-1))


def health(state: Metabolism) -> Tensor:
    """Return the health of each expert (5), in [0, 1]."""
    wealth = state.utilisation * state.energy
    relative = (wealth / wealth.mean().clamp(min=1e-12)) ** HEALTH_HILL
    return relative / (1.0 + relative)


def plan_remodel(state: Metabolism, params: StructuralParams) -> RemodelPlan:
    """Return the structural event for a state; an identity plan when no event is due.

    All branches are tensor operations, so the function can run under vmap.
    """
    import torch

    count = state.energy.shape[0]
    index = torch.arange(count, device=state.energy.device)
    eye = torch.eye(count, device=state.energy.device, dtype=state.energy.dtype)
    scores = health(state)
    weakest = scores.argmin()
    cosine = torch.where(index == weakest, -2.0, state.embedding @ state.embedding[weakest])
    neighbour = cosine.argmax()
    merged = (scores[weakest] < params.merge_health_max) & (
        cosine[neighbour] > params.router_sim_threshold
    )
    parent = torch.where(index == weakest, -1.0, scores).argmax()
    split = merged & (scores[parent] > params.split_health_min)
    is_weakest, is_neighbour, is_parent = (
        (index == expert).to(eye.dtype) for expert in (weakest, neighbour, parent)
    )
    use = state.utilisation
    # The merged routing weighs both experts by their shares of the common use.
    share = use[weakest] / (use[weakest] + use[neighbour]).clamp(min=1e-12)
    merge_matrix = eye + is_neighbour[:, None] * share * (is_weakest - is_neighbour)[None, :]
    copy_matrix = eye + is_weakest[:, None] * (is_parent - is_weakest)[None, :]
    mix = torch.where(merged, torch.where(split, copy_matrix @ merge_matrix, merge_matrix), eye)
    copy = torch.where(split, copy_matrix, eye)
    sign = torch.where(split, is_parent - is_weakest, torch.zeros_like(is_parent))
    return RemodelPlan(mix, copy, -math.log(2.0) * sign.abs(), sign, merged, split)


def remodel_metabolism(state: Metabolism, plan: RemodelPlan) -> Metabolism:
    """Return the metabolism after a structural event.

    Each copy has half the use of its parent. Embeddings stay unit vectors.
    """
    import torch

    factor = 1.0 - 0.5 * plan.noise_sign.abs()
    mixture = Metabolism(*(plan.mix @ value for value in state))
    return Metabolism(
        mixture.utilisation * factor,
        mixture.fatigue * factor,
        mixture.energy,
        torch.nn.functional.normalize(mixture.embedding, dim=-1),
    )
