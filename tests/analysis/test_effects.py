"""Effects are detected, and the rate of false ones is the nominal level."""

import numpy as np
import pytest
from scipy.stats import binom, spearmanr

from helpers.real_studies import make_study
from synaptune.analysis.effects import find_effects
from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.replay import _replay_cma, replay
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.cma import CmaOptimizer
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial

NAMES = ("strong", "inside", "one", "other", "idle")
SPACE = Space(tuple(Dimension(name, "lin", start=0.5) for name in NAMES))


def objective(u):
    """A strong parameter, one with an inner optimum, two that act by their sum, an idle one."""
    return 3 * (u[0] - 0.8) ** 2 + (u[1] - 0.3) ** 2 + 2 * (u[2] + u[3] - 1.2) ** 2


def search(seed: int, evaluations: int, noise: float):
    """Run a real cma search without a database, since hundreds of them are needed."""
    engine, rng, trials = Engine("cma", seed), np.random.default_rng([1, seed]), []
    optimizer = CmaOptimizer(engine, SPACE)
    while len(trials) < evaluations:
        units = [optimizer.ask() for _ in range(optimizer.generation_size)]
        losses = [objective(unit) + noise * float(rng.standard_normal()) for unit in units]
        for unit, loss in zip(units, losses, strict=True):
            trials.append(
                Trial(len(trials), len(trials), unit, SPACE.to_values(unit), "complete", loss)
            )
        optimizer.tell([Observation(unit, loss) for unit, loss in zip(units, losses, strict=True)])
    return engine, trials


@pytest.mark.slow
def test_an_idle_parameter_is_significant_as_often_as_the_level_says():
    """Over 200 searches; the correlation over a whole search is wrong in most of them."""
    searches, false, correlated, counts = 200, 0, 0, np.zeros(len(NAMES))
    for seed in range(searches):
        engine, trials = search(seed, 120, noise=0.05)
        losses = [trial.objective for trial in trials]
        p = np.array(
            [effect.p for effect in find_effects(_replay_cma(engine, SPACE, trials, losses), NAMES)]
        )
        counts += p < 0.05
        false += p[-1] < 0.05
        correlated += spearmanr([trial.unit[-1] for trial in trials], losses).pvalue < 0.05
    low, high = binom.ppf([0.001, 0.999], searches, 0.05)
    assert low <= false <= high, f"{false} of {searches}"
    assert correlated > 3 * high, "the plain correlation is wrong over an adaptive search"
    assert counts[0] > 0.8 * searches
    assert all(counts[2:4] > 0.5 * searches)


def test_effects_do_not_depend_on_the_order_of_the_names(tmp_path):
    space = dict.fromkeys(("idle", "strong"), ("uniform", 0.0, 1.0))
    for index, ordered in enumerate((space, dict(reversed(space.items())))):
        snapshot = make_study(
            tmp_path / str(index), lambda p: (p["strong"] - 0.8) ** 2, ordered, trials=80
        )
        by_name = {
            effect.name: effect
            for effect in find_effects(replay(snapshot), snapshot.spaces["search"].names)
        }
        assert by_name["strong"].significant
        assert by_name["idle"].p > 0.01


def test_independent_random_points_are_tested_too(tmp_path):
    snapshot = make_study(
        tmp_path / "random",
        lambda p: p["a"] + 0.2 * p["b"],
        ("a", "b", "idle"),
        trials=120,
        sampler="random",
    )
    by_name = {
        effect.name: effect
        for effect in find_effects(replay(snapshot), snapshot.spaces["search"].names)
    }
    assert by_name["a"].significant
    assert by_name["b"].significant
    assert by_name["idle"].p > 0.01


def test_without_two_generations_there_are_no_effects_but_a_note(tmp_path):
    short = gather_evidence(make_study(tmp_path / "short", lambda p: p["a"], ("a", "b"), trials=5))
    assert short.effects == []
    assert "too few" in short.effects_note
    tpe = gather_evidence(
        make_study(tmp_path / "tpe", lambda p: p["a"], ("a", "b"), trials=12, sampler="tpe")
    )
    assert tpe.effects == []
    assert "tpe" in tpe.effects_note
