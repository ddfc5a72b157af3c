"""The sentences of a report: the verdict and the findings behind it.

All texts are plain text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from synaptune.analysis.compare import compute_interval
from synaptune.analysis.effects import ALPHA
from synaptune.analysis.results import AblationRow, Comparison, Evidence
from synaptune.core.text import format_parameter, make_label
from synaptune.report import next_commands
from synaptune.report.repeats import describe_repeats
from synaptune.report.screening import describe_screening
from synaptune.report.table_model import format_cell
from synaptune.report.tables import count_search_seeds, to_objective
from synaptune.search.space.values import Value
from synaptune.search.trial import find_best

_MAX_NAMED = 6  # parameters named in a sentence
_MAX_MOVES = 3  # parameters named that moved most
_MAX_EXPLAINED = 2  # parameters whose meaning is given
_LEAST_MOVE = 0.1  # move that is named, as a share of the range
# Gains of the same search, repeated (docs/results.md).
REPEATED_SEARCHES = (
    "three repetitions of phase 1 at laptop scale with version 0.1.0 found 11.7, 15.3 and 12.4 %"
)

Tone = Literal["good", "unsure", "bad", "none"]


class Finding(NamedTuple):
    """One or two sentences under a short heading."""

    title: str
    text: str


class Verdict(NamedTuple):
    """The verdict of a study.

    Attributes:
        headline: the verdict in a sentence.
        tone: good, unsure or bad; none when nothing was validated.
        findings: the findings behind the headline.
    """

    headline: str
    tone: Tone
    findings: Sequence[Finding]


def has_gain(evidence: Evidence) -> bool:
    """Return whether the validation has shown a gain of the best, with an interval above zero."""
    validation = evidence.validation
    return validation is not None and validation.gain.low > 0.0 and not evidence.is_stale


def make_verdict(evidence: Evidence) -> Verdict:
    """Make the verdict of a study."""
    findings: list[Finding] = []
    validation, validated = evidence.validation, evidence.validated
    if validation is None:
        headline, tone = _explain_no_claim(evidence), "none"
    elif evidence.is_stale and validated is not None:
        text, tone = describe_gain(validation.gain)[0], "unsure"
        headline = f"An earlier best, trial {validated.number}: {text[:1].lower()}{text[1:]}"
        findings.append(Finding("Stale validation", explain_stale(evidence)))
    else:
        headline, tone = describe_gain(validation.gain)
        if evidence.repeats is not None:
            count, mean = len(evidence.repeats.gains), evidence.repeats.mean
            headline += f" The mean over {count} searches is {mean:z.1f} %."
            if tone == "good" and min(evidence.repeats.gains) <= 0.0:
                tone = "unsure"
        if tone == "good" and validation.decision == "stop":
            tone = "unsure"
        decision = Finding(f"Decision: {validation.decision}", _to_sentence(validation.reason))
        findings.append(decision)
        if validation.overfit:
            findings.append(Finding("Overfit", _to_sentence(validation.overfit)))
    findings += explain_context(evidence)
    findings += explain_ablation(evidence)
    findings += _explain_selection_bias(evidence)
    if validation is None or not evidence.ablation:
        findings += _explain_search(evidence)
    return Verdict(headline, tone, findings)


def describe_gain(gain: Comparison) -> tuple[str, Tone]:
    """Describe a validated gain [%] over the start values.

    Returns:
        A sentence and its tone.
    """
    seeds = f"on {gain.count} fresh seeds, against the start values"
    interval = f"95 % interval {gain.low:z.1f} to {gain.high:z.1f}"
    if gain.low > 0.0:
        fall = f"lowers test perplexity by {gain.mean:z.1f} % ({interval})"
        return f"Tuning {fall} {seeds}.", "good"
    if gain.high < 0.0:
        rise = f"{-gain.mean:z.1f} % (95 % interval {-gain.high:z.1f} to {-gain.low:z.1f})"
        return f"The tuned parameters are worse: test perplexity rises by {rise} {seeds}.", "bad"
    if gain.mean > 0.0:
        fall = f"test perplexity falls by {gain.mean:z.1f} %"
        return f"The gain is not significant: {fall} ({interval}) {seeds}.", "unsure"
    nothing = "the improvement of test perplexity is not significantly different from zero"
    return f"No gain was found: {nothing} ({interval} %) {seeds}.", "unsure"


def explain_stale(evidence: Evidence) -> str:
    """Explain that the validation is older than the best; empty if it is not."""
    best, validated = evidence.best, evidence.validated
    if not evidence.is_stale or best is None or validated is None:
        return ""
    objectives = [format_cell(trial.objective, "loss") for trial in (validated, best)]
    return (
        f"The validation is of trial {validated.number} (objective {objectives[0]}). The search "
        f"has found trial {best.number} ({objectives[1]}) since, which is not validated."
    )


def explain_context(evidence: Evidence) -> list[Finding]:
    """Say what was compared, with random points as well, what moved, and the limits of it."""
    findings = [
        *_describe_comparison(evidence),
        *_explain_recommendation(evidence),
        *_compare_with_random(evidence),
        *_name_moves(evidence),
    ]
    if evidence.validation is not None:
        text = (
            "The training seeds of these two points, not the search. A repeated search, another "
            "machine or another training text leads to another best point, whose gain may lie "
            "outside the interval"
        )
        if evidence.repeats is not None:
            text += f". {describe_repeats(evidence.repeats)}"
        elif next_commands.get_protocol(evidence) == "phase1":
            text += f". For example, {REPEATED_SEARCHES}"
        findings.append(Finding("What the interval covers", f"{text}."))
    return findings


def _describe_comparison(evidence: Evidence) -> Iterator[Finding]:
    """Describe the two points of a validation and the size of their runs."""
    facts = next_commands.get_configuration(evidence)
    layers, width, steps = map(facts.get, ("model.layers", "model.width", "training.steps"))
    point = evidence.validated or evidence.best
    if evidence.validation is None or point is None or layers is None or None in (width, steps):
        return
    source = facts.get("data.path") or facts.get("data.name") or facts.get("data.source")
    text = (
        "The model with its start values (those before the search) and the same model with "
        f"{format_count(len(evidence.names), 'tuned value')}, those of trial {point.number}: "
        f"{format_count(layers, 'layer')} of width {width}, {steps} training steps, data {source}. "
        "A larger model or longer training may give another result."
    )
    yield Finding("What was compared", text)


def _explain_recommendation(evidence: Evidence) -> Iterator[Finding]:
    """Explain why the validated trial is not the one with the best objective."""
    first, validated = find_best(evidence.trials, evidence.maximize), evidence.validated
    if first is None or validated is None or evidence.is_stale:
        return
    if first.objective != validated.objective:
        objectives = [format_cell(trial.objective, "loss") for trial in (first, validated)]
        text = (
            f"The best objective, {objectives[0]}, is that of trial {first.number}. Single "
            f"objectives are noisy, so the search recommends trial {validated.number} "
            f"({objectives[1]}) from all its trials (search.recommend), and the validation runs "
            "it. Trials are numbered over all phases."
        )
        yield Finding("Recommended trial", text)


def _compare_with_random(evidence: Evidence) -> Iterator[Finding]:
    curve, course = evidence.random_curve, evidence.convergence
    best = None if course is None else course.best[-1]
    if curve is None or course is None or best is None:
        return
    chance = curve.best[-1]  # of all points: their lowest loss
    objectives = [format_cell(to_objective(evidence, loss), "loss") for loss in (chance, best)]
    text = (
        f"The {'highest' if evidence.maximize else 'lowest'} {evidence.label} is {objectives[0]} "
        f"in {format_count(curve.count, 'random point')} ({curve.source}) and {objectives[1]} in "
        f"the search ({format_count(len(course.best), 'evaluation')}"
    )
    if best >= chance:
        text += "), which is no better than random points"
    else:
        passed = next(
            count
            for count, loss in zip(course.evaluation, course.best, strict=True)
            if loss is not None and loss < chance
        )
        better = "above" if evidence.maximize else "below"
        text += f", of which number {passed} was the first {better} all random points)"
    yield Finding("Against random points", f"{text}.")


def _name_moves(evidence: Evidence) -> Iterator[Finding]:
    """Name the parameters whose best value lies farthest from the start, without an ablation."""
    if evidence.validation is None or evidence.ablation or not evidence.start:
        return
    moves = rank_moves(evidence)[:_MAX_MOVES]
    if not moves:
        return
    names = join_names(
        [
            f"{make_label(name, evidence.names)} ({format_parameter(old)} to "
            f"{format_parameter(new)})"
            for name, old, new in moves
        ]
    )
    if evidence.is_stale:
        rest = "Whether they gain anything is not validated."
    elif has_gain(evidence):
        rest = "The gain is not attributed to any of them until an ablation is there."
    else:
        rest = "There is no gain to attribute to them."
    yield Finding("What moved most", f"{names}, in shares of the searched ranges. {rest}")


def rank_moves(evidence: Evidence) -> list[tuple[str, Value, Value]]:
    """Rank the parameters by the distance from start to best in the searched range.

    Returns:
        Name, start and best value of each numeric parameter that moved by a tenth of its range.
    """
    best, space = evidence.best, evidence.space
    moves: list[tuple[float, str, Value, Value]] = []
    for dimension in () if best is None or space is None else space.dimensions:
        name = dimension.name
        if dimension.scale == "categorical" or name not in evidence.start:
            continue
        old, new = evidence.start[name], best.values[name]  # type: ignore[union-attr]
        if dimension.contains(old):
            distance = abs(dimension.to_unit(new) - dimension.to_unit(old))
            moves.append((distance, name, old, new))
    moves.sort(key=lambda move: -move[0])
    return [(name, old, new) for distance, name, old, new in moves if distance >= _LEAST_MOVE]


def explain_no_correlation(evidence: Evidence) -> str:
    """Say in a sentence that no pair of parameters is correlated; empty if one may be."""
    noise, names = evidence.correlation_noise, evidence.names
    pairs = [
        (abs(value), row, column)
        for row, values in enumerate(evidence.correlation)
        for column, value in enumerate(values[:row])
    ]
    strongest, row, column = max(pairs, default=(1.0, 0, 0))
    if noise is None or strongest > noise:
        return ""
    first, second = (make_label(names[index], names) for index in (column, row))
    return (
        "No two parameters are correlated in the final distribution of the search: the strongest "
        f"pair, {first} and {second}, has {strongest:z.2f}, and noise alone exceeds {noise:z.2f} "
        "in one search of twenty."
    )


def explain_open_hypotheses(evidence: Evidence) -> str:
    """Say in a sentence that the study decides no hypothesis; empty if it decides one."""
    if not evidence.hypotheses or any(entry.holds is not None for entry in evidence.hypotheses):
        return ""
    count = len(evidence.hypotheses)
    what = "The only hypothesis" if count == 1 else f"None of the {count} hypotheses"
    verb = "cannot" if count == 1 else "can"
    whose = "its" if count == 1 else "their"
    return f"{what} {verb} be decided: no effect of {whose} parameters was found."


def is_screening_only(evidence: Evidence) -> bool:
    """Return whether a study holds a screening and no search yet."""
    return evidence.screening is not None and not evidence.trials


def _explain_no_claim(evidence: Evidence) -> str:
    if is_screening_only(evidence):
        assert evidence.screening is not None
        found = describe_screening(evidence.screening)[0]
        return f"Screening only: {found}. No search has started."
    if not evidence.trials:
        return "No claim: no trial has started."
    if evidence.best is None:
        states = Counter(trial.state for trial in evidence.trials)
        pruned = f"{states['pruned']} pruned, " if states["pruned"] else ""
        return (
            f"No claim: no trial is complete ({states['failed']} failed, {pruned}"
            f"{states['running']} not ended)."
        )
    if len(evidence.test_accuracies) > 1:
        mean, low, high = compute_interval([100.0 * value for value in evidence.test_accuracies])
        return (
            f"The best has {mean:z.2f} % test accuracy (95 % interval {low:z.2f} to {high:z.2f}) "
            f"on {len(evidence.test_accuracies)} fresh seeds. No claim against the start values: "
            "they were not run on these seeds."
        )
    return "No claim: nothing has been validated on fresh seeds."


def explain_ablation(evidence: Evidence) -> Iterator[Finding]:
    """Summarise the ablation of the optimum."""
    known = [(entry, entry.reverted) for entry in evidence.ablation if entry.reverted is not None]
    if not known:
        return
    known.sort(key=lambda pair: -pair[1].mean)
    good = [(entry, gain) for entry, gain in known if is_significant(entry) and gain.mean > 0.0]
    harmful = [(entry, gain) for entry, gain in known if is_significant(entry) and gain.mean < 0.0]
    title = "What carries the gain" if has_gain(evidence) else "Ablation"
    if good:
        more = f" and {len(good) - _MAX_NAMED} more" if len(good) > _MAX_NAMED else ""
        text = (
            "Test perplexity [%] lost when one parameter alone is set back to its start value: "
            f"{_list_gains(evidence, good)}{more}.{_explain_names(good[:_MAX_EXPLAINED])}"
        )
    elif harmful:
        text = "No tuned value has a significant gain."
    else:
        text = "Setting a single parameter back to its start value makes no significant difference."
    yield Finding(title, text)
    undecided = [
        make_label(entry.name, evidence.names) for entry, _ in known if not is_significant(entry)
    ]
    if undecided:
        count = known[0][1].count
        text = f"With {count} paired seeds and Holm's correction: {join_names(undecided)}."
        yield Finding("Not significant", text)
    if harmful:
        text = f"{_list_gains(evidence, harmful)}: the tuned value raises test perplexity."
        yield Finding("Better at its start value", text)


def _list_gains(evidence: Evidence, gains: Sequence[tuple[AblationRow, Comparison]]) -> str:
    """List the first parameters with their gains, separated by commas."""
    return ", ".join(
        f"{make_label(entry.name, evidence.names)} {format_cell(gain, 'gain')}"
        for entry, gain in gains[:_MAX_NAMED]
    )


def _explain_names(gains: Sequence[tuple[AblationRow, Comparison]]) -> str:
    """Explain the parameters of the synapse among some; empty without one."""
    from synaptune.synapse.circuit import SPECS

    meanings = {spec.name: (spec.label, spec.meaning) for spec in SPECS}
    known = [meanings[entry.name] for entry, _ in gains if entry.name in meanings]
    return "".join(f" {label}: {meaning}." for label, meaning in known)


def is_significant(entry: AblationRow) -> bool:
    """Return whether a parameter has a significant worth at the optimum."""
    return entry.adjusted_reverted is not None and entry.adjusted_reverted < ALPHA


def _explain_selection_bias(evidence: Evidence) -> Iterator[Finding]:
    bias = evidence.selection_bias
    if bias is None:
        return
    seeds = count_search_seeds(evidence) or 1
    own = "seed" if seeds == 1 else f"{seeds} seeds"
    text = (
        f"The gain is {bias.search:z.3f} nats/token on the search's own {own}, "
        f"{bias.fresh:z.3f} on fresh seeds and {bias.test:z.3f} on the test split"
    )
    if bias.search > 0.0 and has_gain(evidence):
        lost = 100.0 * (1.0 - bias.fresh / bias.search)
        if bias.fresh <= 0.0:
            text += ": none of it remains on fresh seeds"
        elif lost < 0.5:
            text += ": all of it remains on fresh seeds"
        else:
            text += f": {lost:z.0f} % of it is lost on fresh seeds"
    yield Finding("Selection bias", text + ".")


def _explain_search(evidence: Evidence) -> Iterator[Finding]:
    """Summarise the trials of the search."""
    best, course = evidence.best, evidence.convergence
    if (
        best is not None
        and best.objective is not None
        and course is not None
        and evidence.validation is None
    ):
        ended = len(course.evaluation)
        text = (
            f"The best of {format_count(ended, 'evaluation')} has objective "
            f"{format_cell(best.objective, 'loss')} (trial {best.number})"
        )
        first = next((loss for loss in course.best if loss is not None), None)
        if ended > 1 and first is not None:
            objective = format_cell(to_objective(evidence, first), "loss")
            warning = _warn_overstated(count_search_seeds(evidence))
            text += f"; the first complete one had {objective}. {warning}"
        yield Finding("In the search", text + ".")
    if evidence.effects:
        names = [
            make_label(entry.name, evidence.names)
            for entry in sorted(evidence.effects, key=lambda entry: entry.p)
            if entry.significant
        ]
        text = (
            f"The search's own trials show that the objective depends on {join_names(names)}"
            if names
            else "The search's own trials show no effect of any parameter"
        )
        yield Finding("Effects", f"{text} (Holm-adjusted, {len(evidence.effects)} tests).")
    elif evidence.effects_note and evidence.trials:
        yield Finding("Effects", _to_sentence(f"not tested: {evidence.effects_note}"))


def _warn_overstated(seeds: int | None) -> str:
    """Warn that the best of many candidates overstates the gain.

    seeds is the number of seeds of each candidate; None means that the runs had no seed.
    """
    if seeds is None:
        return "If the objective is noisy, the best of many candidates overstates the gain"
    on_seeds = "one seed" if seeds == 1 else f"the same {seeds} seeds"
    return f"The best of many candidates on {on_seeds} overstates the gain"


def format_count(count: int, noun: str) -> str:
    """Format a number with its noun in the singular or the plural."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def join_names(names: Sequence[str]) -> str:
    """Join names for a sentence; a long list is cut."""
    if len(names) > _MAX_NAMED + 2:
        return ", ".join(names[:_MAX_NAMED]) + f" and {len(names) - _MAX_NAMED} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _to_sentence(text: str) -> str:
    """Add a capital letter and a full stop to a text."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
