"""The tables of a report, made from a study's evidence."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synaptune.analysis.ablation import POOLED_BELOW
from synaptune.analysis.goals import GoalResult
from synaptune.analysis.results import AblationRow, Evidence
from synaptune.core.text import format_duration, get_first_line
from synaptune.report.figures.axis import map_dimensions
from synaptune.report.regimes import tabulate_regimes
from synaptune.report.repeats import tabulate_repeats
from synaptune.report.screening import tabulate_effects, tabulate_subsystems
from synaptune.report.table_model import (
    UNKNOWN,
    Column,
    Table,
    format_cell,
    make_table,
    show_value,
)
from synaptune.search.space.values import Value
from synaptune.search.trial import Trial, find_best
from synaptune.study import artifacts
from synaptune.study.database import keys

_MAX_LISTED = 12  # trial numbers listed one by one
_MAX_REASONS = 40  # rows of the table of failures
_LONGEST_REASON = 160  # [characters] a longer reason is cut
# Explanations of the columns of the table of parameters.
_COLUMN_NOTES = {
    "position": "Position: 0 is the lower end of the range on its own scale, 1 the upper.",
    "effect z": (
        "Effect: whether the objective depends on the parameter, from the search's own trials. "
        "`synaptune refine` also tests where in the range the best trials lie, with another p, and "
        "narrows a range only if both tests are significant."
    ),
    "fANOVA": "Refits: smallest and largest share over fits to resampled trials.",
    "worth at the optimum": (
        "Worth at the optimum: gain in test perplexity that is lost when this parameter alone is "
        "set back to its start value."
    ),
}


def make_all_tables(evidence: Evidence) -> Iterator[Table]:
    """Make every table that has rows."""
    for make in (
        lambda evidence: tabulate_effects(evidence.screening),
        tabulate_subsystems,
        lambda evidence: tabulate_regimes(evidence.regimes),
        tabulate_parameters,
        lambda evidence: tabulate_goals(evidence.validation.goals if evidence.validation else ()),
        tabulate_validation,
        lambda evidence: tabulate_repeats(evidence.repeats),
        tabulate_gates,
        tabulate_noise,
        lambda evidence: tabulate_ablation(evidence.ablation),
        tabulate_hypotheses,
        tabulate_failures,
        tabulate_cost,
        tabulate_generations,
        tabulate_search_trials,
    ):
        table = make(evidence)
        if table.rows:
            yield table


def tabulate_parameters(evidence: Evidence) -> Table:
    """Make the table of the searched parameters, without the columns that have no data."""
    best = evidence.best.values if evidence.best is not None else {}

    def collect(entries: Sequence[Any], part: str) -> dict[str, Any]:
        return {entry.name: getattr(entry, part) for entry in entries}

    values_by_column = {
        Column("start", "value"): show_values(evidence, evidence.start),
        Column("best", "value"): show_values(evidence, best),
        Column("range", "range"): map_dimensions(evidence),
        Column("position", "position"): find_positions(evidence),
        Column("worth at the optimum", "gain", "%"): collect(evidence.ablation, "reverted"),
        Column("effect z", "share"): collect(evidence.effects, "z"),
        Column("p (Holm)", "p"): collect(evidence.effects, "adjusted_p"),
        Column("fANOVA", "share"): collect(evidence.importances, "fanova"),
        Column("fANOVA, refits"): _show_spreads(evidence, "fanova_spread"),
        Column("PED-ANOVA", "share"): collect(evidence.importances, "ped_anova"),
        Column("PED-ANOVA, refits"): _show_spreads(evidence, "ped_spread"),
    }
    cells = {
        column: [values.get(name) for name in evidence.names]
        for column, values in values_by_column.items()
        if any(values.get(name) is not None for name in evidence.names)
    }
    headings = [column.name for column in cells]
    note = " ".join(text for heading, text in _COLUMN_NOTES.items() if heading in headings)
    cells = {Column("parameter", "name"): evidence.names, **cells}
    return make_table("parameters", "Parameters", cells, note)


def _show_spreads(evidence: Evidence, part: str) -> dict[str, str]:
    spreads = {entry.name: getattr(entry, part) for entry in evidence.importances}
    return {
        name: f"{spread[0]:z.2f} to {spread[1]:z.2f}"
        for name, spread in spreads.items()
        if spread is not None
    }


def show_values(evidence: Evidence, values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the cells of values by name."""
    ranges = map_dimensions(evidence)
    return {name: show_value(value, ranges.get(name)) for name, value in values.items()}


