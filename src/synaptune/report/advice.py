"""The next steps that a report recommends, as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from synaptune.analysis.results import Comparison, Evidence, ValidationResult
from synaptune.core.text import make_label
from synaptune.report import next_commands
from synaptune.report.findings import (
    Finding,
    explain_stale,
    format_count,
    has_gain,
    is_screening_only,
    is_significant,
    join_names,
)
from synaptune.report.tables import find_positions

EDGE = 0.05  # distance from a range's end that counts as at it; chosen: a twentieth of the range
# Evaluations per parameter below which a search is short; chosen: a rule of thumb of CMA-ES.
FEW_EVALUATIONS = 10.0
LATE_SHARE = 0.9  # share of a search whose rest should bring little
SLIGHT_GAIN = 0.05  # share of a search's gain that counts as little
FAILURE_SHARE = 0.1  # failed share of the trials that deserves a look


def advise(evidence: Evidence) -> list[Finding]:
    """List the next steps, the most urgent first.

    A study that has not ended gets only the advice that concerns its progress.
    """
    if evidence.state != "ended":
        return list(_advise_on_state(evidence))
    return [
        *_advise_on_state(evidence),
        *_advise_on_validation(evidence),
        *_advise_on_search(evidence),
        *_advise_on_parameters(evidence),
    ]


def _advise_on_state(evidence: Evidence) -> Iterator[Finding]:
    ended, planned = evidence.ended_count, evidence.plan.budget
    progress = "" if planned is None else f"{ended} of {planned} planned evaluations have ended. "
    if is_screening_only(evidence):
        command = next_commands.format_protocol_command(evidence, "sweep-phase1")
        text = f"{command}, with the overrides of this screening, searches what it has chosen."
        yield Finding("Search", text)
    elif evidence.state == "running":
        yield Finding("Wait for the end", progress or "Some trials have not ended.")
    elif evidence.state == "interrupted":
        text = f"{progress}The study was interrupted; the same command continues it."
        yield Finding("Continue the study", text)
    elif planned is not None and ended < planned and evidence.plan.stopped is None:
        text = f"{progress}Unless a stopping rule ended the search, the same command continues it."
        yield Finding("Continue the search", text)
    failed = sum(trial.state == "failed" for trial in evidence.trials)
    if ended and failed / ended > FAILURE_SHARE:
        text = (
            f"{failed} of {ended} trials failed and gave the search no result. "
            "The reasons are listed below."
        )
        yield Finding("Examine the failures", text)


def _advise_on_validation(evidence: Evidence) -> Iterator[Finding]:
    validation, protocol = evidence.validation, next_commands.get_protocol(evidence)
    if validation is None:
        if evidence.best is not None:
            text = (
                "Run the start values and the best values on fresh seeds. "
                "Without this validation the report makes no claim."
            )
            yield Finding("Validate", text + _name_validation_command(evidence))
        return
    if evidence.is_stale:
        text = f"{explain_stale(evidence)}{_name_validation_command(evidence)}"
        yield Finding("Validate again", text)
        return
    yield from _advise_on_seeds(validation)
    attributable = has_gain(evidence) and not evidence.ablation and not evidence.maximize
    if attributable and protocol is not None:
        command = next_commands.format_protocol_command(evidence, "ablation")
        yield Finding("Ablate the optimum", f"{command} measures which parameters carry the gain.")
    harmful = [
        entry
        for entry in evidence.ablation
        if is_significant(entry) and entry.reverted is not None and entry.reverted.mean < 0.0
    ]
    if harmful:
        names = join_names([make_label(entry.name, evidence.names) for entry in harmful])
        text = f"{names}: the start value is better. Validate the optimum again with it."
        yield Finding("Revert", text)
    if validation.decision == "proceed":
        steps = []
        if protocol == "phase1":
            command = next_commands.format_next_command(evidence, "sweep-phase2")
            steps.append(f"{command} searches all parameters from this optimum")
        # The transfer protocol finds a study only in its default database.
        if protocol is not None and not next_commands.get_reference(evidence).storage:
            command = next_commands.format_next_command(evidence, "transfer")
            steps.append(f"{command} with a larger SCALE tests whether the gain holds there")
        yield Finding("Continue", f"The gate is passed{': ' if steps else ''}{', '.join(steps)}.")


def _name_validation_command(evidence: Evidence) -> str:
    """Name the command that continues with the validation; empty without a protocol."""
    protocol = next_commands.get_protocol(evidence)
    if protocol is None:
        return ""
    command = next_commands.format_protocol_command(evidence, f"sweep-{protocol}")
    return (
        " The command that started the study continues with the validation: "
        f"{command}, with its other options."
    )


def _advise_on_seeds(validation: ValidationResult) -> Iterator[Finding]:
    """Advise more seeds where the interval includes zero."""
    gain = validation.gain
    if gain.low <= 0.0 < gain.mean:
        needed = count_needed_seeds(gain)
        text = (
            f"The interval includes zero. If the true gain is the measured {gain.mean:z.1f} %, "
            f"about {needed} seeds in total would make it significant"
        )
        costly = ", which probably costs more than the gain is worth."
        yield Finding("More seeds", text + (costly if needed > 10 * gain.count else "."))


def count_needed_seeds(gain: Comparison) -> int:
    """Count the seeds that would make a gain significant.

    Returns:
        The smallest number of seeds whose 95 % t-interval excludes zero, if mean and spread of the
        gains stay as measured.
    """
    from scipy.stats import t

    half_width = (gain.high - gain.low) / 2.0
    spread = half_width * math.sqrt(gain.count) / float(t.ppf(0.975, gain.count - 1))
    # A lower bound: every quantile of t lies above the normal one of 1.96.
    needed = max(2, math.floor((1.95 * spread / gain.mean) ** 2))
    while float(t.ppf(0.975, needed - 1)) * spread >= gain.mean * math.sqrt(needed):
        needed += max(1, needed // 1000)
    return needed


def _advise_on_search(evidence: Evidence) -> Iterator[Finding]:
    ended = evidence.ended_count
    if not ended or not evidence.names:
        return
    if ended < FEW_EVALUATIONS * len(evidence.names):
        text = (
            f"{format_count(ended, 'evaluation')} for "
            f"{format_count(len(evidence.names), 'parameter')} is a short search; "
            f"{FEW_EVALUATIONS:g} for each parameter are recommended."
        )
        yield Finding("Search longer", text)
    elif evidence.convergence is not None:
        late = _measure_late_gain(evidence.convergence.best)
        if late is not None and late >= SLIGHT_GAIN:
            text = (
                f"The last {1.0 - LATE_SHARE:.0%} of the evaluations brought {late:.0%} of the "
                "search's gain: the search has not converged."
            )
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
            f"The standard deviation of a difference over seeds is {noise.difference:.3g} "
            f"nats/token, that of the objective over candidates {noise.candidates:.3g}: the ranks "
            "are mostly noise. Use `search.seeds=2` or more, or longer runs."
        )
        yield Finding("Less noise", text)


def _measure_late_gain(best: Sequence[float | None]) -> float | None:
    """Measure the share of the gain that the last part of a search brought; None without a gain."""
    losses = [loss for loss in best if loss is not None]
    if not losses or losses[0] <= losses[-1]:
        return None
    return (losses[int(LATE_SHARE * (len(losses) - 1))] - losses[-1]) / (losses[0] - losses[-1])


def _advise_on_parameters(evidence: Evidence) -> Iterator[Finding]:
    positions = {
        name: unit for name, unit in find_positions(evidence).items() if name in evidence.names
    }
    moved = {
        name
        for name in positions
        if evidence.best is not None and evidence.best.values[name] != evidence.start.get(name)
    }
    if evidence.effects:  # a parameter without an effect may end anywhere in its range
        moved &= {entry.name for entry in evidence.effects if entry.significant}
    elif evidence.validation is not None and not has_gain(evidence):
        moved = set()
    moved -= {entry.name for entry in evidence.ablation if not is_significant(entry)}
    for side, at_edge in (
        ("lower", [name for name in positions if positions[name] < EDGE]),
        ("upper", [name for name in positions if positions[name] > 1.0 - EDGE]),
    ):
        names = [make_label(name, evidence.names) for name in at_edge if name in moved]
        if names:
            text = (
                f"{join_names(names)}: the best value lies at the {side} end of the range. "
                "A better value may lie beyond it: widen it before the next search."
            )
            yield Finding("Widen the range", text)
    idle = [
        make_label(entry.name, evidence.names)
        for entry in evidence.effects
        if not entry.significant and not _carries_gain(evidence, entry.name)
    ]
    if (
        idle
        and evidence.ended_count >= FEW_EVALUATIONS * len(evidence.names)
        and any(entry.significant for entry in evidence.effects)
    ):
        text = (
            f"{join_names(idle)}: no effect was found. Fixing them at their start values leaves "
            "the budget to the other parameters "
            f"({next_commands.format_command(evidence, 'refine')})."
        )
        yield Finding("Fix", text)


def _carries_gain(evidence: Evidence, name: str) -> bool:
    return any(entry.name == name and is_significant(entry) for entry in evidence.ablation)
