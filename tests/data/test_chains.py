"""In-context Markov chains: their statistics, and the Bayes optimum as a lower bound."""

import itertools

import numpy as np
import pytest

from synaptune.core.errors import UserError
from synaptune.data.batches import make_eval_batches, make_train_batch
from synaptune.data.chains import FIRST_STATE, compute_bayes_loss, draw_chain_rows
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus

CHAINS = DataConfig(source="chains")


def draw(rows: int = 400, context: int = 64, **settings) -> np.ndarray:
    config = DataConfig(source="chains", **settings)
    return draw_chain_rows(config, rows=rows, context=context, random=np.random.default_rng(0))


def test_the_states_of_a_row_follow_its_own_matrix():
    """Deterministic chains: a state has one successor in a row, and another one in another row."""
    rows = draw(50, chain_spread=0.01)
    successors = [set(itertools.pairwise(row)) for row in rows]
    pairs = np.mean([len(found) for found in successors])
    states = np.mean([len(set(row[:-1])) for row in rows])
    assert pairs < 1.3 * states
    assert len(set.union(*successors)) > 60  # of 64


def test_the_bayes_optimum_beats_the_transitions_that_are_not_known():
    uniform = np.log(8)
    assert compute_bayes_loss(draw(), CHAINS) == pytest.approx(1.63, abs=0.03)
    assert compute_bayes_loss(draw(context=8), CHAINS) < uniform
    assert compute_bayes_loss(draw(context=8), CHAINS) > compute_bayes_loss(draw(), CHAINS)
    # Another prior than that of the data is worse.
    wrong = compute_bayes_loss(draw(), DataConfig(source="chains", chain_spread=1.0))
    assert wrong > compute_bayes_loss(draw(), CHAINS)


def test_batches_of_chains_are_functions_of_their_arguments():
    corpus = load_corpus(CHAINS, 16)
    kwargs = dict(size=4, context=16)
    first, again, other = (
        make_train_batch(corpus, CHAINS, seed=1, step=step, **kwargs) for step in (3, 3, 4)
    )
    assert first.tokens.equal(again.tokens)
    assert not first.tokens.equal(other.tokens)
    assert first.tokens[:, 1:].equal(first.targets[:, :-1])
    val, test = (
        make_eval_batches(corpus, CHAINS, split, limit=3, **kwargs) for split in ("val", "test")
    )
    assert len(val) == len(test) == 3
    assert not val[0].tokens.equal(test[0].tokens)
    assert set(corpus.decode(val[0].tokens[0].tolist())) <= set("abcdefgh")
    assert val[0].tokens.min() >= FIRST_STATE


@pytest.mark.parametrize("setting", [dict(chain_states=1), dict(chain_spread=0.0)])
def test_an_impossible_chain_is_refused(setting):
    with pytest.raises(UserError, match=f"data.{next(iter(setting))}="):
        load_corpus(DataConfig(source="chains", **setting), 16)


def test_distractors_stand_between_the_questions_and_are_no_keys():
    config = DataConfig(recall_fraction=1.0, recall_distractors=5)
    corpus = load_corpus(config, 64)
    batch = make_train_batch(corpus, config, seed=0, step=0, size=8, context=64)
    assert corpus.vocab == corpus.text_vocab + 8 + 8 + 5
    filler = batch.tokens[:, 8:][~batch.recall[:, 8:]]
    assert len(set(filler.tolist()) - set(range(corpus.text_vocab + 16))) == 5
    assert len(set(filler.tolist())) <= 5 + 16
