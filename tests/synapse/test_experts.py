"""Structural plasticity: bounds of the metabolism, reachable thresholds, merges and splits."""

import torch

from synaptune.model.feedforward import Router
from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.experts import (
    Metabolism,
    Routing,
    health,
    metabolism_step,
    plan_remodel,
    remodel_metabolism,
)
from synaptune.synapse.tensors import SynapseTensors


def make_params(**values: float) -> SynapseTensors:
    return SynapseTensors(
        SynapseParams().with_values(
            {f"synapse.structural.{name}": value for name, value in values.items()}
        )
    )


def make_state(utilisation: list[float], energy: list[float], spread: float = 0.3) -> Metabolism:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(
        torch.ones(4, 64) / 8 + spread * torch.randn(4, 64, generator=generator) / 8, dim=-1
    )
    return Metabolism(torch.tensor(utilisation), torch.ones(4), torch.tensor(energy), embedding)


WEAK_AND_STRONG = ([0.02, 0.22, 0.26, 0.5], [0.3, 0.3, 0.3, 0.6])


def test_health_is_a_half_when_all_are_alike_and_both_thresholds_are_within_reach():
    assert torch.allclose(health(make_state([0.25] * 4, [0.4] * 4)), torch.full((4,), 0.5))
    scores = health(make_state(*WEAK_AND_STRONG))
    defaults = SynapseParams().structural
    assert scores.min() < defaults.merge_health_max
    assert scores.max() > defaults.split_health_min


def test_a_weak_similar_expert_merges_and_the_healthiest_is_copied_into_its_slot():
    plan = plan_remodel(make_state(*WEAK_AND_STRONG), make_params().structural)
    assert plan.merged
    assert plan.split
    assert plan.copy[0].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert torch.allclose(plan.mix.sum(1), torch.ones(4))
    assert plan.bias.nonzero().flatten().tolist() == [0, 3]
    assert plan.noise_sign.tolist() == [-1.0, 0.0, 0.0, 1.0]
    after = remodel_metabolism(make_state(*WEAK_AND_STRONG), plan)
    assert torch.allclose(after.embedding.norm(dim=1), torch.ones(4))


def test_dissimilar_experts_do_not_merge():
    plan = plan_remodel(make_state(*WEAK_AND_STRONG, spread=30.0), make_params().structural)
    assert not plan.merged
    assert torch.equal(plan.mix, torch.eye(4))
    assert torch.equal(plan.copy, torch.eye(4))


def test_a_split_needs_a_healthy_expert():
    plan = plan_remodel(make_state(*WEAK_AND_STRONG), make_params(split_health_min=1.0).structural)
    assert plan.merged
    assert not plan.split
    assert torch.equal(plan.copy, torch.eye(4))


def test_metabolism_stays_in_bounds_under_lopsided_use():
    params, state = make_params(energy_cost_rel=0.05), make_state([0.25] * 4, [0.85] * 4)
    routing = Routing(
        torch.tensor([0.5, 0.5, 0.0, 0.0]),
        torch.nn.functional.normalize(torch.randn(4, 64), dim=-1),
    )
    for _ in range(500):
        state = metabolism_step(state, routing, params.structural, params.energy)
    assert torch.allclose(state.utilisation, routing.share, atol=1e-3)
    assert (state.energy >= 0).all()
    assert (state.energy <= float(params.energy.energy_max) + 1e-6).all()
    assert state.energy[2] > state.energy[0]
    assert torch.allclose(state.embedding.norm(dim=1), torch.ones(4))


def test_push_drives_embeddings_apart():
    params = make_params(router_contrastive_lr=1e-2, router_contrastive_push=0.5)
    state = make_state([0.25] * 4, [0.5] * 4)
    idle = Routing(torch.zeros(4), torch.zeros(4, 64))
    initial = (state.embedding @ state.embedding.T).mean()
    for _ in range(200):
        state = metabolism_step(state, idle, params.structural, params.energy)
    assert (state.embedding @ state.embedding.T).mean() < initial


def route(router: Router, x: torch.Tensor, params: SynapseTensors) -> torch.Tensor:
    """Run the router with its metabolism on the same tokens; return the shares of the experts."""
    with torch.no_grad():
        for _ in range(200):
            _, _, routing = router(x, params)
            state = router.step_metabolism(routing, params)
            for name, value in state._asdict().items():
                getattr(router, name).copy_(value)
    return router.utilisation


def test_the_metabolism_revives_experts_that_a_bad_start_of_the_router_leaves_out():
    params, x = make_params(), torch.randn(8, 32, 16, generator=torch.Generator().manual_seed(0))
    router = Router(8, 2, 16)
    with torch.no_grad():
        router.weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
        router.probe.normal_(generator=torch.Generator().manual_seed(2))
        router.bias[:2] = 4.0  # two experts get every token at first
    router.init_state(params, torch.Generator().manual_seed(3))
    _, _, first = router(x, params)
    assert (first.share[2:] == 0.0).all()
    assert (route(router, x, params) > 0.1 / 8).all()


def test_the_language_model_loss_trains_a_router_with_one_expert_per_token():
    params, x = make_params(), torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    router = Router(4, 1, 16)
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(1))
        router.probe.normal_(generator=torch.Generator().manual_seed(2))
    router.init_state(params, torch.Generator().manual_seed(3))
    weight, _, _ = router(x, params)
    assert torch.equal(weight.sum(-1), torch.ones(2, 6))
    (weight * torch.arange(4.0)).sum().backward()  # expert 3 is the most useful
    assert router.weight.grad.abs().max() > 1e-3
