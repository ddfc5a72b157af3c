"""Convergence of a search, and the expected best of the same number of random points.

    E min of k among n points = sum_i y_(i) C(n - i, k - 1) / C(n, k),   y_(1) <= ... <= y_(n)   (1)
    P(min of k > y_(i))       = C(n - i, k) / C(n, k)                                            (2)

Source: (1), (2) order statistics of k points drawn without replacement from the n points that were
run; Dodge et al. 2019, arXiv:1909.03004, use the same curve with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence

from synaptune.analysis.results import Convergence, Generation, RandomCurve
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import BASELINE, StudySnapshot

# Without an end that counts as a pause [longest run]; chosen: a run and two retries.
PAUSE_FACTOR = 3.0
_MAX_POINTS = 400  # of the chance curve, at most
_SEEDS_KEY = "search.seeds"  # that each loss is a mean over
# Groups of the configuration that a loss depends on; a searched parameter is in none of them, but
# among the ranges.
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
    longest = PAUSE_FACTOR * max(seconds, default=0.0)
    best: list[float | None] = []
    hours, device_hours = [0.0], [0.0]
    last_event = snapshot.start_times[ended[0].number]
    for trial, spent in zip(ended, seconds, strict=True):
        loss, ended_at = snapshot.get_complete_loss(trial), snapshot.end_times[trial.number]
        best_so_far = best[-1] if best else None
        best.append(
            best_so_far if loss is None else loss if best_so_far is None else min(loss, best_so_far)
        )
        gap = max(0.0, (ended_at - last_event).total_seconds())
        hours.append(hours[-1] + (gap if longest == 0.0 or gap <= longest else spent) / 3600.0)
        device_hours.append(device_hours[-1] + spent / 3600.0)
        last_event = max(ended_at, last_event)
    return Convergence(list(range(1, len(ended) + 1)), best, hours[1:], device_hours[1:])


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
        losses = [
            loss
            for trial in against.search_trials
            if (loss := against.get_complete_loss(trial)) is not None
        ]
        return _make_random_curve(losses, f"study {against.name}") if losses else None
    start = {trial.unit for trial in snapshot.get_phase_trials(BASELINE)}
    seeds = {trial.facts.get(schema.SEED) for trial in snapshot.search_trials}
    points = [
        trial
        for trial in snapshot.get_phase_trials("sanity")
        if trial.unit not in start and trial.facts.get(schema.SEED) in seeds
    ]
    losses = [loss for trial in points if (loss := snapshot.get_complete_loss(trial)) is not None]
    return _make_random_curve(losses, "the sanity phase") if losses else None


def is_comparable(snapshot: StudySnapshot, against: StudySnapshot) -> bool:
    """Return whether `against` ran random points under the same conditions as `snapshot`.

    The conditions are space, objective, data, model and seed. No trial may have been pruned.
    """
    if any(trial.state == "pruned" for trial in against.search_trials):
        return False  # the remaining trials are the better ones
    if (
        against.engine is None
        or against.engine.name not in ("random", "qmc")
        or snapshot.maximize != against.maximize
    ):
        return False
    configurations = snapshot.configuration, against.configuration
    if configurations[0].get(_SEEDS_KEY, 1) != configurations[1].get(_SEEDS_KEY, 1):
        return False
    keys = {
        key
        for key in (*configurations[0], *configurations[1])
        if key.split(".")[0] in _COMPARED_GROUPS or key.startswith(schema.RANGE_PREFIX)
    }
    return all(configurations[0].get(key) == configurations[1].get(key) for key in keys)


def _make_random_curve(losses: Sequence[float], source: str) -> RandomCurve:
    ranked, count = sorted(losses), len(losses)
    ks = sorted(
        {round(1 + (count - 1) * index / max(1, _MAX_POINTS - 1)) for index in range(_MAX_POINTS)}
    )
    return RandomCurve(
        source,
        count,
        ks,
        [_expected_best(ranked, k) for k in ks],
        [_quantile_of_best(ranked, k, 0.1) for k in ks],
        [_quantile_of_best(ranked, k, 0.9) for k in ks],
    )


def _expected_best(ranked: Sequence[float], k: int) -> float:
    """Compute eq. (1) by the recurrence of its weights."""
    count = len(ranked)
    weight, total = k / count, 0.0
    for rank, loss in enumerate(ranked, 1):
        total += weight * loss
        if count - rank < k:
            break
        weight *= (count - rank - k + 1) / (count - rank)
    return total


def _quantile_of_best(ranked: Sequence[float], k: int, level: float) -> float:
    """Compute the `level` quantile of the best of k, eq. (2)."""
    count, survival = len(ranked), 1.0
    for rank, loss in enumerate(ranked, 1):
        survival *= max(0.0, (count - rank + 1 - k) / (count - rank + 1))
        if 1.0 - survival >= level:
            return loss
    return ranked[-1]


def summarise_generations(
    snapshot: StudySnapshot,
    diagnostics: Sequence[Diagnostics],
    space: Space,
    trials: Sequence[Trial],
) -> list[Generation]:
    """Summarise each generation of a search: its distribution and its best trial."""
    if not diagnostics:
        return []
    size = max(1, sum(trial.facts.get(schema.GENERATION, 0) == 0 for trial in trials))
    summaries = []
    for index, state in enumerate(diagnostics):
        members = [
            trial
            for trial in trials[index * size : (index + 1) * size]
            if snapshot.get_complete_loss(trial) is not None
        ]
        best = min(
            members, key=lambda trial: snapshot.get_complete_loss(trial) or 0.0, default=None
        )
        values_by_sign = []
        for sign in (0.0, -1.0, 1.0):
            units = [state.mean[name] + sign * state.sigma[name] for name in space.names]
            values_by_sign.append(
                {
                    name: float(value)
                    for name, value in space.to_values(units).items()
                    if not isinstance(value, str)
                }
            )
        loss = None if best is None else snapshot.get_complete_loss(best)
        best_values = {} if best is None else best.values
        summaries.append(
            Generation(
                state.generation,
                values_by_sign[0],
                values_by_sign[1],
                values_by_sign[2],
                best_values,
                loss,
                state.condition,
                state.step,
            )
        )
    return summaries