def find_positions(evidence: Evidence) -> Mapping[str, float]:
    """Find the positions of the best values in their ranges, in [0, 1]; without categoricals."""
    best, ranges = evidence.best, map_dimensions(evidence)
    if best is None or len(best.unit) != len(best.values):
        return {}
    return {
        name: unit
        for name, unit in zip(best.values, best.unit, strict=True)
        if name not in ranges or ranges[name].scale != "categorical"
    }


def tabulate_validation(evidence: Evidence) -> Table:
    """Make the table of the runs on fresh seeds, with a row for each seed."""
    validation = evidence.validation
    before, after = ([], []) if validation is None else (validation.before, validation.after)

    def collect(runs: Sequence[Trial], fact: str) -> list[Any]:
        return [run.facts.get(fact) for run in runs]

    old, new = (collect(runs, "test_perplexity") for runs in (before, after))
    cells = {
        Column("seed", "count"): collect(before, "seed"),
        Column("validation loss, start", "loss", "nats/token"): collect(before, "val_loss"),
        Column("validation loss, best", "loss", "nats/token"): collect(after, "val_loss"),
        Column("test perplexity, start", "value", "tokens"): old,
        Column("test perplexity, best", "value", "tokens"): new,
        Column("improvement of test perplexity", "value", "%"): [
            100.0 * (1.0 - tuned / start) if start and tuned else None
            for start, tuned in zip(old, new, strict=True)
        ],
    }
    return make_table("validation", "Validation on fresh seeds", cells)


def tabulate_goals(goals: Sequence[GoalResult]) -> Table:
    """Make the table of the plan's metrics with their goals."""

    def show(change: float | None) -> str:
        return UNKNOWN if change is None else f"{change:+z.1f} %"

    def say(is_met: bool | None) -> str:
        return "nothing to improve" if is_met is None else "met" if is_met else "not met"

    cells = {
        Column("metric"): [goal.label for goal in goals],
        Column("start", "value"): [goal.start for goal in goals],
        Column("best", "value"): [goal.best for goal in goals],
        Column("change"): [show(goal.change) for goal in goals],
        Column("threshold"): [
            f"{goal.threshold:+g} %" if goal.threshold else "no worse" for goal in goals
        ],
        Column("reached"): [say(goal.met) + (", worse" if goal.degraded else "") for goal in goals],
        Column("stretch goal"): [f"{goal.stretch:+g} %" for goal in goals],
        Column("stretch reached"): [say(goal.stretch_met) for goal in goals],
    }
    note = (
        "Means over the fresh seeds. `worse` marks a metric whose paired 95 % interval lies on the "
        "worse side; `no worse` is met without that."
    )
    return make_table("goals", "Goals of the plan", cells, note)


def tabulate_ablation(ablation: Sequence[AblationRow]) -> Table:
    """Make the table of the ablation, ranked by the worth of each parameter at the optimum."""
    ranked = sorted(
        ablation, key=lambda entry: -math.inf if entry.reverted is None else entry.reverted.mean
    )[::-1]
    cells = {
        Column("parameter", "name"): [entry.name for entry in ranked],
        Column("start", "value"): [show_value(entry.default) for entry in ranked],
        Column("best", "value"): [show_value(entry.tuned) for entry in ranked],
        Column("worth at the optimum", "gain", "%"): [entry.reverted for entry in ranked],
        Column("p (Holm)", "p"): [entry.adjusted_reverted for entry in ranked],
    }
    if any(entry.alone for entry in ranked):
        cells[Column("brings alone", "gain", "%")] = [entry.alone for entry in ranked]
        cells[Column("p alone (Holm)", "p")] = [entry.adjusted_alone for entry in ranked]
    note = (
        "Gains in test perplexity on paired seeds with 95 % intervals. They need not add up, since "
        "parameters interact."
    )
    counts = [gain.count for entry in ranked for gain in (entry.reverted, entry.alone) if gain]
    if counts and min(counts) < POOLED_BELOW:
        note += (
            f" Comparisons of fewer than {POOLED_BELOW} pairs share one spread,"
            " pooled over the parameters."
        )
    return make_table("ablation", "Ablation of the optimum", cells, note)


def tabulate_gates(evidence: Evidence) -> Table:
    """Make the table of the gates before the last search.

    Their gains are relative changes of perplexity on fresh seeds [%].
    """
    gains = [gate.get("improvement") or {} for gate in evidence.gates]
    cells = {
        Column("gate"): [gate["gate"] for gate in evidence.gates],
        Column("decision"): [gate["decision"] for gate in evidence.gates],
        Column("gain", "value", "%"): [gain.get("mean") for gain in gains],
        Column("low", "value", "%"): [gain.get("low") for gain in gains],
        Column("high", "value", "%"): [gain.get("high") for gain in gains],
        Column("reason"): [gate["reason"] for gate in evidence.gates],
    }
    note = "Gain of validation perplexity (phase 1: test), 95 % interval."
    return make_table("gates", "Gates", cells, note)


