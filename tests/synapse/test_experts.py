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


def make_bad_start(params: SynapseTensors, *, biased: bool = False) -> tuple[Router, torch.Tensor]:
    """Make a router that gives every one of the returned tokens to the first two experts."""
    x = torch.randn(8, 32, 16, generator=torch.Generator().manual_seed(0))
    router = Router(8, 2, 16, biased=biased)
    with torch.no_grad():
        router.weight.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
        router.probe.normal_(generator=torch.Generator().manual_seed(2))
        router.bias[:2] = 4.0
    router.init_state(params, torch.Generator().manual_seed(3))
    assert (router(x, params)[2].share[2:] == 0.0).all()
    return router, x


@torch.no_grad()
def test_the_metabolism_revives_experts_that_a_bad_start_of_the_router_leaves_out():
    params = make_params()
    router, x = make_bad_start(params)
    for _ in range(200):
        state = router.step_metabolism(router(x, params)[2], params)
        for name, value in state._asdict().items():
            getattr(router, name).copy_(value)
    assert (router.utilisation > 0.1 / 8).all()


@torch.no_grad()
def test_the_selection_bias_balances_the_load_and_does_not_weigh_the_experts():
    params, shares = make_params(), []
    router, x = make_bad_start(params, biased=True)
    for _ in range(500):
        weight, _, routing = router(x, params)
        shares.append(routing.share)
        router.selection.copy_(router.step_selection(routing, 0.001)["selection"])
    assert (torch.stack(shares[-50:]).mean(0) > 0.8 / 8).all()  # each step overshoots by itself
    # Of the chosen experts, those of the bad start keep their probability e^4 times that of others.
    chosen = weight > 0
    both = chosen[..., :2].any(-1) & chosen[..., 2:].any(-1)
    assert both.any()
    assert weight[..., :2].sum(-1)[both].min() > 0.9


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
