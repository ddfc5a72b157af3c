"""Runs that train as one program end like runs that train alone."""

import functools
import time

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from helpers import processes
from helpers.paths import ROOT
from synaptune.config.compose import compose_config
from synaptune.config.run import prepare_run
from synaptune.study.reader import find_study
from synaptune.synapse.circuit import SPECS
from synaptune.training.errors import DivergedError, RunPruned
from synaptune.training.population_fit import (
    choose_chunk,
    estimate_bytes,
    fit_population,
    get_program_key,
)
from synaptune.training.trainer import fit, load_start_checkpoint

# fmt: off
SMALL = [
    "scale=smoke", "model.width=16", "training.steps=12", "training.evaluations=3", "logger=csv",
    "logger.progress=off", "training.accumulate=2", "data.recall_fraction=0.2",
]
# fmt: on
STEP = 4  # of the first validation
TOLERANCE = 2e-4  # of a loss [nats/token], after 12 steps


@functools.cache
def make_points():
    """Values of five candidates: the defaults, and points of the whole space with other settings.

    The candidates of a program have their terms on or off alike, so no value is neutral.
    """
    stream, points = np.random.default_rng(0), [{}]
    for index in range(4):
        values = {}
        for spec in SPECS:
            if spec.low is None or "lambda_loge" in spec.name or "barrier" in spec.name:
                continue
            value = spec.low + stream.random() * (spec.high - spec.low)
            values[spec.name] = round(value) if isinstance(spec.default, int) else value
        values["synapse.structural.structural_interval"] = 4 + 2 * index
        rates = ("learning_rate", 4e-3 * (index + 1)), ("weight_decay", 0.05 * index)
        values |= {f"training.{name}": value for name, value in rates}
        values["training.clip"] = (0.0, 0.1, 1.0, 5.0)[index]
        points.append(values)
    return points


def prepare(folder, values, report=None):
    cfg = compose_config(SMALL, study="s").base
    for name, value in values.items():
        OmegaConf.update(cfg, name, value)
    return prepare_run(cfg, folder, [], report=report)


def test_training_flushes_denormals_and_its_caller_keeps_them(tmp_path):
    seen = []

    def is_flushing() -> bool:
        return bool(torch.tensor(1e-40) == 0.0)

    def prepare_job(name):
        return prepare(tmp_path / name, {}, lambda step, value: seen.append(is_flushing())).job

    fit(prepare_job("alone"))
    assert not is_flushing()
    for _ in fit_population([prepare_job("a"), prepare_job("b")]):
        assert not is_flushing()
    assert len(seen) >= 3
    assert all(seen)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of the candidates, each trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    return [
        fit(prepare(folder / str(index), values).job) for index, values in enumerate(make_points())
    ]


def compare(result, expected):
    """Compare two results; the metrics that count time or memory may differ."""
    assert [step for step, _ in result.curve] == [step for step, _ in expected.curve]
    for (_, loss), (_, known) in zip(result.curve, expected.curve, strict=True):
        assert loss == pytest.approx(known, abs=TOLERANCE)
    assert result.metrics.keys() == expected.metrics.keys()
    for name in ("expert_gini", "val_perplexity", "val_calibration_error", "merges", "splits"):
        assert result.metrics[name] == pytest.approx(expected.metrics[name], rel=5e-3, abs=1e-3)


def test_candidates_over_the_whole_space_have_the_losses_of_single_runs(alone, tmp_path):
    prepared = [prepare(tmp_path / str(i), values) for i, values in enumerate(make_points())]
    assert len({get_program_key(run.job) for run in prepared}) == 1
    ended = dict(fit_population([run.job for run in prepared]))
    for index, expected in enumerate(alone):
        compare(ended[index], expected)
        saved = torch.load(tmp_path / str(index) / "checkpoint.pt", weights_only=True)
        assert saved["state"]["step"] == 12
        rows = (tmp_path / str(index) / "metrics.csv").read_text().splitlines()
        assert len(rows) > 3
    losses = [result.metrics["val_loss"] for result in alone]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 2 * TOLERANCE


def test_a_candidate_that_diverges_or_is_pruned_ends_alone(alone, tmp_path):
    def stop(step, loss):
        raise RunPruned(step)

    prepared = [
        prepare(tmp_path / str(i), values, stop if i == 1 else None)
        for i, values in enumerate(make_points())
    ]
    with torch.no_grad():
        prepared[2].job.model.head.weight[0] = float("nan")
    order = []
    for index, outcome in fit_population([run.job for run in prepared]):
        order.append(index)
        if index == 1:
            assert outcome.pruned
            assert outcome.metrics["steps"] == STEP
            assert outcome.curve[0][1] == pytest.approx(alone[1].curve[0][1], abs=TOLERANCE)
        elif index == 2:
            assert isinstance(outcome, DivergedError)
        else:
            compare(outcome, alone[index])
    assert order == [1, 2, 0, 3, 4] or order == [2, 1, 0, 3, 4]


