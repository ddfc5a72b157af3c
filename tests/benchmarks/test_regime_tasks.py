"""The tasks of the regimes: what they measure, and the counterparts that they implement."""

from __future__ import annotations

import importlib
import itertools
import sys

import pytest
import torch

from helpers.paths import ROOT
from synaptune.model.config import ModelConfig
from synaptune.model.decode import generate
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams


def load(name):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def tasks():
    return load("regime_tasks")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ModelConfig(layers=1, width=16, heads=2, context=64, experts=1)
    model = GPT(config, SynapseParams(), 256, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


def test_a_row_that_ends_in_a_short_period_is_a_loop(tasks):
    random = torch.randint(0, 256, (1, 96), generator=torch.Generator().manual_seed(0))
    looped = random.clone()
    looped[0, -60:] = torch.arange(60) % 15
    slow = random.clone()
    slow[0, -60:] = torch.arange(60) % 20
    assert tasks.find_loops(torch.cat([random, looped, slow])).tolist() == [False, True, False]


def test_the_share_of_distinct_grams(tasks):
    rows = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7]])
    assert tasks.count_distinct(rows[:1]) == 0.25  # four 4-grams, one of them distinct
    assert tasks.count_distinct(rows) == pytest.approx((0.25 + 1.0) / 2)


@pytest.mark.parametrize("fatigue", [0.0, 0.8])
def test_rows_are_continued_as_the_command_sample_does(tasks, model, fatigue):
    rows = torch.randint(0, 256, (3, 64), generator=torch.Generator().manual_seed(1))
    written = tasks.continue_rows(model, rows, {"fatigue": fatigue}, seed=0)
    for row, out in zip(rows, written, strict=True):
        prompt = row[: tasks.PROMPT].tolist()
        alone = list(generate(model, prompt, 32, temperature=0.0, fatigue=fatigue))
        assert out.tolist() == alone


def test_a_repetition_penalty_makes_emitted_tokens_rarer(tasks, model):
    rows = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(1))
    shares = [
        tasks.count_distinct(tasks.continue_rows(model, rows, {"penalty": penalty}, seed=0))
        for penalty in (1.0, 5.0)
    ]
    assert shares[0] < shares[1]


def test_the_path_integral_adds_up_to_the_decrease_of_the_loss(tasks):
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    inputs, targets = torch.randn(20, 5), torch.randn(20, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    path, losses = tasks.PathIntegral(model), []
    for _ in range(200):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path()
        losses.append(loss.item())
    last = (model(inputs) - targets).square().mean().item()
    total = sum(float(x.sum()) for x in path._sums)
    assert total == pytest.approx(losses[0] - last, rel=0.01)
    assert all((x >= 0).all() for x in path.compute_importance())


def test_an_anchor_pulls_each_weight_by_its_importance(tasks):
    model = torch.nn.Linear(2, 1, bias=False)
    importance = [torch.tensor([[1.0, 3.0]])]
    anchor = tasks.Anchor(model, importance, strength=2.0)
    assert anchor().item() == 0.0
    with torch.no_grad():
        model.weight += 1.0
    anchor().backward()
    # strength * importance / mean importance * change
    assert model.weight.grad.tolist() == [[1.0, 3.0]]


def settings_of(words):
    runs = load("runs")
    common = ("scale=smoke", "training.steps=4", "data.max_bytes=60_000", "logger=csv")
    return runs.read_settings(runs.compose_config((*common, *words)))


def test_the_loop_trains_as_a_run_of_train_does(tasks):
    runs, loop = load("runs"), load("loop")
    words = ("scale=smoke", "training.steps=4", "data.max_bytes=60_000", "seed=3", *runs.QUIET)
    whole = runs.run_once(words)
    settings = runs.read_settings(runs.compose_config(words))
    text = loop.load_text(settings)
    trained = loop.Loop(settings, text.corpus.vocab)
    trained.train(text)
    assert settings.model.release == "dynamic"  # with its noise
    assert trained.score(text, "val")["loss"] == pytest.approx(whole["val_loss"], rel=1e-7)


def test_few_data_are_pieces_of_the_training_text_and_the_other_splits_are_whole(tasks):
    corpus = load("loop").load_text(settings_of(["data.max_bytes=2_000_000"])).corpus
    few = tasks.take_pieces(corpus)
    assert len(few.train) == tasks.FEW_PIECES * tasks.FEW_LENGTH
    assert (few.train[: tasks.FEW_LENGTH] == corpus.train[: tasks.FEW_LENGTH]).all()
    assert (few.train[-tasks.FEW_LENGTH :] == corpus.train[-tasks.FEW_LENGTH :]).all()
    assert few.test is corpus.test
    assert few.val is corpus.val


def test_few_data_are_overfitted(tasks):
    words = ["data.max_bytes=2_000_000", "training.steps=400", "ablation=[no_release,no_memory]"]
    settings = settings_of([*words, "training.learning_rate=8e-3", "training.eval_batches=8"])
    numbers = tasks.train_on_few(settings, {})
    loop = load("loop")
    text = loop.load_text(settings)
    whole = loop.Loop(settings, text.corpus.vocab)
    whole.train(text)
    assert numbers["test_perplexity"] > whole.score(text)["perplexity"]


def test_a_constant_metabolism_and_a_bad_start(tasks):
    settings = settings_of(["model.experts=8", "ablation=[no_release,no_memory]"])
    frozen = tasks.start_badly(settings, {"metabolism": 0.0})
    free = tasks.start_badly(settings, {})
    # Two of eight experts get all tokens at first: Gini 0.75.
    assert 0.3 < free["test_gini"] < frozen["test_gini"] <= 0.75
    assert frozen["val_loss"] != free["val_loss"]


def test_structural_events_begin_after_the_lesion(tasks, monkeypatch):
    events = "synapse.structural.structural_interval=2"
    words = ["ablation=[no_release,no_memory]", "model.experts=8"]
    fixed, changing = (
        tasks.kill_expert(settings_of([*words, *more]), {}) for more in ([], [events])
    )
    assert fixed["test_at_first"] == changing["test_at_first"]
    assert fixed["test_perplexity"] != changing["test_perplexity"]


def test_a_killed_expert_costs_perplexity_at_first(tasks, monkeypatch):
    settings = settings_of(["ablation=[no_release,no_memory]", "training.steps=60"])
    monkeypatch.setattr(tasks, "SOON", 0.5)
    numbers = tasks.kill_expert(settings, {})
    perplexities = [numbers[f"test_{name}"] for name in ("at_first", "soon", "perplexity")]
    assert all(a > b for a, b in itertools.pairwise(perplexities))
    assert numbers["steps"] == 120
