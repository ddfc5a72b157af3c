"""Batches: a pure function of (seed, step), windows of the text, and recall rows."""

import numpy as np
import pytest
import torch

from synaptune.data.batches import make_eval_batches, make_train_batch
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus
from synaptune.data.recall import IGNORE_INDEX, draw_recall_rows

TEXT = "".join(f"{number}, " for number in range(12_000))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    (root / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNAPTUNE_CACHE", str(root / "cache"))
        yield str(root / "text.txt")


def load(source, **changes):
    config = DataConfig(source="text", path=source, **changes)
    return load_corpus(config, 64), config


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_batch_is_a_pure_function_of_seed_and_step(source, fraction):
    corpus, config = load(source, recall_fraction=fraction)
    first = [
        make_train_batch(corpus, config, seed=3, step=step, size=8, context=64) for step in range(4)
    ]
    np.random.seed(99)
    torch.manual_seed(99)
    for step in (3, 1, 0, 2):  # out of order, as after a resume
        second = make_train_batch(corpus, config, seed=3, step=step, size=8, context=64)
        assert all(torch.equal(a, b) for a, b in zip(first[step], second, strict=True))
    assert not torch.equal(first[0].tokens, first[1].tokens)
    assert not torch.equal(
        first[0].tokens, make_train_batch(corpus, config, seed=4, step=0, size=8, context=64).tokens
    )


def test_text_rows_are_windows_of_the_training_split_with_their_next_tokens(source):
    corpus, config = load(source)
    batch = make_train_batch(corpus, config, seed=0, step=0, size=16, context=64)
    assert batch.tokens.shape == batch.targets.shape == batch.recall.shape == (16, 64)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert not batch.recall.any()
    text = corpus.decode(corpus.train.tolist())
    assert all(
        corpus.decode([*row.tolist(), int(last)]) in text
        for row, last in zip(batch.tokens, batch.targets[:, -1], strict=True)
    )


def test_training_reaches_every_part_of_the_split(source):
    corpus, config = load(source)
    seen = set()
    for step in range(300):
        seen.update(
            make_train_batch(corpus, config, seed=0, step=step, size=64, context=64)
            .targets[:, -1]
            .tolist()
        )
    assert seen == set(corpus.train[64:].tolist())


def test_the_share_of_recall_rows_is_the_fraction_on_average(source):
    corpus, config = load(source, recall_fraction=0.3)
    rows = [
        int(
            make_train_batch(corpus, config, seed=0, step=step, size=8, context=64)
            .recall.any(1)
            .sum()
        )
        for step in range(1000)
    ]
    assert set(rows) == {2, 3}
    assert np.mean(rows) == pytest.approx(0.3 * 8, abs=0.06)


def test_evaluation_windows_do_not_overlap_and_are_spread_over_the_split(source):
    corpus, config = load(source)
    batches = make_eval_batches(corpus, config, "val", size=4, context=32, limit=6)
    assert [len(batch.tokens) for batch in batches] == [4] * 6
    rows = torch.cat([batch.tokens for batch in batches])
    starts = [
        next(
            i
            for i in range(0, len(corpus.val) - 32, 32)
            if np.array_equal(corpus.val[i : i + 32], row)
        )
        for row in rows.numpy()
    ]
    assert len(set(starts)) == 24
    assert starts == sorted(starts)
    assert starts[-1] > len(corpus.val) - 3 * 32


def test_a_short_split_is_evaluated_whole_and_once(source):
    corpus, config = load(source)
    batches = make_eval_batches(corpus, config, "test", size=16, context=64, limit=10_000)
    assert sum(batch.targets.numel() for batch in batches) == (len(corpus.test) - 1) // 64 * 64


def test_evaluation_is_the_same_for_every_run_and_differs_between_splits(source):
    corpus, config = load(source, recall_fraction=0.5)
    first, second = (
        make_eval_batches(corpus, config, "val", size=4, context=64, limit=6) for _ in range(2)
    )
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    other = make_eval_batches(corpus, config, "test", size=4, context=64, limit=6)
    assert not torch.equal(first[-1].tokens, other[-1].tokens)


def test_evaluation_scores_text_and_recall_separately(source):
    for fraction, recall in ((0.0, 0), (0.01, 1), (0.5, 3), (1.0, 6)):
        corpus, config = load(source, recall_fraction=fraction)
        batches = make_eval_batches(corpus, config, "val", size=4, context=64, limit=6)
        flags = [bool(batch.recall.any()) for batch in batches]
        assert flags == [False] * (6 - recall) + [True] * recall
        assert all(
            torch.equal(batch.targets != IGNORE_INDEX, batch.recall)
            for batch in batches[6 - recall :]
        )


def test_recall_alone_needs_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.txt").write_text("hello")
    corpus, config = load(str(tmp_path / "tiny.txt"), recall_fraction=1.0)
    for split in ("val", "test"):
        batches = make_eval_batches(corpus, config, split, size=4, context=64, limit=2)
        assert [bool(batch.recall.any()) for batch in batches] == [True, True]
    assert make_train_batch(corpus, config, seed=0, step=0, size=4, context=64).recall.any(1).all()


def draw_rows(config: DataConfig, *, rows: int = 400, context: int = 64, graded: bool = False):
    return draw_recall_rows(
        config,
        first=256,
        rows=rows,
        context=context,
        random=np.random.default_rng(0),
        graded=graded,
    )


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"recall_pairs": 8}, {"recall_keys": 16, "recall_values": 16, "recall_queries": 3}],
)
def test_every_answer_occurs_earlier_in_its_row(settings, graded):
    config = DataConfig(recall_fraction=1.0, **settings)
    tokens, targets, recall = draw_rows(config, graded=graded)
    filler = 256 + config.recall_keys + config.recall_values
    assert (recall.sum(1) == config.recall_queries).all()
    assert np.array_equal(recall, targets != IGNORE_INDEX)
    for row, answers in zip(tokens, targets, strict=True):
        queries = np.flatnonzero(answers != IGNORE_INDEX)
        head = row[: queries[0]][row[: queries[0]] != filler]
        pairs = dict(zip(head[0::2].tolist(), head[1::2].tolist(), strict=True))
        assert len(pairs) == len(head) // 2, "the keys of a row differ"
        assert [pairs[int(key)] for key in row[queries]] == answers[queries].tolist()
        assert set(row[len(head) :].tolist()) <= set(pairs) | {filler}, (
            "an answer stands only in its pair"
        )