def test_a_run_resumes_from_the_checkpoint_of_a_population(alone, tmp_path):
    words = {"training.last_step": 8}
    pair = [prepare(tmp_path / str(i), make_points()[i] | words) for i in range(2)]
    assert len(list(fit_population([run.job for run in pair]))) == 2
    start = {"training.start": str(tmp_path / "1/checkpoint.pt")}
    result = fit(prepare(tmp_path / "go on", make_points()[1] | start).job)
    assert result.metrics["val_loss"] == pytest.approx(alone[1].metrics["val_loss"], abs=TOLERANCE)


def test_runs_that_continue_others_have_the_losses_of_single_runs(tmp_path):
    """Each continues the run before it: as in population-based training, other numbers."""
    points = make_points()[:3]
    first = [
        prepare(tmp_path / str(i), p | {"training.last_step": 4}) for i, p in enumerate(points)
    ]
    for run in first:
        fit(run.job)
    words = [
        points[index] | {"training.start": str(tmp_path / str(index - 1) / "checkpoint.pt")}
        for index in (1, 2)
    ]
    again = [prepare(tmp_path / f"together {i}", word) for i, word in enumerate(words)]
    starts = [load_start_checkpoint(run.job) for run in again]
    jobs = [run.job for run in again]
    (key,) = {get_program_key(*pair) for pair in zip(jobs, starts, strict=True)}
    assert get_program_key(prepare(tmp_path / "fresh", points[0]).job) not in (key, None)
    ended = dict(fit_population(jobs, starts))
    for index, word in enumerate(words):
        expected = fit(prepare(tmp_path / f"alone {index}", word).job)
        compare(ended[index], expected)
        assert [step for step, _ in expected.curve] == [4, 8, 12]  # the first is the parent's
        saved, known = (
            torch.load(tmp_path / f"{name} {index}" / "checkpoint.pt", weights_only=True)
            for name in ("together", "alone")
        )
        for number, state in known["optimizer"]["state"].items():
            for name, value in state.items():
                given = saved["optimizer"]["state"][number][name]
                torch.testing.assert_close(given, value, rtol=1e-3, atol=1e-6)


def test_what_cannot_share_a_program_has_another_key(tmp_path):
    key = get_program_key(prepare(tmp_path, {}).job)
    for values in (
        {"model.width": 32},
        {"seed": 1},
        {"training.batch": 2},
        {"synapse.attention.lambda_loge": 0.0},
    ):
        assert get_program_key(prepare(tmp_path, values).job) not in (key, None)
    assert get_program_key(prepare(tmp_path, {"training.optimizer": "biostatis"}).job) is None


def test_a_population_is_cut_to_the_free_memory(tmp_path, monkeypatch):
    job = prepare(tmp_path, {}).job
    free = 2 * 5 * estimate_bytes(job)
    monkeypatch.setattr("synaptune.training.population_fit._read_free_memory", lambda: free)
    assert choose_chunk(job, 16) == 5
    assert choose_chunk(job, 3) == 3
    monkeypatch.setattr("synaptune.training.population_fit._read_free_memory", lambda: 1)
    assert choose_chunk(job, 16) == 1


@pytest.mark.slow
def test_a_killed_search_of_populations_goes_on_with_the_trials_that_it_has(tmp_path):
    # fmt: off
    command = [
        str(ROOT / "train.py"), "-m", "hydra/sweeper=random", "hydra.sweeper.optim.budget=8",
        *SMALL, "search_space.parameters=[synapse.calcium.tau_c,synapse.vesicles.tau_rrp]",
    ]
    # fmt: on
    together = [*command, "study.name=together", "workers=population", "workers.count=4"]
    process = processes.start(together, tmp_path)
    deadline = time.monotonic() + processes.TIMEOUT
    while not (tmp_path / "outputs/studies/together/trials/5").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    folder = tmp_path / "outputs/studies"
    states = [trial.state for trial in find_study(str(folder / "together")).search_trials]
    assert states[:4] == ["complete"] * 4
    assert "running" in states
    done = processes.run(together, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = find_study(str(folder / "together")).search_trials
    assert [trial.state for trial in trials] == ["complete"] * 8
    assert [trial.number for trial in trials] == list(range(8))
