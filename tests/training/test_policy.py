"""Policy training of a checkpoint: tasks, gradient, score, resume; and the focused loop."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from helpers.paths import ROOT
from synaptune.config.run import run as run_training
from synaptune.core.errors import UserError
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus
from synaptune.data.tasks import make_evaluation_batches, make_policy_batch
from synaptune.model.gpt import GPT
from synaptune.protocols.focused import (
    SweepResult,
    answer_questions,
    compute_rate_difference,
    compute_rate_interval,
    run_focused,
)
from synaptune.search.trial import Trial
from synaptune.training.checkpoint import load_model
from synaptune.training.config import LoggerConfig, PolicyConfig, TrainingConfig
from synaptune.training.policy_job import PolicyJob, load_policy_parts

RECALL = DataConfig(recall_fraction=1.0)
TASKS = ("recall", "copy", "sums")


@pytest.fixture(scope="module")
def start(run, small, tmp_path_factory) -> Path:
    """A checkpoint of some steps of recall, far from all answers."""
    folder = tmp_path_factory.mktemp("start")
    recall = ["data.recall_fraction=1.0", "data.recall_queries=8", "data.recall_keys=4"]
    run([*small, *recall, "model=gpt", "training.steps=24"], folder)
    return folder


@pytest.fixture(scope="module")
def corpus(start):
    _, config, data = load_model(start / "checkpoint.pt")
    return load_corpus(data, config.context), data


def make_words(start: Path, *words: str) -> list[str]:
    return [
        *("scale=smoke", "experiment=policy", f"policy.start={start}", "logger=csv"),
        *("logger.progress=off", "training.steps=8", "training.batch=4", "training.evaluations=2"),
        *("policy.generations=8", "policy.evaluation_prompts=40", "training.checkpoint_every=3"),
        *("policy.beta_warmup=3", *words),
    ]


def read_rows(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["train_loss"], row["val_reward"]) for row in csv.DictReader(file)]


def make_job(start: Path, **settings: Any) -> PolicyJob:
    parts, fingerprint = load_policy_parts(PolicyConfig(start=str(start), **settings))
    common = dict(logger=LoggerConfig(), seed=0, name="x", run_dir=start, flat_config={})
    return PolicyJob(
        training=TrainingConfig(batch=4), fingerprint=fingerprint, in_search=True, **common, **parts
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_of_each_task_is_what_a_program_finds(corpus, task):
    text, data = corpus
    arguments = dict(context=64, seed=3, number=5, size=12)
    batch = make_policy_batch(task, text, data, **arguments)
    again = make_policy_batch(task, text, data, **arguments)
    assert all(torch.equal(*pair) for pair in zip(batch, again, strict=True))
    for prompt, answer in zip(batch.prompts.tolist(), batch.answers.tolist(), strict=True):
        if task == "recall":
            pairs = dict(zip(prompt[: 2 * data.recall_pairs : 2], prompt[1::2], strict=False))
            assert [pairs[prompt[-1]]] == answer
        elif task == "copy":
            assert text.decode(prompt) == f"{text.decode(answer)}\n"
        else:
            first, second = text.decode(prompt).removesuffix("=").split("+")
            assert text.decode(answer) == f"{int(first) + int(second):03d}"


def test_evaluation_prompts_are_fixed_and_differ_between_the_splits(corpus):
    text, data = corpus
    val, same, test = (
        make_evaluation_batches("sums", text, data, context=64, test=is_test, prompts=100)
        for is_test in (False, False, True)
    )
    assert sum(len(batch.answers) for batch in val) == 100
    assert torch.equal(val[1].prompts, same[1].prompts)
    assert not torch.equal(val[0].prompts, test[0].prompts)


@pytest.mark.parametrize("task", TASKS)
def test_the_log_probabilities_are_those_of_the_whole_row(start, task):
    job = make_job(start, task=task, generations=3)
    batch, noise = job.make_batch(0), torch.Generator().manual_seed(0)
    samples = job._sample(batch, noise)
    assert samples.shape == (4, 3, batch.answers.shape[1])
    logs = job._compute_logs(job.model, batch.prompts, samples)
    rows = torch.cat([batch.prompts[1], samples[1, 2]])[None]
    whole = job.model(rows).logits[0].log_softmax(-1)
    place = batch.prompts.shape[1] - 1
    torch.testing.assert_close(
        logs[1, 2], whole[place : place + samples.shape[2]], rtol=1e-4, atol=1e-5
    )


def test_the_divergence_is_zero_at_the_start_and_a_right_answer_becomes_likelier(start):
    job = make_job(start, generations=64, entropy=0.0, beta=0.0)
    batch = job.make_batch(1)

    def measure() -> float:
        logs = job._compute_logs(job.model, batch.prompts, batch.answers[:, None])
        return float(logs.gather(-1, batch.answers[:, None, :, None]).exp().mean())

    before = measure()
    optimizer = torch.optim.SGD(job.model.parameters(), lr=0.05)
    for number in range(5):
        optimizer.zero_grad()
        job.compute_loss(batch, torch.Generator().manual_seed(number)).total.backward()
        optimizer.step()
    assert measure() > before
    assert job.sums[1] == 5.0


def test_a_group_of_equal_rewards_gives_no_gradient_but_that_of_beta_and_entropy(start):
    job = make_job(start, generations=4, entropy=0.0, beta=0.5)
    batch = job.make_batch(0)
    wrong = batch._replace(answers=torch.full_like(batch.answers, -1))
    job.compute_loss(wrong, torch.Generator().manual_seed(0)).total.backward()
    grads = [weight.grad for weight in job.model.parameters() if weight.grad is not None]
    assert max(float(grad.abs().max()) for grad in grads) < 1e-6  # p = p_0: the KL has no slope


def test_a_run_scores_the_change_of_the_evaluation_reward_and_resumes(start, tmp_path, run):
    words = make_words(start, "training.test=true")
    outcome = run(words, tmp_path / "whole")
    metrics = outcome.metrics
    assert outcome.objective == metrics["reward_delta"]
    assert metrics["reward_delta"] == pytest.approx(
        metrics["val_reward"] - metrics["reward_before"], abs=1e-9
    )
    assert {"train_reward", "test_reward_delta", "val_greedy_reward"} <= set(metrics)
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["curve"][-1][0] == 8
    model, _, _ = load_model(tmp_path / "whole" / "checkpoint.pt")
    assert isinstance(model, GPT)

    def interrupt(step: int, value: float) -> None:
        raise KeyboardInterrupt

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=words)
    with pytest.raises(KeyboardInterrupt):
        run_training(cfg, tmp_path / "part", report=interrupt)
    run([*words, "training.resume=true"], tmp_path / "part")
    assert read_rows(tmp_path / "part") == read_rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policy.start=null"], r"policy\.start: expected a checkpoint"),
        (["policy.start=missing.pt"], "no checkpoint at missing.pt"),
        (["policy.generations=1"], r"policy\.generations=1: expected at least 2"),
        (["policy.task=poems"], "expected one of recall, copy, sums"),
    ],
)
def test_what_cannot_be_trained_is_named(start, tmp_path, run, words, said):
    with pytest.raises(UserError, match=said):
        run([*make_words(start), *words], tmp_path)


def test_recall_needs_a_model_with_its_keys(run, small, tmp_path):
    run([*small, "model=gpt", "training.steps=1", "training.evaluations=1"], tmp_path / "text")
    with pytest.raises(UserError, match="trained without recall rows"):
        run(make_words(tmp_path / "text"), tmp_path / "policy")


def make_sweep(name: str, scores: list[float], halves: list[float], batches: list[int]):
    trials = tuple(
        Trial(number, number, (0.5,), {"training.batch": batch}, "complete", score)
        for number, (score, batch) in enumerate(zip(scores, batches, strict=True))
    )
    return SweepResult(name, trials, {n: {50: half} for n, half in enumerate(halves)}, 0.1)


def test_the_four_questions_are_answered_with_intervals():
    first = make_sweep("a", [0.0] * 12 + [0.2] * 4, [], [4] * 12 + [8] * 4)
    ends = [0.2 + 0.01 * number for number in range(12)]
    focused = make_sweep("b", ends, [end - 0.05 for end in ends], [8] * 12)
    answers = list(answer_questions(first, focused).values())
    assert answers[0].startswith("yes: 100 (74 to 100) % of 12")
    assert answers[1].startswith("no, it rises: +0.050")
    assert answers[2].startswith("yes: success +75 points")
    assert answers[3].startswith("it has the best mean")
    flat = make_sweep("b", ends[:2], [0.3, 0.1], [8, 8])
    assert list(answer_questions(first, flat).values())[1].startswith("consistent with one")


def test_intervals_of_rates_are_those_of_the_literature():
    assert compute_rate_interval(16, 48) == pytest.approx((0.2039, 0.4841), abs=1e-4)
    # Newcombe 1998, table II (a): 56/70 against 48/80.
    assert compute_rate_difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


@pytest.mark.slow
def test_the_focused_loop_runs_both_sweeps_and_continues(start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        *(f"policy.start={start}", "protocol.budget=2", "protocol.focused_budget=2"),
        *("training.steps=4", "training.evaluations=2", "policy.evaluation_prompts=8"),
        *("logger=csv", "workers=here", "protocol.threshold=-1.0"),
    ]
    first = run_focused(words)
    assert len(first["sweeps"]) == 2
    assert (tmp_path / "outputs/studies/policy-sweep/study.db").exists()
    said = capsys.readouterr().out
    assert "policy training: both sweeps" in said
    assert run_focused(words) == first