def test_rows_are_full_in_evaluation_and_of_every_length_in_training():
    config = DataConfig(recall_fraction=1.0)
    for graded, lengths in ((False, {4}), (True, {1, 2, 3, 4})):
        tokens = draw_rows(config, graded=graded).tokens
        values = (tokens >= 256 + config.recall_keys) & (
            tokens < 256 + config.recall_keys + config.recall_values
        )
        assert set(values.sum(1).tolist()) == lengths


def test_query_distances_stay_within_their_bounds_and_short_ones_are_more_frequent():
    config = DataConfig(recall_fraction=1.0, recall_near=5, recall_far=40, recall_queries=4)
    recall = draw_rows(config, rows=4000).recall
    distances = np.nonzero(recall)[1] - (2 * config.recall_pairs - 1)
    assert distances.min() == 5
    assert distances.max() == 40
    near, far = (distances < 14).mean(), (distances >= 14).mean()
    assert near == pytest.approx(
        far, abs=0.12
    )  # log-uniform: 14 is the geometric middle of 5 and 40


def test_keys_values_and_pairs_are_queried_equally_often():
    config = DataConfig(recall_fraction=1.0)
    tokens, targets, recall = draw_rows(config, rows=4000)
    for symbols, first, count in ((tokens[recall], 256, 8), (targets[recall], 264, 8)):
        shares = np.bincount(symbols - first, minlength=count) / len(symbols)
        assert shares == pytest.approx(np.full(count, 1 / count), abs=0.01)
