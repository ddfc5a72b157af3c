"""How a search came to its best, and what as many random points would have found.

    E min of k among n points = sum_i y_(i) C(n - i, k - 1) / C(n, k),   y_(1) <= ... <= y_(n)            (1)
    P(min of k > y_(i))       = C(n - i, k) / C(n, k)                                                     (2)

Source: (1), (2) order statistics of k points drawn without replacement from the n that were run; Dodge et al. 2019,
arXiv:1909.03004, use the same curve with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence

from synaptune.analysis.results import Chance, Course, Generation
from synaptune.core.parameters import constant
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import BASELINE, Record

PAUSE = constant(
    "convergence.pause", 3.0, unit="longest run", meaning="without an end that counts as a pause", source="chosen: a run and two retries"
)
_POINTS = 400  # of the chance curve, at most
_SEEDS = "search.seeds"  # that each loss is a mean over
# Groups of the configuration that a loss depends on; a searched parameter is in none of them, but among the ranges.
_SAME = ("data", "model", "position", "synapse", "training", "objective", "seed")


def course(record: Record) -> Course | None:
    """The best loss so far by evaluation and by time; null before the first end."""
    ended = [trial for trial in record.searched if trial.state != "running" and trial.number in record.ended]
    if not ended:
        return None
    ended.sort(key=lambda trial: (record.ended[trial.number], trial.number))
    seconds = [trial.facts.get(schema.SECONDS, 0.0) for trial in ended]
    longest = PAUSE * max(seconds, default=0.0)
    best: list[float | None] = []
    hours, device_hours = [0.0], [0.0]
    before = record.began[ended[0].number]
    for trial, spent in zip(ended, seconds, strict=True):
        loss, now = record.achieved(trial), record.ended[trial.number]
        so_far = best[-1] if best else None
        best.append(so_far if loss is None else loss if so_far is None else min(loss, so_far))
        gap = max(0.0, (now - before).total_seconds())
        hours.append(hours[-1] + (gap if longest == 0.0 or gap <= longest else spent) / 3600.0)
        device_hours.append(device_hours[-1] + spent / 3600.0)
        before = max(now, before)
    return Course(list(range(1, len(ended) + 1)), best, hours[1:], device_hours[1:])


def chance(record: Record, against: Record | None = None) -> Chance | None:
    """Random points of the same objective and seed: of a random study, else of the study's own sanity phase; null without any.

    A study of other data, another seed or another objective is no comparison, and is not taken.
    """
    if against is not None and comparable(record, against):
        losses = [loss for trial in against.searched if (loss := against.achieved(trial)) is not None]
        return _chance(losses, f"study {against.name}") if losses else None
    start = {trial.unit for trial in record.phase(BASELINE)}
    seeds = {trial.facts.get(schema.SEED) for trial in record.searched}
    points = [trial for trial in record.phase("sanity") if trial.unit not in start and trial.facts.get(schema.SEED) in seeds]
    losses = [loss for trial in points if (loss := record.achieved(trial)) is not None]
    return _chance(losses, "the sanity phase") if losses else None


def comparable(record: Record, against: Record) -> bool:
    """Whether a study drew random points of the same space for the same objective, data, model and seed, and ran them to their ends."""
    if any(trial.state == "pruned" for trial in against.searched):
        return False  # those left are the better ones
    if against.engine is None or against.engine.name not in ("random", "qmc") or record.maximize != against.maximize:
        return False
    both = record.configuration, against.configuration
    if both[0].get(_SEEDS, 1) != both[1].get(_SEEDS, 1):
        return False
    known = {key for key in (*both[0], *both[1]) if key.split(".")[0] in _SAME or key.startswith(schema.RANGE)}
    return all(both[0].get(key) == both[1].get(key) for key in known)


def _chance(losses: Sequence[float], source: str) -> Chance:
    ranked, count = sorted(losses), len(losses)
    ks = sorted({round(1 + (count - 1) * place / max(1, _POINTS - 1)) for place in range(_POINTS)})
    return Chance(
        source,
        count,
        ks,
        [_expected(ranked, k) for k in ks],
        [_quantile(ranked, k, 0.1) for k in ks],
        [_quantile(ranked, k, 0.9) for k in ks],
    )


def _expected(ranked: Sequence[float], k: int) -> float:
    """Eq. (1), by the recurrence of its weights."""
    count = len(ranked)
    weight, total = k / count, 0.0
    for place, loss in enumerate(ranked, 1):
        total += weight * loss
        if count - place < k:
            break
        weight *= (count - place - k + 1) / (count - place)
    return total


def _quantile(ranked: Sequence[float], k: int, level: float) -> float:
    """The smallest value that the best of k stays below with this probability, eq. (2)."""
    count, beyond = len(ranked), 1.0
    for place, loss in enumerate(ranked, 1):
        beyond *= max(0.0, (count - place + 1 - k) / (count - place + 1))
        if 1.0 - beyond >= level:
            return loss
    return ranked[-1]


def generations(record: Record, diagnostics: Sequence[Diagnostics], space: Space, trials: Sequence[Trial]) -> list[Generation]:
    """Each generation of a search: what it was heading for, and its best trial."""
    if not diagnostics:
        return []
    size = max(1, sum(trial.facts.get(schema.GENERATION, 0) == 0 for trial in trials))
    found = []
    for place, now in enumerate(diagnostics):
        members = [trial for trial in trials[place * size : (place + 1) * size] if record.achieved(trial) is not None]
        best = min(members, key=lambda trial: record.achieved(trial) or 0.0, default=None)
        ends = []
        for sign in (0.0, -1.0, 1.0):
            units = [now.mean[name] + sign * now.sigma[name] for name in space.names]
            ends.append({name: float(value) for name, value in space.values(units).items() if not isinstance(value, str)})
        loss = None if best is None else record.achieved(best)
        values = {} if best is None else best.values
        found.append(Generation(now.generation, ends[0], ends[1], ends[2], values, loss, now.condition, now.step))
    return found
