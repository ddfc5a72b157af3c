"""Result of a validation: gain, decision, noise over seeds and selection bias of the search."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from synaptune.analysis.compare import Improvement, compare
from synaptune.analysis.goals import GoalResult, check_goals, describe_overfit, find_degraded
from synaptune.analysis.results import Noise, SelectionBias, ValidationResult
from synaptune.search.space.values import is_same
from synaptune.search.trial import Trial, find_best
from synaptune.study.database import keys as schema
from synaptune.study.reader import BASELINE, INCUMBENTS, VALIDATION, StudySnapshot

PERPLEXITY, LOSS, TEST_LOSS = "test_perplexity", "val_loss", "test_loss"
PROCEED = 10.0  # improvement that is enough alone [%]; chosen: the plan's gate
CONSIDER = 5.0  # improvement worth a second look [%]; chosen: the plan's gate
GINI_GAIN = 10.0  # rise of the experts' Gini that makes up for less [%]; chosen: the plan's gate


def find_validated_pair(snapshot: StudySnapshot) -> tuple[Trial, Trial] | None:
    """Find one run of each point that the validation compared: the baseline and the best.

    The baseline is the point of the first run. The best is the point of the last run at another
    point, because repeating a validation for a later best runs only the missing points.

    Returns:
        A run of the baseline and a run of the best; None before a run of the best.
    """
    trials = snapshot.get_phase_trials(VALIDATION)
    others = [trial for trial in trials if not is_same(trial.values, trials[0].values)]
    return (trials[0], others[-1]) if others else None


def pair_validation_runs(snapshot: StudySnapshot, *facts: str) -> list[tuple[Trial, Trial]]:
    """Pair the complete validation runs of the baseline and the best by seed.

    Args:
        snapshot: the study.
        facts: names of facts that both runs of a pair need.
    """
    points = find_validated_pair(snapshot)
    if points is None:
        return []
    complete = [
        trial
        for trial in snapshot.get_phase_trials(VALIDATION)
        if trial.state == "complete" and all(name in trial.facts for name in facts)
    ]
    before, after = (
        {
            trial.facts.get(schema.SEED): trial
            for trial in complete
            if is_same(trial.values, point.values)
        }
        for point in points
    )
    return [(trial, after[seed]) for seed, trial in before.items() if seed in after]


def compute_validation(snapshot: StudySnapshot) -> ValidationResult | None:
    """Compute the result of the validation.

    Returns:
        The result; None with fewer than two complete pairs, or without a test split.
    """
    pairs = pair_validation_runs(snapshot, PERPLEXITY)
    if len(pairs) < 2:
        return None
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    gain = compare(
        [run.facts[PERPLEXITY] for run in before], [run.facts[PERPLEXITY] for run in after]
    )
    improvement = Improvement(gain.mean, gain.low, gain.high)
    verdict = judge(before, after, improvement, snapshot.configuration.get("search.protocol"))
    return ValidationResult(
        before,
        after,
        gain,
        verdict.decision.action,
        verdict.decision.reason,
        verdict.goals,
        verdict.overfit,
    )


def find_validated_trial(
    snapshot: StudySnapshot, validation: ValidationResult | None
) -> Trial | None:
    """Find the best trial of the search at the values that the validation ran; None without one."""
    if validation is None:
        return None
    values = validation.after[0].values
    at_point = [trial for trial in snapshot.whole_runs if is_same(trial.values, values)]
    return find_best(at_point, snapshot.maximize)


def is_stale(snapshot: StudySnapshot, validated: Trial) -> bool:
    """Return whether the search has found a better trial since the validated one was chosen.

    The choice is as old as the last run of the validation or of the incumbents before it.
    """
    best = find_best(snapshot.search_trials, snapshot.maximize)
    chosen_by = (*snapshot.get_phase_trials(VALIDATION), *snapshot.get_phase_trials(INCUMBENTS))
    last = max((trial.number for trial in chosen_by), default=0)
    return best is not None and best.number > last and best.objective != validated.objective


def measure_gini_gain(before: Sequence[Trial], after: Sequence[Trial]) -> float | None:
    """Compute the relative rise of the experts' mean Gini coefficient [%].

    Returns:
        The rise; None for dense models, or if the mean before is zero.
    """
    sides = [
        [trial.facts["expert_gini"] for trial in runs if "expert_gini" in trial.facts]
        for runs in (before, after)
    ]
    if not all(sides) or statistics.fmean(sides[0]) <= 0.0:
        return None
    return 100.0 * (statistics.fmean(sides[1]) / statistics.fmean(sides[0]) - 1.0)


def measure_noise(snapshot: StudySnapshot) -> Noise:
    """Measure the spread of the validation loss over seeds, and over candidates on one seed."""
    pairs = pair_validation_runs(snapshot, LOSS)
    before, after = ([pair[side].facts[LOSS] for pair in pairs] for side in (0, 1))
    differences = [new - old for old, new in zip(before, after, strict=True)]
    candidates = [trial.objective for trial in snapshot.whole_runs if trial.objective is not None]
    return Noise(
        *(
            statistics.stdev(losses) if len(losses) > 1 else None
            for losses in (before, after, differences, candidates)
        )
    )


def measure_selection_bias(snapshot: StudySnapshot, best: Trial | None) -> SelectionBias | None:
    """Measure the gain on the search's seed, on fresh seeds and on the test split.

    Returns:
        The gains; None unless the objective of the search is the validation loss.
    """
    pairs = pair_validation_runs(snapshot, LOSS, TEST_LOSS)
    if snapshot.configuration.get("objective.name") != LOSS or best is None or not pairs:
        return None
    start = _find_start_loss(snapshot, pairs[0][0])
    if start is None or best.objective is None:
        return None
    fresh, test = (
        statistics.fmean(old.facts[name] - new.facts[name] for old, new in pairs)
        for name in (LOSS, TEST_LOSS)
    )
    return SelectionBias(start - best.objective, fresh, test)


def _find_start_loss(snapshot: StudySnapshot, baseline: Trial) -> float | None:
    """Find the loss of the baseline's point in the search, else that of the baseline phase.

    The baseline phase is comparable only if each trial of the search has one seed.
    """
    runs = [
        trial
        for trial in snapshot.whole_runs
        if all(baseline.values.get(name) == value for name, value in trial.values.items())
    ]
    if snapshot.configuration.get("search.seeds", 1) == 1:
        runs += snapshot.get_phase_trials(BASELINE)
    return next((run.objective for run in runs if run.objective is not None), None)


class Decision(NamedTuple):
    """The next action and its reason."""

    action: Literal["proceed", "re-evaluate", "stop"]
    reason: str


class Verdict(NamedTuple):
    """The decision with the goals of the plan; see ValidationResult."""

    decision: Decision
    goals: Sequence[GoalResult]
    overfit: str | None


def judge(
    before: Sequence[Trial],
    after: Sequence[Trial],
    improvement: Improvement,
    protocol: str | None = "phase1",
) -> Verdict:
    """Judge the paired validation runs of a protocol.

    Args:
        before: runs of the start.
        after: runs of the best, in the same order of seeds.
        improvement: of test perplexity [%].
        protocol: `phase2` has a rule of its own.
    """
    goals = check_goals(before, after)
    if protocol == "phase2":
        decision = decide_phase2(improvement)
    else:
        gini_gain = measure_gini_gain(before, after)
        decision = decide(improvement, gini_gain, find_degraded(goals))
    return Verdict(decision, goals, describe_overfit(before, after))


def decide_phase2(improvement: Improvement) -> Decision:
    """Decide on the improvement over the optimum of phase 1, of which 5 to 10 % are expected."""
    mean, low = improvement.mean, improvement.low
    improved = f"perplexity improved by a further {mean:z.1f} %"
    if mean < CONSIDER or low <= 0.0:
        short = f"below the {CONSIDER:g} % that phase 2 has to add"
        reason = f"{improved}, {short if mean < CONSIDER else 'but its interval reaches zero'}"
        return Decision(
            "stop", f"{reason}; the search ends here, and the optimum of phase 1 stays in use"
        )
    expected = f"{CONSIDER:g} to {PROCEED:g} %"
    place = "above" if mean > PROCEED else "within"
    return Decision("proceed", f"{improved}, {place} the expected {expected}")


def decide(
    improvement: Improvement, gini_gain: float | None, degraded: Sequence[str] = ()
) -> Decision:
    """Decide on an improvement of test perplexity.

    An improvement whose interval reaches zero never leads to "proceed", since it may be zero.
    Between 5 and 10 % the plan re-evaluates if another metric has degraded. Without that it names
    no action; the decision is then to re-evaluate as well, because 10 % were not reached.

    Args:
        improvement: mean and interval [%].
        gini_gain: relative rise of the experts' Gini coefficient [%]; None for dense models.
        degraded: labels of the other metrics that have degraded.
    """
    mean, improved = improvement.mean, f"perplexity improved by {improvement.mean:z.1f} %"
    if improvement.high < 0.0:
        return Decision("stop", f"perplexity worsened by {-mean:z.1f} %")
    if mean <= 0.0:
        interval = f"95 % interval {improvement.low:z.1f} to {improvement.high:z.1f} %"
        reason = (
            f"the improvement of perplexity is not significantly different from zero ({interval})"
        )
        return Decision("stop", reason)
    if mean < CONSIDER:
        return Decision("stop", f"{improved}, below the {CONSIDER:g} % that the plan requires")
    if improvement.low <= 0.0:
        return Decision("re-evaluate", f"{improved}, but its interval reaches zero")
    if mean > PROCEED:
        return Decision("proceed", f"{improved}, above {PROCEED:g} %")
    if gini_gain is not None and gini_gain >= GINI_GAIN:
        reason = (
            f"{improved}, and the specialisation of the experts (Gini) rose by {gini_gain:z.0f} %; "
            f"the plan proceeds above {PROCEED:g} %, or above {CONSIDER:g} % with a rise of the "
            f"Gini of {GINI_GAIN:g} %"
        )
        return Decision("proceed", reason)
    gini = "" if gini_gain is None else f", with the expert Gini changed by {gini_gain:+z.0f} %"
    others = f"; {' and '.join(degraded)} degraded" if degraded else "; no other metric degraded"
    range_text = f"between {CONSIDER:g} and {PROCEED:g} %"
    return Decision("re-evaluate", f"{improved}, {range_text}{gini}{others}")
