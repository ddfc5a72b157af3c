"""The history of the experts in the metrics, the result and the checkpoint of a run."""

import csv
import json

import pytest
import torch

from synaptune.training.metrics import gini

EVENTFUL = [
    "model.width=16",
    "synapse.structural.structural_interval=4",
    "synapse.structural.merge_health_max=0.45",
]
EVENTFUL += [
    "synapse.structural.router_sim_threshold=0.2",
    "synapse.structural.split_health_min=0.5",
]


@pytest.fixture(scope="module")
def eventful_run(run, small, tmp_path_factory):
    """A run with many structural events, and its folder."""
    folder = tmp_path_factory.mktemp("eventful_run")
    return run([*small, *EVENTFUL], folder), folder


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_logged_step_has_merges_splits_and_use_of_the_experts(eventful_run):
    outcome, folder = eventful_run
    logged = rows(folder)
    merges = [float(row["merges"]) for row in logged]
    assert merges == sorted(merges)
    assert merges[-1] == outcome.metrics["merges"] > 0
    assert float(logged[-1]["splits"]) == outcome.metrics["splits"] > 0
    assert float(logged[-1]["expert_gini"]) == outcome.metrics["expert_gini"]
    assert all(row["expert_gini"] and row["expert_dead_fraction"] for row in logged)


def test_a_result_has_the_history_of_its_experts(eventful_run):
    outcome, folder = eventful_run
    life = json.loads((folder / "result.json").read_text())["life"]
    logged = [row for row in rows(folder) if row["train_loss"]]
    assert life["steps"] == [int(row["step"]) for row in logged]
    assert [gini(torch.tensor([shares])) for shares in life["utilisation"]] == [
        float(row["expert_gini"]) for row in logged
    ]
    kinds = [kind for _, kind, _ in life["events"]]
    assert (kinds.count("merge"), kinds.count("split")) == (
        outcome.metrics["merges"],
        outcome.metrics["splits"],
    )
    assert all(step % 4 == 2 and layer == 0 for step, _, layer in life["events"])


def test_a_checkpoint_of_an_earlier_version_without_history_or_sums_can_be_resumed(
    run, small, eventful_run, tmp_path
):
    outcome, folder = eventful_run
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    for name in ("life_steps", "utilisation", "events"):
        del content["state"][name]
    del content["sums"]
    torch.save(content, tmp_path / "checkpoint.pt")
    resumed = run([*small, *EVENTFUL, "training.resume=true"], tmp_path)
    assert resumed.objective == outcome.objective
    assert json.loads((tmp_path / "result.json").read_text())["life"] is None


def test_a_dense_run_has_no_history_of_experts(run, small, tmp_path):
    run([*small, "model=gpt", "model.width=16", "training.steps=4"], tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["life"] is None
    assert {row["merges"] for row in rows(tmp_path)} == {""}
