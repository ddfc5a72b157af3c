"""Convergence of a search, and the expected best of the same number of random points.

    E min of k among n points = sum_i y_(i) C(n - i, k - 1) / C(n, k),   y_(1) <= ... <= y_(n)   (1)
    P(min of k > y_(i))       = C(n - i, k) / C(n, k)                                            (2)

Source: (1), (2) order statistics of k points drawn without replacement from the n points that were
run; Dodge et al. 2019, arXiv:1909.03004, use the same curve with replacement.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from synaptune.analysis.results import Convergence, Generation, RandomCurve
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import BASELINE, StudySnapshot

# A time without an ended trial that counts as a pause [longest run]; chosen: a run and two retries.
PAUSE_FACTOR = 3.0
_MAX_POINTS = 400  # points of the random curve, at most
_SEEDS_KEY = "search.seeds"  # number of seeds that a loss is the mean of
# Groups of the configuration that a loss depends on. A searched parameter is in none of them; its
# range is compared instead.
_COMPARED_GROUPS = ("data", "model", "position", "synapse", "training", "objective", "seed")


def compute_convergence(snapshot: StudySnapshot) -> Convergence | None:
    """Compute the best loss so far by evaluation and by time; None before the first ended trial."""
    ended = [
        trial
        for trial in snapshot.search_trials
        if trial.state != "running" and trial.number in snapshot.end_times
    ]
    if not ended:
        return None
    ended.sort(key=lambda trial: (snapshot.end_times[trial.number], trial.number))
    seconds = [trial.facts.get(schema.SECONDS, 0.0) for trial in ended]
    longest = PAUSE_FACTOR * max(seconds)
    best: list[float | None] = []
    hours, losses = [], []
    elapsed, last_event = 0.0, snapshot.start_times[ended[0].number]
    for trial, spent in zip(ended, seconds, strict=True):
        loss, ended_at = snapshot.get_complete_loss(trial), snapshot.end_times[trial.number]
        losses += [] if loss is None else [loss]
        best.append(min(losses, default=None))
        gap = max(0.0, (ended_at - last_event).total_seconds())
        elapsed += gap if longest == 0.0 or gap <= longest else spent
        hours.append(elapsed / 3600.0)
        last_event = max(ended_at, last_event)
    device_hours = [total / 3600.0 for total in itertools.accumulate(seconds)]
    return Convergence(range(1, len(ended) + 1), best, hours, device_hours)


def compute_random_curve(
    snapshot: StudySnapshot, against: StudySnapshot | None = None
) -> RandomCurve | None:
    """Compute the curve of random points with the same objective and seed.

    The points come from `against` if it is comparable, else from the study's own sanity phase. A
    study with other data, another seed or another objective is not comparable.

    Args:
        snapshot: the study to compare.
        against: a study of random points.

    Returns:
        The curve; None without random points.
    """
    if against is not None and is_comparable(snapshot, against):
        losses = [against.get_complete_loss(trial) for trial in against.search_trials]
        return _make_random_curve(losses, f"study {against.name}")
    start = {trial.unit for trial in snapshot.get_phase_trials(BASELINE)}
    seeds = {trial.facts.get(schema.SEED) for trial in snapshot.search_trials}
    losses = [
        snapshot.get_complete_loss(trial)
        for trial in snapshot.get_phase_trials("sanity")
        if trial.unit not in start and trial.facts.get(schema.SEED) in seeds
    ]
    return _make_random_curve(losses, "the sanity phase")


def is_comparable(snapshot: StudySnapshot, against: StudySnapshot) -> bool:
    """Return whether `against` ran random points under the same conditions as `snapshot`.

    The conditions are space, objective, data, model and seed. No trial may have been pruned.
    """
    first, second = snapshot.configuration, against.configuration
    keys = {
        key
        for key in (*first, *second)
        if key.split(".")[0] in _COMPARED_GROUPS or key.startswith(schema.RANGE_PREFIX)
    }
    return (
        # After pruning the complete trials are the better ones.
        all(trial.state != "pruned" for trial in against.search_trials)
        and against.engine is not None
        and against.engine.name in ("random", "qmc")
        and snapshot.maximize == against.maximize
        and first.get(_SEEDS_KEY, 1) == second.get(_SEEDS_KEY, 1)
        and all(first.get(key) == second.get(key) for key in keys)
    )


def _make_random_curve(losses: Sequence[float | None], source: str) -> RandomCurve | None:
    import numpy as np

    ranked = np.sort(np.array([loss for loss in losses if loss is not None]))
    count = len(ranked)
    if count == 0:
        return None
    ks = np.unique(np.linspace(1, count, _MAX_POINTS).round().astype(int))
    # Row k: the probability that the best of k points is worse than y_(1), ..., y_(n), eq. (2).
    factors = np.maximum(0.0, 1.0 - ks[:, None] / (count - np.arange(count)))
    worse = np.cumprod(factors, axis=1)
    mean = -np.diff(worse, axis=1, prepend=1.0) @ ranked  # eq. (1)
    low, high = (ranked[(1.0 - worse >= level).argmax(axis=1)] for level in (0.1, 0.9))
    return RandomCurve(source, count, ks.tolist(), mean.tolist(), low.tolist(), high.tolist())


def summarise_generations(
    snapshot: StudySnapshot,
    diagnostics: Sequence[Diagnostics],
    space: Space,
    trials: Sequence[Trial],
) -> list[Generation]:
    """Summarise each generation of a search: its distribution and its best trial."""
    size = max(1, sum(trial.facts.get(schema.GENERATION, 0) == 0 for trial in trials))
    summaries = []
    for index, state in enumerate(diagnostics):
        members = trials[index * size : (index + 1) * size]
        ranked = [
            (loss, trial.number, trial.values)
            for trial in members
            if (loss := snapshot.get_complete_loss(trial)) is not None
        ]
        best_loss, _, best_values = min(ranked, default=(None, 0, {}))
        mean, low, high = (
            {
                dimension.name: float(
                    dimension.to_value(
                        state.mean[dimension.name] + sign * state.sigma[dimension.name]
                    )
                )
                for dimension in space.dimensions
                if dimension.scale != "categorical"
            }
            for sign in (0.0, -1.0, 1.0)
        )
        summaries.append(
            Generation(
                number=state.generation,
                mean=mean,
                low=low,
                high=high,
                best=best_values,
                best_loss=best_loss,
                condition=state.condition,
                step=state.step,
            )
        )
    return summaries
