"""A small text, and fixtures that compose and run a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from helpers.paths import ROOT
from synaptune.config.run import Outcome
from synaptune.config.run import run as run_training
from synaptune.config.schema import register


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A file of some 100,000 letters with structure to learn."""
    words = [
        "axon",
        "bouton",
        "calcium",
        "dendrite",
        "energy",
        "fusion",
        "glia",
        "hebb",
        "ion",
        "kinase",
        ".",
    ]
    sample = np.random.default_rng(0).choice(words, 20_000)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(sample))
    return path


@pytest.fixture(scope="session")
def small(text) -> list[str]:
    """Overrides of a run that takes a second."""
    return ["scale=smoke", "data=text", f"data.path={text}", "logger=csv", "logger.progress=off"]


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def make_config(small) -> Callable[[list[str]], DictConfig]:
    """Return a function that composes train.py's configuration of the small run."""

    def compose_overrides(overrides: list[str]) -> DictConfig:
        register()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", overrides=[*small, *overrides])

    return compose_overrides


@pytest.fixture(scope="session")
def run() -> Callable[[list[str], Path], Outcome]:
    """Return a function that runs train.py's configuration with overrides in this process."""

    def run_overrides(overrides: list[str], folder: Path) -> Outcome:
        register()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return run_training(compose("train", overrides=overrides), folder)

    return run_overrides