def tabulate_hypotheses(evidence: Evidence) -> Table:
    """Make the table of the hypotheses and their verdicts."""
    verdicts = {True: "holds", False: "does not hold", None: "undecided"}
    rows = [
        [entry.statement, entry.finding, verdicts[entry.holds]] for entry in evidence.hypotheses
    ]
    return Table(
        "hypotheses", "Hypotheses", (Column("claim"), Column("result"), Column("verdict")), rows
    )


def tabulate_failures(evidence: Evidence) -> Table:
    """Make the table of the reasons of failures, the most frequent first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for kind, trials in evidence.failures.items():
        for trial in trials:
            groups.setdefault((kind, shorten_reason(trial.reason)), []).append(trial.number)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [
        [kind, reason, len(numbers), join_numbers(numbers)]
        for (kind, reason), numbers in ranked[:_MAX_REASONS]
    ]
    omitted = len(ranked) - _MAX_REASONS
    columns = (Column("kind"), Column("reason"), Column("trials", "count"), Column("numbers"))
    note = f"{omitted} less frequent reasons are left out." if omitted > 0 else ""
    return Table("failures", "Failures", columns, rows, note)


def shorten_reason(reason: str | None) -> str:
    """Return the first line of a reason, cut to a readable length."""
    line = get_first_line(reason)
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."


def join_numbers(numbers: Sequence[int]) -> str:
    """Join trial numbers; a long list is cut."""
    more = f" and {len(numbers) - _MAX_LISTED} more" if len(numbers) > _MAX_LISTED else ""
    return ", ".join(str(number) for number in numbers[:_MAX_LISTED]) + more


def tabulate_cost(evidence: Evidence) -> Table:
    """Make the table of the device time by phase."""
    seconds = evidence.seconds_by_phase
    runs = {phase: evidence.runs_by_phase.get(phase, 0) for phase in seconds}
    cells = {
        Column("phase"): list(seconds),
        Column("runs", "count"): list(runs.values()),
        Column("device time", "seconds", "s"): list(seconds.values()),
        Column("one run", "seconds", "s"): [
            seconds[phase] / count if count else None for phase, count in runs.items()
        ],
    }
    note = "A run whose result is used by two phases is counted in the first."
    return make_table("cost", "Cost", cells, note)


def tabulate_generations(evidence: Evidence) -> Table:
    """Make the table of the search distribution by generation."""
    generations = evidence.generations
    losses = [entry.best_loss for entry in generations]
    cells = {
        Column("generation", "count"): [entry.number for entry in generations],
        Column("best objective", "loss"): [
            None if loss is None else to_objective(evidence, loss) for loss in losses
        ],
        Column("condition", "value"): [entry.condition for entry in generations],
        Column("step", "value"): [entry.step for entry in generations],
    }
    shown = {
        part: [show_values(evidence, getattr(entry, part)) for entry in generations]
        for part in ("mean", "low", "high", "best")
    }
    cells |= {
        Column(f"{name} {part}", "value"): [values.get(name) for values in shown[part]]
        for name in evidence.names
        for part in shown
    }
    return make_table("generations", "Generations", cells)


def tabulate_search_trials(evidence: Evidence, chosen: Sequence[Trial] | None = None) -> Table:
    """Make the table of the trials; chosen selects some of them, None means all."""
    trials = evidence.trials if chosen is None else chosen
    cells = {
        Column("trial", "count"): [trial.number for trial in trials],
        Column("generation", "count"): [trial.facts.get("generation") for trial in trials],
        Column("state"): [trial.state for trial in trials],
        Column("objective", "loss"): [trial.objective for trial in trials],
        Column("run", "seconds", "s"): [trial.facts.get("seconds") for trial in trials],
        Column("seed", "count"): [trial.facts.get("seed") for trial in trials],
    }
    shown = [show_values(evidence, trial.values) for trial in trials]
    for name in evidence.names:
        cells[Column(name, "value")] = [values.get(name) for values in shown]
    if any(keys.ENQUEUED in trial.facts for trial in trials):
        cells[Column("proposed by")] = [
            "a user" if keys.ENQUEUED in trial.facts else "the optimizer" for trial in trials
        ]
    cells[Column("reason")] = [
        shorten_reason(trial.reason) if trial.state == "failed" else None for trial in trials
    ]
    return make_table("trials", "Trials", cells)


def to_objective(evidence: Evidence, loss: float) -> float:
    """Convert a loss, which the search minimises, to the user's objective."""
    return -loss if evidence.maximize else loss


