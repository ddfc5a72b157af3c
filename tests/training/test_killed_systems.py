"""Runs of each system killed with SIGKILL: the same command gives the same end, bit for bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import processes
from helpers.paths import ROOT

COMMON = ["logger=csv", "logger.progress=off", "training.resume=true"]
DENDRITIC = [
    *("model=dendritic", "training.steps=120", "training.checkpoint_every=7", "logger.every=5"),
    *("network.steps_to_resample=8", "training.learning_rate=2e-2", "training.evaluations=5"),
]
BIOSTATIS = ["training=biostatis", "training.biostatis.targets=auto"]
BIOSTATIS += ["training.biostatis.target_steps=20"]
# Structural events, whose mixing of the moments has to survive as well.
EVENTS = ["synapse.structural.structural_interval=4", "synapse.structural.merge_health_max=0.45"]
EVENTS += ["synapse.structural.router_sim_threshold=0.2", "model.width=16"]


@pytest.fixture(scope="module")
def start(run, small, tmp_path_factory) -> Path:
    """A checkpoint of some steps of recall."""
    folder = tmp_path_factory.mktemp("start")
    recall = ["data.recall_fraction=1.0", "data.recall_queries=8", "data.recall_keys=4"]
    run([*small, *recall, "model=gpt", "training.steps=8"], folder)
    return folder


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Read metrics.csv without the columns that are times."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def read_tensors(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint has of weights, buffers, optimizer and random streams, by name."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    state = content["optimizer"]["state"]
    moments = {f"{key}.{name}": value for key in state for name, value in state[key].items()}
    return {**content["weights"], **moments, "random": content["random"]["cpu"]}


@pytest.mark.slow
@pytest.mark.parametrize("system", ["dendritic", "biostatis", "policy"])
def test_a_killed_run_is_resumed_bit_for_bit(system, small, start, tmp_path):
    steps = ["scale=smoke", "training.steps=40", "training.checkpoint_every=3"]
    policy = [
        *("experiment=policy", f"policy.start={start}", "training.batch=4", "logger.every=5"),
        *("policy.generations=4", "policy.evaluation_prompts=8", "training.evaluations=4", *steps),
    ]
    language = [*small, *steps, *EVENTS, "training.evaluations=6"]
    words = {
        "dendritic": [*DENDRITIC, *BIOSTATIS],
        "biostatis": [*language, *BIOSTATIS],
        "policy": policy,
    }[system]
    environment = {"OMP_NUM_THREADS": "1"}

    def make_command(folder: Path) -> list[str]:
        return [str(ROOT / "train.py"), *words, *COMMON, f"hydra.run.dir={folder}"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        if folder == killed:
            processes.kill_when(
                make_command(folder),
                tmp_path,
                (folder / "checkpoint.pt").exists,
                env=environment,
            )
            assert not (folder / "result.json").exists()
        done = processes.run(make_command(folder), tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
    assert read_rows(killed) == read_rows(whole)
    ends = [read_tensors(folder) for folder in (whole, killed)]
    assert set(ends[0]) == set(ends[1])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    curves = [
        json.loads((folder / "result.json").read_text())["curve"] for folder in (whole, killed)
    ]
    assert curves[0] == curves[1]
