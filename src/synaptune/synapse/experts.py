"""Structural plasticity: experts that tire, starve, merge and split.

After every optimizer step, with u the share of routed slots an expert got in the batch (they sum to 1):
    U' = U + structural_tau_util (u - U)                                                                    (1)
    T' = T + structural_tau_util (E U - T)          fatigue follows the relative utilisation                (2)
    A' = A + energy_fill (energy_max - A) - energy_cost_rel E U        A' >= 0                              (3)
    v' = unit(v + lr (probe - v) - lr push sum_j max(cos(v, v_j), 0) v_j)      lr = router_contrastive_lr   (4)
Every `structural_interval` steps, half-way through the interval (so a run ends settled):
    health = h^4 / (1 + h^4),   h = U A / mean(U A)                                                         (5)
    the weakest expert with health < merge_health_max merges into its nearest neighbour if their cosine exceeds
    router_sim_threshold; the healthiest expert, if above split_health_min, is then copied into the freed slot.

Source: (1)-(3) chosen: first-order homeostasis, as synaptic scaling in Turrigiano, Cell 135:422 (2008); (4) spherical k-means with
repulsion; (5) derived: relative to the mean, an expert of even health has 0.5, and with the Hill exponent 4 both thresholds are reached by
the spread that routing really shows (h = 1.41 for 0.8, h = 0.76 for 0.25).
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
    0.1,
    unit="nat",
    meaning="weight of energy - fatigue in the router",
    source="chosen: a hint",
)
HEALTH_HILL = constant(
    "experts.health_hill",
    4.0,
    meaning="Hill exponent of health",
    source="derived: see (5); calmodulin's exponent",
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
        high=0.5,
        scale="log",
        unit="step",
        of_run=True,
        meaning="optimizer steps between structural events",
        source="chosen: a fraction of the run when searched; the small scales set a fraction of their own length",
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
    """Utilisation U, fatigue T, energy A (expert,) and routing embeddings v (expert, dimension)."""

    utilisation: Tensor
    fatigue: Tensor
    energy: Tensor
    embedding: Tensor


class Routing(NamedTuple):
    """What a batch tells the metabolism: share of slots u (expert,) and mean unit probe of an expert's tokens (expert, dimension)."""

    share: Tensor
    probe: Tensor


class RemodelPlan(NamedTuple):
    """A structural event: routing of expert i becomes sum_j mix[i, j] of the old, its feed-forward weights sum_j copy[i, j] of the old; its
    routing bias moves by `bias`, its noise has sign `twin`.

    A merge hands the victim's tokens to the heir, not its weights: hidden units of two experts stand in no common order, and their
    average is neither (Ainsworth et al., arXiv 2209.04836). A victim whose slot no split claims lives on.
    """

    mix: Tensor
    copy: Tensor
    bias: Tensor
    noise_sign: Tensor
    merged: Tensor
    split: Tensor


def router_logits(linear: Tensor, probe: Tensor, state: Metabolism) -> Tensor:
    """Router logits: W x + bias (..., expert), unit probe (..., dimension) -> (..., expert)."""
    kin = probe @ state.embedding.transpose(-1, -2)
    return linear + ROUTER_SIMILARITY * kin + ROUTER_METABOLISM * (state.energy - state.fatigue)


def metabolism_step(
    state: Metabolism, routing: Routing, params: StructuralParams, energy: EnergyParams
) -> Metabolism:
    """(state, routing of the batch, params) -> next state (1-4)."""
    import torch

    count = routing.share.shape[0]
    rate = params.structural_tau_util
    utilisation = state.utilisation + rate * (routing.share - state.utilisation)
    fatigue = state.fatigue + rate * (count * utilisation - state.fatigue)
    spent = params.energy_cost_rel * count * utilisation
    store = (state.energy + energy.energy_fill * (energy.energy_max - state.energy) - spent).clamp(
        min=0.0
    )
    v, lr = state.embedding, params.router_contrastive_lr
    others = (v @ v.T).clamp(min=0.0) * (1.0 - torch.eye(count, device=v.device, dtype=v.dtype))
    used = (routing.share > 0).to(v.dtype)[
        :, None
    ]  # an expert without tokens has no mean to move to
    moved = v + lr * used * (routing.probe - v) - lr * params.router_contrastive_push * (others @ v)
    return Metabolism(utilisation, fatigue, store, torch.nn.functional.normalize(moved, dim=-1))


def health(state: Metabolism) -> Tensor:
    """Health of each expert (5), in [0, 1]."""
    wealth = state.utilisation * state.energy
    relative = (wealth / wealth.mean().clamp(min=1e-12)) ** HEALTH_HILL
    return relative / (1.0 + relative)


def plan_remodel(state: Metabolism, params: StructuralParams) -> RemodelPlan:
    """The structural event that the present state calls for; the identity when it calls for none. Tensors only: it batches."""
    import torch

    count = state.energy.shape[0]
    index, eye = (
        torch.arange(count, device=state.energy.device),
        torch.eye(count, device=state.energy.device, dtype=state.energy.dtype),
    )
    vigour = health(state)
    victim = vigour.argmin()
    kin = torch.where(index == victim, -2.0, state.embedding @ state.embedding[victim])
    heir = kin.argmax()
    merged = (vigour[victim] < params.merge_health_max) & (kin[heir] > params.router_sim_threshold)
    parent = torch.where(index == victim, -1.0, vigour).argmax()
    split = merged & (vigour[parent] > params.split_health_min)
    is_victim, is_heir, is_parent = ((index == x).to(eye.dtype) for x in (victim, heir, parent))
    share = state.utilisation[victim] / (state.utilisation[victim] + state.utilisation[heir]).clamp(
        min=1e-12
    )
    merging = (
        eye + is_heir[:, None] * share * (is_victim - is_heir)[None, :]
    )  # by the victim's share of their use
    copying = eye + is_victim[:, None] * (is_parent - is_victim)[None, :]
    mix = torch.where(merged, torch.where(split, copying @ merging, merging), eye)
    copy = torch.where(split, copying, eye)
    twin = torch.where(split, is_parent - is_victim, torch.zeros_like(is_parent))
    return RemodelPlan(mix, copy, -math.log(2.0) * twin.abs(), twin, merged, split)


def remodel_metabolism(state: Metabolism, plan: RemodelPlan) -> Metabolism:
    """The metabolism after a structural event: twins share their parent's use, embeddings stay unit vectors."""
    import torch

    halve = 1.0 - 0.5 * plan.noise_sign.abs()
    mixed = Metabolism(*(plan.mix @ value for value in state))
    return Metabolism(
        mixed.utilisation * halve,
        mixed.fatigue * halve,
        mixed.energy,
        torch.nn.functional.normalize(mixed.embedding, dim=-1),
    )
