"""Result of a validation: gain, decision, noise over seeds and selection bias of the search."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from synaptune.analysis.compare import Improvement, compare
from synaptune.analysis.results import Noise, SelectionBias, ValidationResult
from synaptune.search.trial import Trial
from synaptune.study.database import keys as schema
from synaptune.study.reader import BASELINE, VALIDATION, StudySnapshot

PERPLEXITY, LOSS, TEST_LOSS = "test_perplexity", "val_loss", "test_loss"


def find_validated_pair(snapshot: StudySnapshot) -> tuple[Trial, Trial] | None:
    """Find one run of each point that the validation compared: the baseline and the best.

    The baseline is the point of the first run. The best is the point of the last run at another
    point, because repeating a validation for a later best runs only the missing points.

    Returns:
        A run of the baseline and a run of the best; None before a run of the best.
    """
    trials = snapshot.get_phase_trials(VALIDATION)
    others = [trial for trial in trials if trial.values != trials[0].values]
    return (trials[0], others[-1]) if others else None


def pair_validation_runs(snapshot: StudySnapshot) -> list[tuple[Trial, Trial]]:
    """Pair the complete validation runs of the baseline and the best by seed."""
    points = find_validated_pair(snapshot)
    if points is None:
        return []
    complete = [
        trial for trial in snapshot.get_phase_trials(VALIDATION) if trial.state == "complete"
    ]
    before, after = (
        {trial.facts.get(schema.SEED): trial for trial in complete if trial.values == point.values}
        for point in points
    )
    return [(trial, after[seed]) for seed, trial in before.items() if seed in after]


def compute_validation(snapshot: StudySnapshot) -> ValidationResult | None:
    """Compute the result of the validation.

    Returns:
        The result; None with fewer than two complete pairs, or without a test split.
    """
    pairs = [
        pair
        for pair in pair_validation_runs(snapshot)
        if all(PERPLEXITY in trial.facts for trial in pair)
    ]
    if len(pairs) < 2:
        return None
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    gain = compare(_read_facts(before, PERPLEXITY), _read_facts(after, PERPLEXITY))
    decision = decide(Improvement(gain.mean, gain.low, gain.high), measure_gini_gain(before, after))
    return ValidationResult(before, after, gain, decision.action, decision.reason)


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
    pairs = [
        pair
        for pair in pair_validation_runs(snapshot)
        if all(LOSS in trial.facts for trial in pair)
    ]
    before, after = (_read_facts([pair[side] for pair in pairs], LOSS) for side in (0, 1))
    candidates = [
        trial.objective for trial in snapshot.search_trials if trial.objective is not None
    ]
    differences = [new - old for old, new in zip(before, after, strict=True)]
    return Noise(*map(_standard_deviation, (before, after, differences, candidates)))


def measure_selection_bias(snapshot: StudySnapshot, best: Trial | None) -> SelectionBias | None:
    """Measure the gain on the search's seed, on fresh seeds and on the test split.

    Returns:
        The gains; None unless the objective of the search is the validation loss.
    """
    pairs = [
        pair
        for pair in pair_validation_runs(snapshot)
        if all(LOSS in trial.facts and TEST_LOSS in trial.facts for trial in pair)
    ]
    if snapshot.configuration.get("objective.name") != LOSS or best is None or not pairs:
        return None
    start = _find_start_trial(snapshot, pairs[0][0])
    if start is None or start.objective is None or best.objective is None:
        return None
    fresh, test = (
        statistics.fmean(old.facts[name] - new.facts[name] for old, new in pairs)
        for name in (LOSS, TEST_LOSS)
    )
    return SelectionBias(start.objective - best.objective, fresh, test)


def _find_start_trial(snapshot: StudySnapshot, baseline: Trial) -> Trial | None:
    """Find the evaluation of the baseline's point in the search, else the run of the baseline.

    The run of the baseline is comparable only if each trial of the search has one seed.
    """
    in_search = [
        trial
        for trial in snapshot.search_trials
        if all(baseline.values.get(name) == value for name, value in trial.values.items())
    ]
    baseline_runs = (
        []
        if snapshot.configuration.get("search.seeds", 1) != 1
        else snapshot.get_phase_trials(BASELINE)
    )
    candidates = (*in_search, *baseline_runs)
    return next((trial for trial in candidates if trial.objective is not None), None)


def _read_facts(runs: Sequence[Trial], name: str) -> list[float]:
    return [run.facts[name] for run in runs]


def _standard_deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


PROCEED = 10.0  # improvement that is enough alone [%]; chosen: the plan's gate


CONSIDER = 5.0  # improvement worth a second look [%]; chosen: the plan's gate


GINI_GAIN = 10.0  # rise of the experts' Gini that makes up for less [%]; chosen: the plan's gate


class Decision(NamedTuple):
    """The next action and its reason."""

    action: Literal["proceed", "re-evaluate", "stop"]
    reason: str


def decide(improvement: Improvement, gini_gain: float | None) -> Decision:
    """Decide on an improvement of test perplexity.

    An improvement whose interval reaches zero never leads to "proceed", since it may be zero.

    Args:
        improvement: mean and interval [%].
        gini_gain: relative rise of the experts' Gini coefficient [%]; None for dense models.
    """
    mean = improvement.mean
    if mean < CONSIDER:
        change = (
            f"worsened by {-mean:.1f} %"
            if mean < 0.0
            else f"improved by {mean:.1f} %, below {CONSIDER:g} %"
        )
        return Decision("stop", f"perplexity {change}")
    if improvement.low <= 0.0:
        return Decision(
            "re-evaluate", f"perplexity improved by {mean:.1f} %, but its interval reaches zero"
        )
    if mean > PROCEED:
        return Decision("proceed", f"perplexity improved by {mean:.1f} %, above {PROCEED:g} %")
    if gini_gain is not None and gini_gain >= GINI_GAIN:
        return Decision(
            "proceed",
            f"perplexity improved by {mean:.1f} % and the expert Gini by {gini_gain:.0f} %",
        )
    gini = "" if gini_gain is None else f", with the expert Gini changed by {gini_gain:+.0f} %"
    return Decision(
        "re-evaluate",
        f"perplexity improved by {mean:.1f} %, between {CONSIDER:g} and {PROCEED:g} %{gini}",
    )
