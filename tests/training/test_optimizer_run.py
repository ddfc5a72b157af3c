"""Runs with training=biostatis, the schedule `advanced`, and the representation metrics."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from helpers.paths import ROOT
from synaptune.config.run import run as run_training
from synaptune.training.config import TrainingConfig
from synaptune.training.representation import measure_representation
from synaptune.training.schedules import learning_rate


def read_losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_an_interrupted_run_of_biostatis_with_experts_is_resumed_bit_for_bit(run, small, tmp_path):
    words = [
        *small,
        "training=biostatis",
        "training.biostatis.targets=auto",
        "training.schedule=advanced",
    ]
    words += ["training.biostatis.target_steps=8", "training.representation=true"]
    whole = run(words, tmp_path / "whole")
    assert whole.metrics["merges"] + whole.metrics["splits"] >= 0
    assert 1.0 <= whole.metrics["representation_participation"] <= 32.0

    def interrupt(step: int, value: float) -> None:
        raise KeyboardInterrupt

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=words)
    with pytest.raises(KeyboardInterrupt):
        run_training(cfg, tmp_path / "part", report=interrupt)
    run([*words, "training.resume=true"], tmp_path / "part")
    assert read_losses(tmp_path / "part") == read_losses(tmp_path / "whole")
    adamw = run(small, tmp_path / "adamw")
    assert adamw.objective != whole.objective


def test_the_advanced_schedule_falls_to_a_twentieth_and_then_to_zero():
    config = TrainingConfig(steps=200, learning_rate=1.0, warmup_fraction=0.1, schedule="advanced")
    rates = [learning_rate(step, config) for step in range(1, 201)]
    assert rates[9] == pytest.approx(0.5)
    assert max(rates) == rates[19] == 1.0
    knee = 20 + round(0.7 * 180)
    assert rates[knee - 1] == pytest.approx(0.05)
    assert rates[knee + 26] == pytest.approx(0.025, abs=1e-6)
    assert rates[-1] == 0.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[19:]))


def test_the_representation_counts_the_directions_of_the_features():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 40, generator=generator))[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]
    even = measure_representation(basis)
    assert even["representation_effective_rank"] == pytest.approx(40.0, rel=1e-4)
    assert even["representation_participation"] == pytest.approx(40.0, rel=1e-4)
    assert even["representation_top5_share"] == pytest.approx(5 / 40, rel=1e-4)
    one = measure_representation(basis[:, :1] @ torch.randn(1, 40, generator=generator) + 3.0)
    assert one["representation_participation"] == pytest.approx(1.0, rel=1e-3)
    assert one["representation_top5_share"] == pytest.approx(1.0, rel=1e-3)
