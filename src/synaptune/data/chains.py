"""In-context Markov chains: every row has a transition matrix of its own.

    P[i] ~ Dirichlet(chain_spread, ..., chain_spread)      row i of the matrix, drawn for each row
    x[t+1] ~ P[x[t]]                                                                            (1)
    p(x[t+1] = j | x[1..t]) = (n_ij + chain_spread) / (n_i + chain_states chain_spread)         (2)

n_ij how often j has followed i so far, i = x[t]. The states are the letters from `a`. Nothing about
the next state can be learned but from the row itself, so the loss measures the memory of a model;
(2) is the Bayes optimum, which no model beats on average.
Source: Edelman et al., arXiv 2402.11004; (2) posterior mean of a Dirichlet prior.
"""

from __future__ import annotations

import numpy as np

from synaptune.data.config import DataConfig

FIRST_STATE = ord("a")


def draw_chain_rows(
    config: DataConfig, *, rows: int, context: int, random: np.random.Generator
) -> np.ndarray:
    """Draw rows of context + 1 tokens, (row, token) int64, eq. (1)."""
    states = config.chain_states
    ends = random.dirichlet([config.chain_spread] * states, size=(rows, states)).cumsum(-1)
    tokens = np.empty((rows, context + 1), dtype=np.int64)
    tokens[:, 0] = random.integers(states, size=rows)
    draws, row = random.random((rows, context)), np.arange(rows)
    for t in range(context):
        passed = ends[row, tokens[:, t]] < draws[:, t, None]
        tokens[:, t + 1] = np.minimum(passed.sum(-1), states - 1)  # the last end may round below 1
    return FIRST_STATE + tokens


def compute_bayes_loss(tokens: np.ndarray, config: DataConfig) -> float:
    """Return the mean loss of the Bayes optimum (2) on rows (row, token) [nats/token]."""
    states, row = tokens - FIRST_STATE, np.arange(len(tokens))
    counts = np.zeros((len(tokens), config.chain_states, config.chain_states))
    total = 0.0
    for now, following in zip(states.T[:-1], states.T[1:], strict=True):
        seen = counts[row, now]
        mass = seen.sum(-1) + config.chain_states * config.chain_spread
        total -= np.log((seen[row, following] + config.chain_spread) / mass).mean()
        counts[row, now, following] += 1.0
    return total / (tokens.shape[1] - 1)
