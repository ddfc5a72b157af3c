"""How a search came to its best, and what as many random points would have found.

    E min of k among n points = sum_i y_(i) C(n - i, k - 1) / C(n, k),   y_(1) <= ... <= y_(n)            (1)
    P(min of k > y_(i))       = C(n - i, k) / C(n, k)                                                     (2)

Source: (1), (2) order statistics of k points drawn without replacement from the n that were run; Dodge et al. 2019,
arXiv:1909.03004, use the same curve with replacement.
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
# Groups of the configuration that a loss depends on; a searched parameter is in none of them, but among the ranges.
_COMPARED_GROUPS = ("data", "model", "position", "synapse", "training", "objective", "seed")


def compute_convergence(snapshot: StudySnapshot) -> Convergence | None:
    """The best loss so far by evaluation and by time; null before the first end."""
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
    before = snapshot.start_times[ended[0].number]
    for trial, spent in zip(ended, seconds, strict=True):
        loss, now = snapshot.get_complete_loss(trial), snapshot.end_times[trial.number]
        so_far = best[-1] if best else None
        best.append(so_far if loss is None else loss if so_far is None else min(loss, so_far))
        gap = max(0.0, (now - before).total_seconds())
        hours.append(hours[-1] + (gap if longest == 0.0 or gap <= longest else spent) / 3600.0)
        device_hours.append(device_hours[-1] + spent / 3600.0)
        before = max(now, before)
    return Convergence(list(range(1, len(ended) + 1)), best, hours[1:], device_hours[1:])


def compute_random_curve(
    snapshot: StudySnapshot, against: StudySnapshot | None = None
) -> RandomCurve | None:
    """Random points of the same objective and seed: of a random study, else of the study's own sanity phase; null without any.

    A study of other data, another seed or another objective is no comparison, and is not taken.
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
    """Whether a study drew random points of the same space for the same objective, data, model and seed, and ran them to their ends."""
    if any(trial.state == "pruned" for trial in against.search_trials):
        return False  # those left are the better ones
    if (
        against.engine is None
        or against.engine.name not in ("random", "qmc")
        or snapshot.maximize != against.maximize
    ):
        return False
    both = snapshot.configuration, against.configuration
    if both[0].get(_SEEDS_KEY, 1) != both[1].get(_SEEDS_KEY, 1):
        return False
    known = {
        key
        for key in (*both[0], *both[1])
        if key.split(".")[0] in _COMPARED_GROUPS or key.startswith(schema.RANGE_PREFIX)
    }
    return all(both[0].get(key) == both[1].get(key) for key in known)


def _make_random_curve(losses: Sequence[float], source: str) -> RandomCurve:
    ranked, count = sorted(losses), len(losses)
    ks = sorted(
        {round(1 + (count - 1) * place / max(1, _MAX_POINTS - 1)) for place in range(_MAX_POINTS)}
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
    """Eq. (1), by the recurrence of its weights."""
    count = len(ranked)
    weight, total = k / count, 0.0
    for place, loss in enumerate(ranked, 1):
        total += weight * loss
        if count - place < k:
            break
        weight *= (count - place - k + 1) / (count - place)
    return total


def _quantile_of_best(ranked: Sequence[float], k: int, level: float) -> float:
    """The smallest value that the best of k stays below with this probability, eq. (2)."""
    count, beyond = len(ranked), 1.0
    for place, loss in enumerate(ranked, 1):
        beyond *= max(0.0, (count - place + 1 - k) / (count - place + 1))
        if 1.0 - beyond >= level:
            return loss
    return ranked[-1]


def summarise_generations(
    snapshot: StudySnapshot,
    diagnostics: Sequence[Diagnostics],
    space: Space,
    trials: Sequence[Trial],
) -> list[Generation]:
    """Each generation of a search: what it was heading for, and its best trial."""
    if not diagnostics:
        return []
    size = max(1, sum(trial.facts.get(schema.GENERATION, 0) == 0 for trial in trials))
    found = []
    for place, now in enumerate(diagnostics):
        members = [
            trial
            for trial in trials[place * size : (place + 1) * size]
            if snapshot.get_complete_loss(trial) is not None
        ]
        best = min(
            members, key=lambda trial: snapshot.get_complete_loss(trial) or 0.0, default=None
        )
        ends = []
        for sign in (0.0, -1.0, 1.0):
            units = [now.mean[name] + sign * now.sigma[name] for name in space.names]
            ends.append(
                {
                    name: float(value)
                    for name, value in space.to_values(units).items()
                    if not isinstance(value, str)
                }
            )
        loss = None if best is None else snapshot.get_complete_loss(best)
        values = {} if best is None else best.values
        found.append(
            Generation(
                now.generation, ends[0], ends[1], ends[2], values, loss, now.condition, now.step
            )
        )
    return found
