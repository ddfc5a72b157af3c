"""Dendritic networks: counts, forward pass, initialisation and the resampling of synapses."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from synaptune.core.seeds import make_generator
from synaptune.model.budget import PARAMETERS, BudgetConfig, BudgetExceeded, check_budget
from synaptune.model.dendrites import SLOPE, DendriticLayer, ImageNetwork
from synaptune.model.network import (
    ARCHITECTURES,
    DENDRITIC,
    NetworkConfig,
    count_parameters,
    find_network_faults,
    fit_budget,
)
from synaptune.search.trial import make_error_result

SHAPE = (1, 8, 8)


def draw_config(source: random.Random) -> tuple[NetworkConfig, tuple[int, int, int]]:
    """Draw an architecture with random sizes and an image shape."""
    shape = source.choice([SHAPE, (1, 12, 12), (3, 9, 9)])
    sizes = [source.randint(1, most) for most in (20, 20, 60, 40)]
    return NetworkConfig(source.choice(ARCHITECTURES), *sizes, field=source.randint(1, 8)), shape


def test_the_formula_counts_what_is_trained_for_a_thousand_random_networks():
    source = random.Random(0)
    for _ in range(1000):
        config, shape = draw_config(source)
        network = ImageNetwork(config, shape, 10, seed=0)
        trained = sum(weight.numel() for weight in network.parameters())
        assert trained == count_parameters(config, shape, 10), config


def test_the_example_of_the_source_has_7198_parameters_and_not_7890():
    config = NetworkConfig("dendritic_simple", n_neurons=12, n_dendrites=6, n_dendrite_inputs=96)
    assert count_parameters(config, (1, 28, 28), 10) == 7198


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [900, 8000])
def test_a_fitted_network_is_the_largest_within_the_budget(architecture, budget):
    fitted = fit_budget(NetworkConfig(architecture), (1, 28, 28), 10, budget)
    count = count_parameters(fitted, (1, 28, 28), 10)
    names = ["n_neurons", "n_dendrites", "n_hidden"]
    larger = [
        count_parameters(
            dataclasses.replace(fitted, **{n: getattr(fitted, n) + 1}), (1, 28, 28), 10
        )
        for n in names
    ]
    sized = {"dense": 2, "soma_disabled": 1}.get(architecture, 0)
    is_smallest = getattr(fitted, names[sized]) == 1
    assert larger[sized] > budget
    assert count <= budget or is_smallest


def make_layer(*, soma: bool, fan_in: int = 5) -> DendriticLayer:
    generator = make_generator("test", 1)
    inputs = torch.rand(3 if soma else 1, 4, 30, generator=generator).topk(5).indices
    return DendriticLayer(inputs, 30, soma=soma, fan_in=fan_in, generator=generator)


@pytest.mark.parametrize("soma", [True, False])
def test_the_layer_is_the_plain_sum_over_its_synapses(soma):
    layer, images = make_layer(soma=soma), torch.randn(2, 30)
    torch.nn.init.normal_(layer.bias)
    expected = torch.zeros(2, layer.inputs.shape[0], 4)
    for neuron in range(layer.inputs.shape[0]):
        for dendrite in range(4):
            synapses = zip(
                layer.inputs[neuron, dendrite], layer.weight[neuron, dendrite], strict=True
            )
            total = sum(weight * images[:, place] for place, weight in synapses)
            total = total + layer.bias[neuron, dendrite]
            expected[:, neuron, dendrite] = torch.where(total > 0, total, SLOPE * total)
    if layer.soma_weight is not None:
        total = (expected * layer.soma_weight).sum(-1) + layer.soma_bias
        expected = torch.where(total > 0, total, SLOPE * total)
    torch.testing.assert_close(layer(images), expected.flatten(1))


def test_the_gradient_reaches_each_stored_weight_and_no_other():
    layer = make_layer(soma=True)
    layer(torch.randn(8, 30)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == layer.weight.shape
    assert (layer.weight.grad != 0).all()


def test_resampling_moves_the_weakest_synapses_to_inputs_that_the_dendrite_lacks():
    layer = make_layer(soma=True)
    inputs, weights = layer.inputs.clone(), layer.weight.detach().clone()
    moment = torch.ones_like(weights)
    moved = layer.resample(0.4, make_generator("resample", 0), (moment,))
    assert moved == 2 * 12
    changed = layer.inputs != inputs
    assert (changed.sum(-1) == 2).all()
    for neuron in range(3):
        for dendrite in range(4):
            mask = changed[neuron, dendrite]
            before, after = inputs[neuron, dendrite], layer.inputs[neuron, dendrite]
            assert len(set(after.tolist())) == 5
            assert not set(after[mask].tolist()) & set(before.tolist())
            size = weights[neuron, dendrite].abs()
            assert size[mask].max() < size[~mask].min()
    assert torch.equal(layer.weight.detach()[~changed], weights[~changed])
    assert torch.equal(moment == 0, changed)


def test_a_dendrite_that_reads_nearly_everything_moves_what_is_free():
    generator = make_generator("test", 2)
    inputs = torch.rand(1, 2, 6, generator=generator).topk(5).indices
    layer = DendriticLayer(inputs, 6, soma=False, fan_in=5, generator=generator)
    assert layer.resample(0.8, generator) == 2
    full = DendriticLayer(
        torch.arange(6).expand(1, 2, 6).clone(), 6, soma=False, fan_in=6, generator=generator
    )
    assert full.resample(0.8, generator) == 0


def test_the_initial_weights_follow_the_fan_in_of_a_dendrite_or_of_the_image():
    deviations = {
        fan_in: ImageNetwork(
            NetworkConfig(n_neurons=40, n_dendrite_inputs=16, fan_in=fan_in), (1, 28, 28), 10, 0
        )
        .dendrites.weight.std()
        .item()  # type: ignore[union-attr]
        for fan_in in ("dendrite", "image")
    }
    assert deviations["dendrite"] / deviations["image"] == pytest.approx((784 / 16) ** 0.5, rel=0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_seed_determines_a_network(architecture):
    config = NetworkConfig(architecture)
    images = torch.randn(3, *SHAPE)
    first, same, other = (ImageNetwork(config, SHAPE, 10, seed)(images) for seed in (1, 1, 2))
    assert first.shape == (3, 10)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_dendritic_networks_resample(architecture):
    network = ImageNetwork(NetworkConfig(architecture, steps_to_resample=2), SHAPE, 10, 0)
    optimizer = torch.optim.AdamW(network.parameters())
    moved = [network.resample(step, 0, optimizer) for step in (1, 2)]
    assert moved[0] == 0
    assert (moved[1] > 0) == (architecture in DENDRITIC)


def test_a_model_over_the_budget_is_refused_and_its_result_holds_its_size():
    check_budget(100, BudgetConfig(100))
    with pytest.raises(
        BudgetExceeded, match=r"1,101 trainable parameters\n  expected: at most 100"
    ):
        check_budget(1101, BudgetConfig(100))
    assert make_error_result(BudgetExceeded(5200, 100), 0.0).metrics == {PARAMETERS: 5200.0}


def test_every_fault_of_a_network_is_named():
    config = NetworkConfig("ring", 0, fan_in="all", percentage_resample=2.0, steps_to_resample=-1)
    faults = find_network_faults(config)
    assert len(faults) == 5
    assert all(fault.startswith("network.") for fault in faults)
