"""Populations of small image networks: the losses of single runs, from one program."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from synaptune.config.compose import compose_config
from synaptune.config.run import make_job, make_record
from synaptune.config.settings import read_settings
from synaptune.training.image_job import ImageJob
from synaptune.training.image_population import ImagePopulation
from synaptune.training.population_fit import fit_population, get_program_key

COMMON = [
    *("model=dendritic", "logger=csv", "logger.progress=off", "logger.every=5"),
    *("training.steps=30", "training.evaluations=2", "network.percentage_resample=0.3"),
]
# Sizes, seeds, rates, decays and resampling that differ.
MEMBERS = [
    ["network.n_neurons=4", "network.n_dendrites=3", "network.n_dendrite_inputs=9"],
    ["network.n_neurons=9", "network.n_dendrites=2", "seed=3", "network.steps_to_resample=8"],
    [
        *("network.n_neurons=6", "training.learning_rate=2e-2", "training.weight_decay=0.3"),
        *("network.n_hidden=11", "network.steps_to_resample=5", "network.keep_moments=true"),
    ],
]
MOST = 1e-5  # difference of a loss to that of a single run [nat/image]


def make_image_job(words: list[str], folder: Path) -> ImageJob:
    cfg = compose_config([*COMMON, *words]).base
    folder.mkdir(parents=True, exist_ok=True)
    job, _ = make_job(read_settings(cfg), folder, make_record(cfg), in_search=True)
    assert isinstance(job, ImageJob)
    return job


def read_losses(folder: Path) -> torch.Tensor:
    with (folder / "metrics.csv").open(newline="") as file:
        return torch.tensor(
            [
                [float(row[name]) for name in ("train_loss", "val_loss")]
                for row in csv.DictReader(file)
                if row["val_loss"] and row["train_loss"]
            ]
        )


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param("dendritic_simple", marks=pytest.mark.slow),
        "soma_disabled",
        "dendritic_with_hidden",
        pytest.param("dense", marks=pytest.mark.slow),
        pytest.param("local", marks=pytest.mark.slow),
    ],
)
def test_a_network_has_the_same_losses_in_a_population_as_alone(architecture, run, tmp_path):
    kind = f"network.architecture={architecture}"
    jobs = [
        make_image_job([kind, *words], tmp_path / f"together-{index}")
        for index, words in enumerate(MEMBERS)
    ]
    assert len({get_program_key(job) for job in jobs}) == 1
    assert len(list(fit_population(jobs))) == len(jobs)
    for index, words in enumerate(MEMBERS):
        alone, together = tmp_path / f"alone-{index}", tmp_path / f"together-{index}"
        outcome = run([*COMMON, kind, *words], alone)
        losses = [read_losses(folder) for folder in (alone, together)]
        assert losses[0].shape == losses[1].shape == (2, 2)
        assert float((losses[0] - losses[1]).abs().max()) < MOST
        # The population leaves a run that ends without a further step, resampled inputs included.
        ended = run([*COMMON, kind, *words, "training.resume=true"], together)
        assert ended.objective == pytest.approx(outcome.objective, abs=0.006)
        ends = [torch.load(f / "checkpoint.pt", weights_only=True) for f in (alone, together)]
        inputs = [end["weights"].get("dendrites.inputs") for end in ends]
        assert inputs[0] is None or torch.equal(*inputs)
        states = [end["optimizer"]["state"] for end in ends]
        for key, state in states[0].items():
            for name, value in state.items():
                torch.testing.assert_close(states[1][key][name], value, rtol=1e-3, atol=1e-5)
        curves = [json.loads((f / "result.json").read_text())["curve"] for f in (alone, together)]
        assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]]


def test_networks_of_one_seed_share_their_batches_and_the_padding_stays_zero(tmp_path):
    jobs = [make_image_job(words, tmp_path / str(index)) for index, words in enumerate(MEMBERS)]
    jobs = [dataclasses.replace(job, seed=1) for job in jobs]
    population = ImagePopulation(jobs)
    for _ in range(12):
        losses = population.step()
    assert losses.shape == (3,)
    assert (population.weights[population._mask == 0.0] == 0.0).all()
    assert (population.weights[population._mask == 1.0] != 0.0).float().mean() > 0.9


@pytest.mark.parametrize(
    "words",
    [
        ["network.architecture=convolution"],
        ["training=biostatis"],
        ["training.accumulate=2"],
    ],
)
def test_what_a_population_cannot_train_has_no_key(words, tmp_path):
    assert get_program_key(make_image_job(words, tmp_path)) is None


def test_runs_of_other_steps_or_architectures_have_other_keys(tmp_path):
    keys = {
        get_program_key(make_image_job(words, tmp_path))
        for words in ([], ["training.steps=31"], ["network.architecture=dense"], ["seed=4"])
    }
    assert len(keys) == 3
