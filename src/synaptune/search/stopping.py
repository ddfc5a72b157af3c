"""Reasons to end a search before its budget: wall hours, money, a target reached, a best that no longer moves.

All but the hours are read off the study's trials, so a command given again finds the same reason and runs nothing more.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synaptune.core.errors import UserError
from synaptune.search.trial import Trial, get_loss

StopRule = Callable[[Sequence[Trial]], str | None]


@dataclass
class StopConfig:
    """When a search ends before its budget; null: never for that reason. What runs then is finished.

    hours: wall time of one command, between any two trials. The others are looked for when a generation is whole. money: cost of all its
    trials, at `price` for a device hour; target: objective that is good enough; plateau: generations between two looks at the best,
    `patience` looks in a row that each find it better by less than `improvement` (relative) end the search. A generation counts here as
    at least CMA's 4 + 3 ln D trials.
    """

    hours: float | None = None
    money: float | None = None
    price: float | None = None
    target: float | None = None
    plateau: int | None = 20
    patience: int = 3
    improvement: float = 0.01


def check_stop(config: StopConfig) -> None:
    """Raise UserError with every fault."""
    found = [
        f"stop.{name}={value:g}: expected a number above 0, or null"
        for name in ("hours", "money", "price")
        if (value := getattr(config, name)) is not None and not 0.0 < value < math.inf
    ]
    if config.money is not None and config.price is None:
        found.append(
            f"stop.money={config.money:g} without stop.price: expected the price of a device hour beside it"
        )
    if config.target is not None and not math.isfinite(config.target):
        found.append(
            f"stop.target={config.target}: expected an objective, a finite number, or null"
        )
    if config.plateau is not None and config.plateau < 1:
        found.append(f"stop.plateau={config.plateau}: expected at least 1 generation, or null")
    if config.patience < 1:
        found.append(f"stop.patience={config.patience}: expected at least 1 look")
    if not 0.0 < config.improvement < 1.0:
        found.append(
            f"stop.improvement={config.improvement:g}: expected a part of the best, between 0 and 1"
        )
    if found:
        raise UserError(
            "got stopping rules that cannot hold\n  "
            + "\n  ".join(found)
            + "\n  to do: correct these values"
        )


def make_stop_rule(
    config: StopConfig,
    *,
    maximize: bool,
    began: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> StopRule:
    """The rules as one `stop` of a search.

    The rule takes the trials of whole generations by index and gives the reason in one line, null to go on. clock: in seconds;
    began: when the command did, by the clock (null: now). Raises UserError for values that cannot hold.
    """
    check_stop(config)
    since, known, reason = clock() if began is None else began, -1, None

    def rule(trials: Sequence[Trial]) -> str | None:
        nonlocal known, reason
        if len(trials) != known:  # asked much more often than there is news
            known = len(trials)
            reason = (
                _check_target(config, trials, maximize)
                or _check_money(config, trials)
                or _check_plateau(config, trials, maximize)
            )
        return reason or _check_hours(config, clock() - since)

    return rule


def _check_hours(config: StopConfig, seconds: float) -> str | None:
    if config.hours is None or seconds < 3600.0 * config.hours:
        return None
    return (
        f"stopped after {seconds / 3600.0:.3g} hours of this command (stop.hours={config.hours:g})"
    )


def _check_money(config: StopConfig, trials: Sequence[Trial]) -> str | None:
    if config.money is None or config.price is None:
        return None
    hours = sum(float(trial.facts.get("seconds", 0.0)) for trial in trials) / 3600.0
    if hours * config.price < config.money:
        return None
    spent = f"{hours * config.price:.4g} spent: {len(trials)} trials took {hours:.3g} device hours at {config.price:g}"
    return f"stopped with {spent} (stop.money={config.money:g})"


def _check_target(config: StopConfig, trials: Sequence[Trial], maximize: bool) -> str | None:
    if config.target is None:
        return None
    for trial in trials:
        if trial.objective is not None and (
            trial.objective >= config.target if maximize else trial.objective <= config.target
        ):
            return f"stopped at objective {trial.objective:.6g} of trial {trial.number} (stop.target={config.target:g})"
    return None


def _check_plateau(config: StopConfig, trials: Sequence[Trial], maximize: bool) -> str | None:
    """The plan's rule; the best of the first generation is what the first look is compared with."""
    if config.plateau is None or not trials:
        return None
    size = max(
        sum(trial.facts.get("generation") == trials[0].facts.get("generation") for trial in trials),
        _population_size(trials[0]),
    )
    apart = config.plateau * size
    looks = list(dict.fromkeys([size, *range(apart, len(trials) + 1, apart)]))
    bests = _find_best_losses(trials, looks[-config.patience - 1 :], maximize)
    if len(bests) <= config.patience or bests[-1] == math.inf:
        return None
    # A best that was infinite, of no complete trial, moves by any finite one.
    if any(
        before - after >= config.improvement * abs(before) and after < before
        for before, after in itertools.pairwise(bests)
    ):
        return None
    first, last = (-best if maximize else best for best in (bests[0], bests[-1]))
    course = f"from {first:.6g} to {last:.6g} over the last {config.patience} x {apart} trials"
    return f"stopped on a plateau: best {course}, less than {config.improvement:.2%} at each look (stop.plateau={config.plateau})"


def _population_size(trial: Trial) -> int:
    return 4 + int(3 * math.log(max(1, len(trial.unit))))


def _find_best_losses(trials: Sequence[Trial], looks: Sequence[int], maximize: bool) -> list[float]:
    """Lowest loss among the first n trials for each n; of complete trials only."""
    losses = [
        math.inf if trial.objective is None else get_loss(trial, maximize) for trial in trials
    ]
    found, best, seen = [], math.inf, 0
    for count in looks:
        best = min([best, *(loss for loss in losses[seen:count] if loss is not None)])
        found.append(best)
        seen = count
    return found
