"""Recorded steps: the losses of steps that are launched kernel by kernel, bit for bit."""

from __future__ import annotations

import pytest
import torch

from synaptune.config.run import prepare_run
from synaptune.training.cuda_graph import WARM_UP, GraphedFunction, can_record
from synaptune.training.population_fit import fit_population

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_steps_on_a_cpu_are_not_recorded(make_config, tmp_path):
    job = prepare_run(make_config([]), tmp_path, []).job
    assert job.training.graphs
    assert not can_record(job, torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "is_recorded"),
    [
        ([], True),
        (["training.graphs=false"], False),
        (["training=sgd"], False),
        (["training=biostatis"], False),
    ],
)
def test_steps_of_language_models_with_adamw_are_recorded(
    make_config, tmp_path, overrides, is_recorded
):
    job = prepare_run(make_config(overrides), tmp_path, []).job
    assert can_record(job, torch.device("cuda")) is is_recorded


@needs_cuda
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.precision=fp32", "training.accumulate=2"],
        ["model.experts=4", "synapse.structural.structural_interval=10"],
    ],
    ids=["defaults", "accumulated", "structural events"],
)
def test_a_recorded_run_has_the_losses_of_any_other(run, small, tmp_path, overrides):
    words = [*small, *overrides, "training.steps=30", "training.device=cuda"]
    recorded = run(words, tmp_path / "recorded")
    expected = run([*words, "training.graphs=false"], tmp_path / "expected")
    for name in ("val_loss", "merges", "splits"):
        assert recorded.metrics[name] == expected.metrics[name]


@needs_cuda
def test_a_recorded_population_has_the_losses_of_any_other(make_config, tmp_path):
    losses = []
    for graphs in ("true", "false"):
        jobs = [
            prepare_run(
                make_config(
                    [
                        "training.device=cuda",
                        f"training.graphs={graphs}",
                        f"synapse.calcium.tau_c={value}",
                        f"training.clip={value}",
                    ]
                ),
                tmp_path / f"{graphs}{value}",
                [],
            ).job
            for value in (1.0, 20.0)
        ]
        results = dict(fit_population(jobs))
        losses.append([results[index].metrics["val_loss"] for index in range(2)])
    assert losses[0] == losses[1]


@needs_cuda
def test_a_function_that_waits_for_the_device_runs_without_a_graph(caplog):
    total = torch.zeros((), device="cuda")
    add = GraphedFunction(lambda value: total.add_(float(value)))
    for _ in range(WARM_UP + 3):
        add(torch.ones((), device="cuda"))
    assert float(total) == WARM_UP + 3
    assert "without a CUDA graph" in caplog.text
