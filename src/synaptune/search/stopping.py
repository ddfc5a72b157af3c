"""Rules that end a search before its budget: wall time, cost, a target objective or a plateau.

Every rule except the wall time depends only on the trials of the study. A repeated command
therefore reaches the same decision and runs no further trial.
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
    """When a search ends before its budget; None switches a rule off. Running trials are finished.

    `hours` is checked between any two trials, the other rules after each complete generation.

    Attributes:
        hours: wall time of one command [h].
        money: cost of all trials of the search, in the currency of `price`.
        price: price of a device hour.
        target: objective that is good enough.
        plateau: number of generations between two checks of the best objective. A generation counts
            here as at least 4 + 3 ln D trials, the population size of CMA-ES.
        patience: number of consecutive checks with too small an improvement that end the search.
        improvement: least relative improvement between two checks.
    """

    hours: float | None = None
    money: float | None = None
    price: float | None = None
    target: float | None = None
    plateau: int | None = 20
    patience: int = 3
    improvement: float = 0.01


def check_stop(config: StopConfig) -> None:
    """Raise UserError that lists every invalid value."""
    faults = [
        f"stop.{name}={value:g}: expected a number above 0, or null"
        for name in ("hours", "money", "price")
        if (value := getattr(config, name)) is not None and not 0.0 < value < math.inf
    ]
    if config.money is not None and config.price is None:
        faults.append(
            f"stop.money={config.money:g} without stop.price: "
            "expected the price of a device hour as well"
        )
    if config.target is not None and not math.isfinite(config.target):
        faults.append(f"stop.target={config.target}: expected a finite number, or null")
    if config.plateau is not None and config.plateau < 1:
        faults.append(f"stop.plateau={config.plateau}: expected at least 1 generation, or null")
    if config.patience < 1:
        faults.append(f"stop.patience={config.patience}: expected at least 1 check")
    if not 0.0 < config.improvement < 1.0:
        faults.append(
            f"stop.improvement={config.improvement:g}: "
            "expected a relative improvement between 0 and 1"
        )
    if faults:
        raise UserError(
            "got invalid stopping rules\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )


def make_stop_rule(
    config: StopConfig,
    *,
    maximize: bool,
    started_at: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> StopRule:
    """Combine the rules of a configuration into one function.

    The function takes the trials of the complete generations by index. It returns the reason to
    stop in one line, or None to continue.

    Args:
        config: the rules.
        maximize: whether larger objectives are better.
        started_at: start of the command on the clock [s]; None means now.
        clock: function that returns the time [s].

    Raises:
        UserError: a value is invalid.
    """
    check_stop(config)
    start = clock() if started_at is None else started_at
    trial_count, reason = -1, None

    def rule(trials: Sequence[Trial]) -> str | None:
        nonlocal trial_count, reason
        # A search calls the rule between any two trials; the answer changes with a generation only.
        if len(trials) != trial_count:
            trial_count = len(trials)
            reason = (
                _check_target(config, trials, maximize)
                or _check_money(config, trials)
                or _check_plateau(config, trials, maximize)
            )
        return reason or _check_hours(config, clock() - start)

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
    usage = f"{len(trials)} trials took {hours:.3g} device hours at {config.price:g}"
    return f"stopped with {hours * config.price:.4g} spent: {usage} (stop.money={config.money:g})"


def _check_target(config: StopConfig, trials: Sequence[Trial], maximize: bool) -> str | None:
    if config.target is None:
        return None
    for trial in trials:
        if trial.objective is not None and (
            trial.objective >= config.target if maximize else trial.objective <= config.target
        ):
            reached = f"objective {trial.objective:.6g} of trial {trial.number}"
            return f"stopped at {reached} (stop.target={config.target:g})"
    return None


def _check_plateau(config: StopConfig, trials: Sequence[Trial], maximize: bool) -> str | None:
    """Compare the best loss at checks that are `plateau` generations apart.

    The first check is compared with the best of the first generation.
    """
    if config.plateau is None or not trials:
        return None
    size = max(
        sum(trial.facts.get("generation") == trials[0].facts.get("generation") for trial in trials),
        _population_size(trials[0]),
    )
    interval = config.plateau * size
    checks = list(dict.fromkeys([size, *range(interval, len(trials) + 1, interval)]))
    bests = _find_best_losses(trials, checks[-config.patience - 1 :], maximize)
    if len(bests) <= config.patience or bests[-1] == math.inf:
        return None
    # The best loss is infinite before the first complete trial. Any finite loss is an improvement.
    if any(
        before - after >= config.improvement * abs(before) and after < before
        for before, after in itertools.pairwise(bests)
    ):
        return None
    first, last = (-best if maximize else best for best in (bests[0], bests[-1]))
    course = f"from {first:.6g} to {last:.6g} over the last {config.patience} x {interval} trials"
    limit = f"less than {config.improvement:.2%} at each check (stop.plateau={config.plateau})"
    return f"stopped on a plateau: best {course}, {limit}"


def _population_size(trial: Trial) -> int:
    return 4 + int(3 * math.log(max(1, len(trial.unit))))


def _find_best_losses(
    trials: Sequence[Trial], counts: Sequence[int], maximize: bool
) -> list[float]:
    """Return the lowest loss of the complete trials among the first n, for each n of `counts`."""
    losses = [
        math.inf if trial.objective is None else get_loss(trial, maximize) for trial in trials
    ]
    bests, best, previous = [], math.inf, 0
    for count in counts:
        best = min([best, *(loss for loss in losses[previous:count] if loss is not None)])
        bests.append(best)
        previous = count
    return bests
