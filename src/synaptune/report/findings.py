"""What a report says in words: the verdict, what stands behind it, and what to do next; plain text, never more than the numbers say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from synaptune.analysis.effects import ALPHA
from synaptune.analysis.results import AblationRow, Comparison, Evidence, ValidationResult
from synaptune.core.text import make_label
from synaptune.report import next_commands as orders
from synaptune.report import tables
from synaptune.report.table_model import format_cell
from synaptune.report.tables import count_search_seeds, find_positions, to_objective

EDGE = 0.05  # distance from a range's end that counts as at it; chosen: a twentieth of the range
# Per parameter, below which a search is short [evaluation]; chosen: CMA's habit.
FEW_EVALUATIONS = 10.0
LATE_SHARE = 0.9  # share of a search whose rest should bring little
SLIGHT_GAIN = 0.05  # share of a search's gain that counts as little
FAILURE_SHARE = 0.1  # failed share of the trials that deserves a look
_MAX_NAMED = 6  # parameters named in a sentence

Tone = Literal["good", "unsure", "bad", "none"]


class Finding(NamedTuple):
    """A sentence or two under a heading of a few words."""

    title: str
    text: str


class Verdict(NamedTuple):
    """The headline, how it is meant (`good`, `unsure`, `bad`, or `none` without a claim), and what stands behind it."""

    headline: str
    tone: Tone
    findings: Sequence[Finding]


def is_running(evidence: Evidence) -> bool:
    """Whether trials, of any phase, have begun and not ended: the study goes on, or was killed."""
    return evidence.started_at is not None and evidence.ended_at is None


def make_verdict(evidence: Evidence) -> Verdict:
    """The verdict of a study."""
    findings: list[Finding] = []
    claim = evidence.validation
    if claim is None:
        headline, tone = _explain_no_claim(evidence), "none"
    else:
        headline, tone = describe_gain(claim.gain)
        findings.append(Finding(f"Decision: {claim.decision}", f"{_to_sentence(claim.reason)}"))
    findings += _explain_ablation(evidence)
    findings += _explain_selection_bias(evidence)
    if claim is None or not evidence.ablation:
        findings += _explain_search(evidence)
    return Verdict(headline, tone, findings)


def describe_gain(gain: Comparison) -> tuple[str, Tone]:
    """A validated gain [%] over the start values in a sentence."""
    seeds = f"on {gain.count} fresh seeds, against the start values"
    change = f"{gain.mean:.1f} % (95 % interval {gain.low:.1f} to {gain.high:.1f}) {seeds}"
    rise = f"{-gain.mean:.1f} % (95 % interval {-gain.high:.1f} to {-gain.low:.1f}) {seeds}"
    if gain.low > 0.0:
        return f"Tuning lowers test perplexity by {change}.", "good"
    if gain.high < 0.0:
        return f"The tuned parameters are worse: test perplexity rises by {rise}.", "bad"
    moved = f"falls by {change}" if gain.mean >= 0.0 else f"rises by {rise}"
    return (
        f"No {'gain' if gain.mean >= 0.0 else 'difference'} is told from zero: test perplexity {moved}.",
        "unsure",
    )


def _explain_no_claim(evidence: Evidence) -> str:
    if not evidence.trials:
        return "No claim: no trial has begun."
    if evidence.best is None:
        states = Counter(trial.state for trial in evidence.trials)
        pruned = f"{states['pruned']} pruned, " if states["pruned"] else ""
        return f"No claim: no trial is complete ({states['failed']} failed, {pruned}{states['running']} not ended)."
    return "No claim: nothing has been validated on fresh seeds."


def _explain_ablation(evidence: Evidence) -> Iterator[Finding]:
    """What the ablation says of each parameter."""
    known = [(entry, entry.reverted) for entry in evidence.ablation if entry.reverted is not None]
    if not known:
        return
    known.sort(key=lambda pair: -pair[1].mean)
    good = [(entry, found) for entry, found in known if _is_significant(entry) and found.mean > 0.0]
    harmful = [
        (entry, found) for entry, found in known if _is_significant(entry) and found.mean < 0.0
    ]
    if good:
        parts = [
            f"{make_label(entry.name, evidence.names)} {format_gain(found)}"
            for entry, found in good[:_MAX_NAMED]
        ]
        more = f" and {len(good) - _MAX_NAMED} more" if len(good) > _MAX_NAMED else ""
        text = f"Put back to its start value alone, each costs, in % of test perplexity: {', '.join(parts)}{more}."
    elif harmful:
        text = "No tuned value is told to carry a gain."
    else:
        text = "No single parameter, put back to its start value, makes a difference that is told from zero."
    yield Finding("What carries it", text)
    open_ = [
        make_label(entry.name, evidence.names) for entry, _ in known if not _is_significant(entry)
    ]
    if open_:
        count = known[0][1].count
        yield Finding(
            "Not told from zero",
            f"With {count} paired seeds and Holm's correction: {join_names(open_)}.",
        )
    if harmful:
        parts = [
            f"{make_label(entry.name, evidence.names)} {format_gain(found)}"
            for entry, found in harmful[:_MAX_NAMED]
        ]
        yield Finding("Better at its start value", f"{', '.join(parts)}: the tuned value costs.")


def _is_significant(entry: AblationRow) -> bool:
    return entry.adjusted_reverted is not None and entry.adjusted_reverted < ALPHA


def format_gain(found: Comparison) -> str:
    """A gain with its interval: `8.1 (6.2 to 10.0)`."""
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def _explain_selection_bias(evidence: Evidence) -> Iterator[Finding]:
    luck = evidence.selection_bias
    if luck is None:
        return
    seeds = count_search_seeds(evidence) or 1
    own = "seed" if seeds == 1 else f"{seeds} seeds"
    text = f"The gain is {luck.search:.3f} nats/token on the search's own {own}, {luck.fresh:.3f} on fresh seeds"
    text += f" and {luck.test:.3f} on the test split"
    if luck.search > 0.0:
        lost = 100.0 * (1.0 - luck.fresh / luck.search)
        text += (
            ": all of it survived fresh seeds"
            if lost < 0.5
            else f": {lost:.0f} % of it did not survive fresh seeds"
        )
        if luck.fresh <= 0.0:
            text = text.rpartition(":")[0] + ": none of it survived fresh seeds"
    yield Finding("Winner's luck", text + ".")


def _explain_search(evidence: Evidence) -> Iterator[Finding]:
    """What the search alone says."""
    best, course = evidence.best, evidence.convergence
    if (
        best is not None
        and best.objective is not None
        and course is not None
        and evidence.validation is None
    ):
        ended = len(course.evaluation)
        text = f"The best of {_format_count(ended, 'evaluation')} has objective {format_cell(best.objective, 'loss')} (trial {best.number})"
        first = next((loss for loss in course.best if loss is not None), None)
        if ended > 1 and first is not None:
            text += f"; the first complete one had {format_cell(to_objective(evidence, first), 'loss')}. {_warn_overstated(count_search_seeds(evidence))}"
        yield Finding("In the search", text + ".")
    if evidence.effects:
        found = [
            make_label(entry.name, evidence.names)
            for entry in sorted(evidence.effects, key=lambda entry: entry.p)
            if entry.significant
        ]
        text = (
            f"The search's own trials show that the loss depends on {join_names(found)}"
            if found
            else "The search's own trials show no effect of any parameter"
        )
        yield Finding("Effects", f"{text} (Holm-adjusted, {len(evidence.effects)} tests).")
    elif evidence.effects_note and evidence.trials:
        yield Finding("Effects", f"Not tested: {_to_sentence(evidence.effects_note)}")


def _warn_overstated(seeds: int | None) -> str:
    """What is to be thought of the best of a search; seeds: on which each candidate ran, null where it had none."""
    if seeds is None:
        return "If the objective is noisy, a best of many overstates what it gained"
    return f"A best of many on {'one seed' if seeds == 1 else f'the same {seeds} seeds'} overstates what it gained"


def advise(evidence: Evidence) -> list[Finding]:
    """What to do next, the most pressing first; of a study that still runs only what concerns its running."""
    if is_running(evidence):
        return list(_advise_on_state(evidence))
    return [
        *_advise_on_state(evidence),
        *_advise_on_validation(evidence),
        *_advise_on_search(evidence),
        *_advise_on_parameters(evidence),
    ]


def _advise_on_state(evidence: Evidence) -> Iterator[Finding]:
    ended = sum(trial.state != "running" for trial in evidence.trials)
    planned = tables.read_budget(evidence)
    if is_running(evidence):
        counted = (
            f"{ended} of {planned} planned evaluations have ended."
            if planned is not None
            else "Trials have begun and not ended."
        )
        yield Finding(
            "Let it end", f"{counted} If the study was interrupted, the same command goes on."
        )
    elif planned is not None and ended < planned:
        text = f"{ended} of {planned} planned evaluations have ended. Unless a stopping rule ended it, the same command goes on."
        yield Finding("Go on with the search", text)
    failed = sum(trial.state == "failed" for trial in evidence.trials)
    if ended and failed / ended > FAILURE_SHARE:
        yield Finding(
            "Look at the failures",
            f"{failed} of {ended} trials failed; every one is lost to the search. Their reasons are below.",
        )


def _advise_on_validation(evidence: Evidence) -> Iterator[Finding]:
    claim = evidence.validation
    if claim is None:
        if evidence.best is not None:
            text = (
                "Run the start values and the best on fresh seeds: without them nothing is claimed."
            )
            if orders.get_protocol(evidence) is not None:
                text += f" The command that began the study goes on to that: {orders.format_resume_command(evidence)}, with its other options."
            yield Finding("Validate", text)
        return
    yield from _advise_on_seeds(claim)
    made = orders.get_protocol(evidence)
    if not evidence.ablation and made is not None and not evidence.maximize:
        yield Finding(
            "Take the optimum apart",
            f"{orders.format_ablation_command(evidence)} says which parameters carry the gain.",
        )
    harmful = [
        entry
        for entry in evidence.ablation
        if _is_significant(entry) and entry.reverted is not None and entry.reverted.mean < 0.0
    ]
    if harmful:
        names = join_names([make_label(entry.name, evidence.names) for entry in harmful])
        yield Finding(
            "Put back",
            f"{names}: the start value is better. Validate the optimum again without the change.",
        )
    if claim.decision == "proceed":
        further = (
            [
                f"{orders.format_next_command(evidence, 'sweep-phase2')} searches all parameters from here"
            ]
            if made == "phase1"
            else []
        )
        if (
            made is not None and not orders.get_reference(evidence).storage
        ):  # a transfer finds no other database
            further.append(
                f"{orders.format_next_command(evidence, 'transfer')} with a larger SCALE asks whether it holds there"
            )
        yield Finding("Go on", f"The gate is passed{': ' if further else ''}{', '.join(further)}.")


def _advise_on_seeds(validation: ValidationResult) -> Iterator[Finding]:
    """More seeds where the interval reaches zero."""
    found = validation.gain
    if found.low <= 0.0 < found.mean:
        needed = count_needed_seeds(found)
        text = f"The interval reaches zero. If the true gain is the {found.mean:.1f} % seen, about {needed} seeds in all would tell it"
        yield Finding(
            "More seeds",
            text + (", more than it is likely worth." if needed > 10 * found.count else "."),
        )


def count_needed_seeds(found: Comparison) -> int:
    """The fewest seeds whose 95 % t-interval would leave out zero, were mean and spread of the gains those that were seen."""
    from scipy.stats import t

    spread = (
        (found.high - found.low)
        / 2.0
        * math.sqrt(found.count)
        / float(t.ppf(0.975, found.count - 1))
    )
    needed = max(
        2, math.floor((1.95 * spread / found.mean) ** 2)
    )  # below the normal quantile, which the t's are above
    while float(t.ppf(0.975, needed - 1)) * spread >= found.mean * math.sqrt(needed):
        needed += max(1, needed // 1000)
    return needed


def _advise_on_search(evidence: Evidence) -> Iterator[Finding]:
    ended = sum(trial.state != "running" for trial in evidence.trials)
    if not ended or not evidence.names:
        return
    if ended < FEW_EVALUATIONS * len(evidence.names):
        text = f"{_format_count(ended, 'evaluation')} for {_format_count(len(evidence.names), 'parameter')} is few; {FEW_EVALUATIONS:g} for each is a fair start."
        yield Finding("Search longer", text)
    elif evidence.convergence is not None:
        late = _measure_late_gain(evidence.convergence.best)
        if late is not None and late >= SLIGHT_GAIN:
            text = f"The last {1.0 - LATE_SHARE:.0%} of the evaluations brought {late:.0%} of the search's gain: it has not come to rest."
            yield Finding("Search longer", text)
    noise = evidence.noise
    if (
        noise is not None
        and evidence.selection_bias is not None
        and noise.difference is not None
        and noise.candidates is not None
        and noise.difference > noise.candidates / 2.0
    ):
        text = (
            f"Seeds move a difference by {noise.difference:.3g} nats/token, candidates differ by {noise.candidates:.3g}: "
            "ranks are mostly luck. Use `search.seeds=2` or more, or longer runs."
        )
        yield Finding("Less noise", text)


def _measure_late_gain(best: Sequence[float | None]) -> float | None:
    """The share of the whole gain that the last part of a search brought; null where nothing was gained."""
    losses = [loss for loss in best if loss is not None]
    if not losses or losses[0] <= losses[-1]:
        return None
    return (losses[int(LATE_SHARE * (len(losses) - 1))] - losses[-1]) / (losses[0] - losses[-1])


def _advise_on_parameters(evidence: Evidence) -> Iterator[Finding]:
    place = {
        name: unit for name, unit in find_positions(evidence).items() if name in evidence.names
    }
    moved = {
        name
        for name in place
        if evidence.best is not None and evidence.best.values[name] != evidence.start.get(name)
    }
    if evidence.effects:  # one without an effect ends at an edge as easily as anywhere
        moved &= {entry.name for entry in evidence.effects if entry.significant}
    for side, wanted in (
        ("lower", [name for name in place if place[name] < EDGE]),
        ("upper", [name for name in place if place[name] > 1.0 - EDGE]),
    ):
        names = [make_label(name, evidence.names) for name in wanted if name in moved]
        if names:
            text = f"{join_names(names)}: the best lies at the {side} end of the range, so a better value may lie beyond."
            yield Finding("Widen the range", text)
    idle = [
        make_label(entry.name, evidence.names)
        for entry in evidence.effects
        if not entry.significant and not _carries_gain(evidence, entry.name)
    ]
    ended = sum(trial.state != "running" for trial in evidence.trials)
    if (
        idle
        and ended >= FEW_EVALUATIONS * len(evidence.names)
        and any(entry.significant for entry in evidence.effects)
    ):
        text = f"{join_names(idle)}: no effect was found. Fixing them at their start values leaves the budget to the others"
        text += f" ({orders.format_command(evidence, 'refine')})."
        yield Finding("Fix", text)


def _carries_gain(evidence: Evidence, name: str) -> bool:
    return any(entry.name == name and _is_significant(entry) for entry in evidence.ablation)


def _format_count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def join_names(names: Sequence[str]) -> str:
    """Names in a sentence, the first ones of many."""
    if len(names) > _MAX_NAMED + 2:
        return ", ".join(names[:_MAX_NAMED]) + f" and {len(names) - _MAX_NAMED} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _to_sentence(text: str) -> str:
    """A text that begins like a sentence and ends like one."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
