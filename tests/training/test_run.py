"""A complete run: determinism, resume after a kill, and failures."""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch

from helpers import processes
from synaptune.config.run import _load_cached_corpus
from synaptune.core.errors import UserError
from synaptune.model.gpt import GPT
from synaptune.training.checkpoint import load_model
from synaptune.training.errors import DivergedError
from synaptune.training.loggers.base import CsvWriter


def read_losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]


def test_a_run_lowers_the_loss_and_writes_its_result(run, small, tmp_path):
    outcome = run([*small, "training.test=true"], tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (
        result["objective"]
        == outcome.objective
        == result["curve"][-1][1]
        == outcome.metrics["val_loss"]
    )
    assert outcome.objective < math.log(256) - 1
    assert outcome.metrics["val_perplexity"] == pytest.approx(math.exp(outcome.objective))
    assert outcome.metrics["val_bits_per_byte"] == pytest.approx(outcome.objective / math.log(2))
    assert {
        "test_loss",
        "tokens_per_second",
        "setup_seconds",
        "peak_memory_mib",
        "expert_gini",
        "merges",
        "splits",
    } <= set(outcome.metrics)
    assert len(result["data_fingerprint"]) == len(result["config_fingerprint"]) == 64


def test_the_same_seed_gives_the_same_loss_curve_bit_for_bit(run, small, tmp_path):
    for name in ("a", "b"):
        run([*small, "seed=3"], tmp_path / name)
    run([*small, "seed=4"], tmp_path / "c")
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b") != read_losses(tmp_path / "c")


def test_other_random_draws_in_the_process_change_nothing(run, small, tmp_path):
    run(small, tmp_path / "a")
    torch.manual_seed(99)
    torch.rand(7)
    run(small, tmp_path / "b")
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b")


def test_a_run_that_cannot_be_compiled_names_what_is_missing(run, small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        run([*small, "training.compile=true"], tmp_path)


def test_a_recall_run_reports_its_accuracy_and_no_bits_per_byte(run, small, tmp_path):
    outcome = run(
        [*small, "data.recall_fraction=1.0", "data.recall_pairs=4", "data.recall_queries=8"],
        tmp_path,
    )
    assert 0.0 <= outcome.metrics["val_recall_accuracy"] <= 1.0
    assert "val_bits_per_byte" not in outcome.metrics


def test_accumulated_micro_batches_count_as_one_step(run, small, tmp_path):
    outcome = run([*small, "training.accumulate=3", "training.steps=6"], tmp_path)
    assert outcome.metrics["steps"] == 6
    second = run([*small, "training.accumulate=3", "training.steps=6"], tmp_path / "second")
    assert second.objective == outcome.objective


def test_a_dense_plain_transformer_has_no_expert_metrics(run, small, tmp_path):
    outcome = run([*small, "model=gpt", "position=alibi"], tmp_path)
    assert "expert_gini" not in outcome.metrics


def test_a_killed_run_is_resumed_bit_for_bit(run, small, tmp_path, root):
    overrides = [
        *small,
        "training.steps=60",
        "training.checkpoint_every=5",
        "training.evaluations=6",
    ]
    run(overrides, tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [
        str(root / "train.py"),
        *overrides,
        f"hydra.run.dir={killed}",
        "training.resume=true",
    ]
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = processes.start(command, tmp_path, env=environment)
    deadline = time.monotonic() + 600
    while (
        not (killed / "checkpoint.pt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists(), "the run ended before it could be killed"
    done = processes.run(command, tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert read_losses(killed) == read_losses(tmp_path / "whole")
    weights = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["weights"]
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")
    ]
    assert all(results[0][part] == results[1][part] for part in ("curve", "life"))


def test_resuming_a_finished_run_returns_its_metrics(run, small, tmp_path):
    first = run(small, tmp_path)
    second = run([*small, "training.resume=true"], tmp_path)
    assert second.objective == first.objective


def test_a_checkpoint_of_another_configuration_is_refused(run, small, tmp_path):
    run(small, tmp_path)
    with pytest.raises(UserError, match="another configuration"):
        run([*small, "training.resume=true", "training.learning_rate=1e-4"], tmp_path)


def test_a_loss_that_is_not_a_number_is_a_failure_and_not_a_score(
    run, small, tmp_path, monkeypatch
):
    original_init = GPT.__init__

    def poisoned(self, *values, **named):
        original_init(self, *values, **named)
        with torch.no_grad():
            next(self.parameters()).fill_(math.nan)

    monkeypatch.setattr(GPT, "__init__", poisoned)
    with pytest.raises(DivergedError, match="nan"):
        run(small, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_checkpoint_restores_the_trained_model(run, small, tmp_path):
    outcome = run(small, tmp_path)
    model, config, data = load_model(tmp_path / "checkpoint.pt")
    assert (config.width, data.source, model.training) == (32, "text", False)
    corpus = _load_cached_corpus(data, config.context)
    from synaptune.data.batches import make_eval_batches
    from synaptune.training.metrics import training_loss

    batches = make_eval_batches(corpus, data, "val", size=4, context=config.context, limit=2)
    with torch.no_grad():
        mean = sum(
            float(training_loss(model(batch.tokens).logits, batch.targets)) for batch in batches
        ) / len(batches)
    assert mean == pytest.approx(outcome.objective, abs=1e-5)


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_broken_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="unreadable checkpoint"):
        load_model(path)


def test_a_checkpoint_whose_read_fails_is_not_called_damaged():
    with pytest.raises(UserError, match="cannot be read: Input/output error"):
        load_model("/proc/self/mem")


@pytest.fixture(scope="module")
def checkpointed(run, small, tmp_path_factory) -> Path:
    """The folder of a run of a few steps."""
    folder = tmp_path_factory.mktemp("checkpointed")
    run([*small, "training.steps=4"], folder)
    return folder


@pytest.mark.parametrize(
    ("names", "value", "said"),
    [
        (["state"], None, "a damaged checkpoint: state"),
        (["state", "step"], "4", "a damaged checkpoint: state"),
        (["state", "nosuch"], 1, "a damaged checkpoint: state"),
        (["optimizer"], None, "a damaged checkpoint: optimizer"),
        (["optimizer", "state"], [], "a damaged checkpoint: optimizer"),
        (["optimizer", "state", 0], {}, "the state of AdamW"),
        (["optimizer", "state", 0, "exp_avg"], torch.ones(3), "the state of AdamW"),
        (["random", "cpu"], torch.zeros(3), "random states that cannot be restored"),
        (["random"], {}, "a damaged checkpoint: random"),
        (["weights"], {}, "a damaged checkpoint: weights"),
        (["fingerprint"], None, "a damaged checkpoint: fingerprint"),
    ],
)
def test_a_checkpoint_with_a_damaged_part_is_refused(
    run, small, checkpointed, tmp_path, names, value, said
):
    content = torch.load(checkpointed / "checkpoint.pt", weights_only=True)
    part = content
    for name in names[:-1]:
        part = part[name]
    part[names[-1]] = value
    if names[0] != "state":
        content["state"]["step"] = 2  # steps are left, for which the optimizer is needed
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=said):
        run([*small, "training.steps=4", "training.resume=true"], tmp_path)


def test_a_model_is_not_read_from_a_damaged_description(checkpointed, tmp_path):
    content = torch.load(checkpointed / "checkpoint.pt", weights_only=True)
    for about in (None, {}, {**content["about"], "synapse": 3}, {**content["about"], "vocab": -1}):
        torch.save({**content, "about": about}, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match="whose model does not fit"):
            load_model(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("training", ["biostatis", "sgd"])
def test_a_run_does_not_start_from_the_moments_of_another_optimizer(
    run, small, checkpointed, tmp_path, training
):
    words = [f"training={training}", f"training.start={checkpointed}/checkpoint.pt"]
    with pytest.raises(UserError, match="whose optimizer keeps, of a weight, step, exp_avg"):
        run([*small, *words, "training.steps=8"], tmp_path)


@pytest.mark.parametrize("content", [b"no,columns\n1,2\n", b"step\n\xff\n"])
def test_a_damaged_file_of_metrics_is_refused_when_a_run_goes_on(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv, which cannot be read"):
        CsvWriter(path, 2)
    assert path.read_bytes() == content
