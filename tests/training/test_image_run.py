"""Runs of image networks: the same engine, resume after an interruption, the budget."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from synaptune.core.errors import UserError
from synaptune.model.budget import BudgetExceeded
from synaptune.training.checkpoint import load_model

DIGITS = [
    *("model=dendritic", "logger=csv", "logger.progress=off", "logger.every=5"),
    *("training.steps=40", "training.evaluations=4", "training.learning_rate=2e-2"),
    *("network.steps_to_resample=8", "training.checkpoint_every=5"),
]


def read_rows(folder: Path) -> list[tuple[str, ...]]:
    names = ("step", "train_loss", "val_loss", "val_accuracy")
    with (folder / "metrics.csv").open(newline="") as file:
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run([*DIGITS, "training.test=true"], folder)


def test_a_run_on_the_digits_learns_and_reports_accuracy(whole):
    folder, outcome = whole
    result = json.loads((folder / "result.json").read_text())
    metrics = outcome.metrics
    assert result["objective"] == outcome.objective == metrics["val_accuracy"] > 0.6
    assert result["curve"][-1] == [40, outcome.objective]
    assert {"test_accuracy", "test_loss", "train_accuracy", "images_per_second"} <= set(metrics)
    assert metrics["parameters"] == 1438
    assert "merges" not in metrics


def test_an_interrupted_run_is_resumed_bit_for_bit_across_a_resampling(whole, run, tmp_path):
    def interrupt(step: int, value: float) -> None:
        if step == 20:
            raise KeyboardInterrupt

    from hydra import compose, initialize_config_dir

    from helpers.paths import ROOT
    from synaptune.config.run import run as run_training

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=DIGITS)
    with pytest.raises(KeyboardInterrupt):
        run_training(cfg, tmp_path, report=interrupt)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 15
    run([*DIGITS, "training.resume=true"], tmp_path)
    assert read_rows(tmp_path) == read_rows(whole[0])
    first, second = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["weights"]
        for folder in (whole[0], tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (first["dendrites.inputs"] >= 0).all()


def test_a_network_over_the_budget_is_not_trained(run, tmp_path):
    with pytest.raises(BudgetExceeded, match="1,438 trainable parameters"):
        run([*DIGITS, "budget.max_params=1437"], tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_the_budget_holds_for_a_language_model(run, small, tmp_path):
    with pytest.raises(BudgetExceeded):
        run([*small, "budget.max_params=100"], tmp_path)


def test_the_size_follows_from_the_budget(run, tmp_path):
    few = ["training.steps=2", "training.evaluations=1"]
    outcome = run([*DIGITS, *few, "budget.max_params=3000", "budget.fit=true"], tmp_path)
    assert 2850 < outcome.metrics["parameters"] <= 3000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["network.n_dendrite_inputs=65"], "n_dendrite_inputs=65, expected at most 64"),
        (["data=stdlib"], "model.kind=dendritic with data.source=stdlib"),
        (["objective=composite"], "expected accuracy or val_loss"),
        (["budget.fit=true"], r"expected budget\.max_params"),
        (["network.architecture=ring"], "expected one of dendritic_simple"),
    ],
)
def test_what_does_not_fit_is_named(run, tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run([*DIGITS, *words], tmp_path)


def test_the_checkpoint_of_an_image_network_is_no_language_model(whole):
    with pytest.raises(UserError, match="an image network"):
        load_model(whole[0] / "checkpoint.pt")
