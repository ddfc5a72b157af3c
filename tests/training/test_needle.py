"""A fact in real text: its rows, and the accuracy of a model that can or cannot see it."""

import numpy as np
import pytest
import torch

from synaptune.config.compose import compose_config
from synaptune.config.run import run
from synaptune.core.errors import UserError
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus
from synaptune.data.needle import draw_needle_rows
from synaptune.data.recall import IGNORE_INDEX
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.synapse.circuit import SynapseParams
from synaptune.training.checkpoint import load_model
from synaptune.training.config import CHECKPOINT_FILE
from synaptune.training.needle import DEPTHS, ROWS, measure_needle


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("".join(f"{number}, " for number in range(12_000)))
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    config = DataConfig(source="text", path=str(tmp_path / "text.txt"), recall_fraction=0.5)
    return load_corpus(config, 32), config


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 30), (1.0, 60)])
def test_a_row_is_text_with_one_fact_and_its_question_at_the_end(corpus, depth, place):
    text, config = corpus
    random = np.random.default_rng(0)
    rows = draw_needle_rows(
        text.test, config, first=text.text_vocab, rows=5, length=63, depth=depth, random=random
    )
    assert (rows.tokens >= text.text_vocab).sum() == 3 * 5
    assert (rows.tokens[:, place] == rows.tokens[:, -1]).all()
    assert (rows.targets[:, -1] == rows.tokens[:, place + 1]).all()
    assert (rows.targets[:, :-1] == IGNORE_INDEX).all()
    assert len(set(rows.tokens[:, -1])) > 1


def test_an_accuracy_is_known_at_lengths_beyond_the_context(corpus):
    text, config = corpus
    model = GPT(
        ModelConfig(layers=1, width=16, heads=2, context=32, experts=1),
        SynapseParams(),
        text.vocab,
        seed=0,
    ).eval()
    measured = measure_needle(
        model, text, config, split="test", multiples=(1, 4), depths=(0.0, 1.0), rows=64
    )
    assert list(measured) == [1, 4]
    # An untrained model answers as if by chance among all tokens.
    assert all(accuracy <= 0.3 for values in measured.values() for accuracy in values)

    def answer(tokens):
        """Answer with the token that follows the fact's key, as a perfect memory does."""
        place = (tokens[:, :-1] == tokens[:, -1:]).int().argmax(1)
        values = tokens[torch.arange(len(tokens)), place + 1]
        logits = torch.nn.functional.one_hot(values, text.vocab).float()[:, None]
        return type("Output", (), {"logits": logits})

    model.forward = answer
    measured = measure_needle(
        model, text, config, split="test", multiples=(2,), depths=(0.0, 0.4), rows=8
    )
    assert measured == {2: [1.0, 1.0]}


def test_a_run_has_the_accuracy_of_its_model_by_length(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    words = ["scale=smoke", "data.recall_fraction=1.0", "logger.progress=off", "logger.wandb=off"]
    plain = run(compose_config(words).base, tmp_path / "plain", overrides=[]).metrics
    asked = [*words, "data.needle_lengths=2"]
    metrics = run(compose_config(asked).base, tmp_path / "asked", overrides=[]).metrics
    model, config, data = load_model(tmp_path / "asked" / CHECKPOINT_FILE)
    text = load_corpus(data, config.context)
    measured = measure_needle(
        model, text, data, split="val", multiples=(1, 2), depths=DEPTHS, rows=ROWS
    )
    means = [np.mean(measured[1]), np.mean(measured[2])]
    assert metrics["val_needle_accuracy_1x"] == pytest.approx(means[0])
    assert metrics["val_needle_accuracy_2x"] == pytest.approx(means[1])
    assert metrics["val_needle_accuracy"] == pytest.approx(np.mean(means))
    assert 0.0 < metrics["val_needle_accuracy"] < 0.5  # chance is an eighth
    assert {name for name in metrics if name not in plain} == {
        "val_needle_accuracy",
        "val_needle_accuracy_1x",
        "val_needle_accuracy_2x",
    }
    assert metrics["val_loss"] == plain["val_loss"]  # nothing else changes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.needle_lengths=2"], "recall_fraction"),
        (["data.needle_lengths=-1"], "at least 0"),
        (["data.needle_lengths=10000", "data.recall_fraction=0.5"], "longer text"),
    ],
)
def test_a_fact_that_cannot_be_asked_for_is_refused(words, expected, tmp_path):
    composed = compose_config(["scale=smoke", "logger.progress=off", "logger.wandb=off", *words])
    with pytest.raises(UserError, match=expected):
        run(composed.base, tmp_path / "run", overrides=[])
