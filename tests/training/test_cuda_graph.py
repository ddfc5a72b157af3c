"""Recorded steps: the losses of steps that are launched kernel by kernel, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from synaptune.config.run import prepare_run
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams
from synaptune.training import population
from synaptune.training.cuda_graph import WARM_UP, GraphedFunction, can_record
from synaptune.training.population_fit import fit_population


class TracedFunction:
    """Replays the operations of a call on the same tensors, as a CUDA graph does, on a CPU."""

    def __init__(self, function, generators=()):
        self._function, self._calls, self._trace = function, 0, None

    def __call__(self, *inputs):
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._function(*inputs)
        if self._trace is None:
            self._places, tree = tree_flatten(inputs)

            def call(*leaves):
                result = self._function(*tree_unflatten(list(leaves), tree))
                leaves, self._tree = tree_flatten(result)
                return leaves

            self._trace = make_fx(call)(*self._places)  # runs the call once
            if self._tree.is_leaf():  # a call without a result, whose effects have happened
                return None
            self._results = self._trace(*self._places)
            self._result = tree_unflatten(self._results, self._tree)
            return self._result
        for place, value in zip(self._places, tree_flatten(inputs)[0], strict=True):
            if place is not value:
                place.copy_(value)
        for place, value in zip(self._results_or_none(), self._trace(*self._places), strict=True):
            if isinstance(place, torch.Tensor):
                place.copy_(value)
        return None if self._tree.is_leaf() else self._result

    def _results_or_none(self):
        return [None] if self._tree.is_leaf() else self._results


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


def test_a_population_steps_on_tensors_that_stay_in_their_places(monkeypatch):
    config = ModelConfig(layers=2, width=32, heads=2, context=32, tick=8, kernel="torch")
    monkeypatch.setattr(population, "GraphedFunction", TracedFunction)
    losses = []
    for graphs in (False, True):
        models = [
            GPT(config, SynapseParams().with_values({"synapse.calcium.alpha_ca": value}), 32, 0)
            for value in (0.2, 1.5, 1.0)
        ]
        together = population.Population(models, decays=[0.1] * 3, clips=[1.0] * 3, graphs=graphs)
        stream, rows = torch.Generator().manual_seed(0), []
        for step in range(1, 12):
            x = torch.randint(0, 6, (3, 33), generator=stream)
            inputs, targets = x[:, :-1].contiguous(), x[:, 1:].contiguous()
            rows.append(together.step(inputs, targets, step, [2e-2] * len(together.rows))[:2] + 0.0)
            together.drop([2] if step == 6 else [])
        losses.append(torch.stack(rows))
    assert torch.equal(*losses)


@needs_cuda
def test_a_function_that_waits_for_the_device_runs_without_a_graph(caplog):
    total = torch.zeros((), device="cuda")
    add = GraphedFunction(lambda value: total.add_(float(value)))
    for _ in range(WARM_UP + 3):
        add(torch.ones((), device="cuda"))
    assert float(total) == WARM_UP + 3
    assert "without a CUDA graph" in caplog.text