def count_search_seeds(evidence: Evidence) -> int | None:
    """Return the number of seeds of the best trial; None for a search without seeds."""
    facts = {} if evidence.best is None else evidence.best.facts
    return None if facts.get(keys.SEED) is None else int(facts.get("seeds", 1))


def list_key_numbers(evidence: Evidence) -> list[tuple[str, str]]:
    """List the known key numbers of a study as (name, text)."""
    validation, best, course = evidence.validation, evidence.best, evidence.convergence
    states = Counter(trial.state for trial in evidence.trials)
    planned = evidence.plan.budget
    numbers: list[tuple[str, str]] = []
    best_name = "earlier best" if evidence.is_stale else "best"
    if validation is not None:
        for name, runs in (("start", validation.before), (best_name, validation.after)):
            known = [value for run in runs if (value := run.facts.get("test_perplexity"))]
            if known:
                numbers.append((f"test perplexity, {name}", f"{statistics.fmean(known):.4g}"))
        numbers.append(("fresh seeds", str(validation.gain.count)))
    if best is not None and best.objective is not None:
        first = find_best(evidence.trials, evidence.maximize) or best
        shown = {f"best objective, trial {first.number}": first}
        if first.objective != best.objective:
            shown[f"objective of the recommended trial {best.number}"] = best
        numbers += [(name, format_cell(trial.objective, "loss")) for name, trial in shown.items()]
    name = "evaluations" if planned is None else f"evaluations of {planned}"
    numbers.append((name, str(states.total() - states["running"])))
    counts = {
        "failed": states["failed"],
        "pruned": states["pruned"],
        "running": states["running"],
        "enqueued by a user": sum(keys.ENQUEUED in trial.facts for trial in evidence.trials),
        "parameters": len(evidence.names),
    }
    seconds = {
        "device time, all phases": sum(evidence.seconds_by_phase.values()),
        "wall-clock time of the search": 3600.0 * course.hours[-1] if course else 0.0,
    }
    numbers += [(name, str(count)) for name, count in counts.items() if count]
    if evidence.imported:
        name = f"imported trials ({', '.join(evidence.imported)}), not among the evaluations"
        numbers.append((name, str(sum(evidence.imported.values()))))
    return numbers + [(name, format_duration(time)) for name, time in seconds.items() if time]


def tabulate_noise(evidence: Evidence) -> Table:
    """Make the table of the known measures of noise and selection bias, and of the tests."""
    noise, bias, validation = evidence.noise, evidence.selection_bias, evidence.validation
    measures: list[tuple[str, Any]] = []
    if noise is not None:
        spread = "standard deviation over seeds"
        measures += [
            (f"{spread}, start [nats/token]", noise.before),
            (f"{spread}, best [nats/token]", noise.after),
            (f"{spread}, paired difference [nats/token]", noise.difference),
            (
                "standard deviation of the objective over the search's candidates",
                noise.candidates,
            ),
        ]
    if bias is not None:
        own = "seed" if count_search_seeds(evidence) in (None, 1) else "seeds"
        measures += [
            (f"gain on the search's own {own} [nats/token]", bias.search),
            ("gain on fresh seeds, validation split [nats/token]", bias.fresh),
            ("gain on fresh seeds, test split [nats/token]", bias.test),
        ]
    rows = [[name, format_cell(number, "value")] for name, number in measures if number is not None]
    if validation is not None:
        gain = validation.gain
        bootstrap = f"{gain.boot_low:z.1f} to {gain.boot_high:z.1f}"
        wilcoxon = f"Wilcoxon's signed-rank test, two-sided p ({gain.count} pairs)"
        rows += [
            ["gain, t-interval 95 % [%]", format_cell(gain, "gain")],
            ["gain, bootstrap interval 95 % [%]", bootstrap],
            ["paired t-test, two-sided p", format_cell(gain.p, "p")],
            [wilcoxon, format_cell(gain.wilcoxon, "p")],
            ["effect size, Hedges", format_cell(gain.effect, "share")],
        ]
    return Table("noise", "Noise and tests", (Column("measure"), Column("value", "value")), rows)


def render_best_yaml(evidence: Evidence) -> str | None:
    """Render the recommended values as YAML for `python train.py tuned=FILE`; None without any."""
    best = evidence.best
    if best is None or not best.values:
        return None
    gain = None if evidence.validation is None else evidence.validation.gain
    note = artifacts.NOT_VALIDATED
    if evidence.is_stale and evidence.validated is not None:
        note += f"; the validation is of trial {evidence.validated.number}, an earlier best"
    elif gain is not None:
        note = artifacts.describe_validation(gain.count, gain.mean, low=gain.low, high=gain.high)
    return artifacts.format_best_yaml(evidence.name, best, evidence.fixed, note)
