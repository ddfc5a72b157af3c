"""A population gives each candidate the losses of a separate run."""

import dataclasses

import pytest
import torch

from helpers.steps import train_step
from synaptune.core.errors import UserError
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.population import Population

CONFIG = ModelConfig(layers=2, width=32, heads=2, context=32, tick=8)
CANDIDATES = [
    SynapseParams().with_values({"synapse.structural.structural_interval": interval} | values)
    for interval, values in (
        (4, {}),
        (
            6,
            {
                "synapse.calcium.alpha_ca": 1.5,
                "synapse.attention.lambda_loge": 3.0,
                "synapse.postsynaptic.rank_eligibility": 24,
            },
        ),
        (1000, {"synapse.stochastic.stochastic_train_frac": 0.8, "synapse.vesicles.endo_delay": 9}),
    )
]
STEPS = 12


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 6, (3, 33), generator=generator) for _ in range(STEPS)]


def train_alone(config: ModelConfig, params: SynapseParams) -> list[float]:
    model, losses = GPT(config, params, 32, 0), []
    optimizer = torch.optim.AdamW(model.make_decay_groups(0.1), lr=2e-2, betas=(0.9, 0.95))
    for step, tokens in enumerate(batches(), 1):
        losses.append(
            train_step(model, optimizer, tokens, torch.Generator().manual_seed(step), step)
        )
    return losses


@pytest.mark.parametrize(
    "mechanisms",
    [
        {},
        {"experts": 1},
        {"experts": 1, "fast_weights": "off"},
        {"balance_rate": 0.05},
        {"memory_heads": 2},
    ],
    ids=["everything", "dense", "without memory", "selection bias", "two memories"],
)
def test_a_candidate_has_the_same_losses_in_a_population_as_alone(mechanisms):
    config = dataclasses.replace(CONFIG, **mechanisms)
    models = [GPT(config, params, 32, 0) for params in CANDIDATES]
    noise, losses = torch.Generator(), []
    population = Population(models, decays=[0.1] * 3, clips=[1.0] * 3, noise=noise)
    for step, x in enumerate(batches(), 1):
        noise.manual_seed(step)
        losses.append(population.step(x[:, :-1], x[:, 1:], step, [2e-2] * 3))
    together = torch.stack(losses)
    single = torch.tensor([train_alone(config, params) for params in CANDIDATES]).T
    error = (together - single).abs().max()
    apart = min((single[-1, i] - single[-1, j]).abs() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert error < 5e-6
    assert apart > 10 * error  # the candidates differ by far more than the two ways of running one


def test_a_population_with_mechanisms_both_on_and_off_is_refused():
    off = SynapseParams().with_values({"synapse.attention.lambda_loge": 0.0})
    with pytest.raises(UserError, match="lambda_loge"):
        Population(
            [GPT(CONFIG, params, 32, 0) for params in (SynapseParams(), off)],
            decays=[0.1] * 2,
            clips=[1.0] * 2,
        )
