"""What each parameter of a study's optimum is worth (`synaptune ablation`).

runs       the optimum with one parameter back at its start value, and the start with one parameter
           tuned, for each parameter, on the seeds and with the test split of the study's
           validation; the runs of the validation itself are not repeated
table      improvement of test perplexity by each, both ways, with intervals and p-values corrected
           for all comparisons

The runs are trials of the study (phase `ablation`), each stored at once: the same command continues
after Ctrl-C or a kill, and prints the table again when all is done. With a larger protocol.seeds it
adds the missing ones. conf/protocol/ablation.yaml explains the settings.

Phase 1 ends with a small part of it (`run_short_ablation`): the optimum with one parameter back, on
few seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from synaptune.analysis.ablation import (
    Endpoints,
    choose_reverted,
    compute_ablation,
    find_endpoints,
    plan_points,
)
from synaptune.analysis.compare import CONFIDENCE
from synaptune.analysis.cost import PlannedRuns
from synaptune.analysis.results import AblationRow
from synaptune.analysis.screening import from_note
from synaptune.config.compose import compose_config
from synaptune.core.errors import user_error
from synaptune.core.text import get_override_key
from synaptune.protocols.config import (
    SEED_OFFSETS,
    AblationConfig,
    Phase1Config,
    read_protocol_config,
)
from synaptune.protocols.estimate import estimate_protocol
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.sanity import TRYOUT_STEPS
from synaptune.protocols.session import reopen_protocol
from synaptune.protocols.stages import run_points
from synaptune.search.space.space import UnitPoint
from synaptune.study.location import StudyLocation
from synaptune.study.reader import (
    ABLATION,
    JOINT,
    SCREENING,
    SEARCH,
    VALIDATION,
    StudySnapshot,
    read_study,
)

# The phase of the last search, for each protocol that has a validation.
_LAST_PHASES = {"phase1": SEARCH, "phase2": JOINT}
_VALIDATION_SEEDS = 5  # number of seeds for a study without a validation
# Runs of the ablation of phase 1, and of one that only tries the commands [run]; chosen: five
# parameters on three seeds (`make bench-screen`), about a tenth of the protocol.
DEFAULT_RUNS, TRYOUT_RUNS = 15, 4
_WANTED_SEEDS = 3  # pairs of a comparison; two tell little even with a pooled spread


def run_ablation(overrides: Sequence[str]) -> dict[str, Any]:
    """Run the ablation of the study that `study.*` names, or continue it.

    Args:
        overrides: `study.*`, `protocol.*` of conf/protocol/ablation.yaml, and those of the groups
            that may change between two commands on one study (workers, trial, logger, notify).

    Returns:
        The content of ablation.json; of a dry run the estimate.

    Raises:
        UserError: a mistake in the input, or a study that has no optimum.
    """
    own = [word for word in overrides if get_override_key(word).startswith(("study.", "protocol"))]
    composed = compose_config(own, protocol="ablation", study="phase1")
    assert composed.protocol is not None
    config = read_protocol_config(AblationConfig, composed.protocol)
    is_named = any(get_override_key(word) == "study.name" for word in own)
    location = composed.location
    snapshot = _read_snapshot(location, is_named)
    endpoints = require_endpoints(snapshot)
    seeds = choose_seeds(snapshot, endpoints, config.seeds)
    free = [word for word in overrides if word not in own]
    if config.dry_run:
        base = compose_config(free, study=snapshot.name).base
        place = StudyLocation(snapshot.name, location.folder, snapshot.url, "must")
        plan = plan_runs(snapshot, endpoints, len(seeds))
        return estimate_protocol(base, place, lambda workers: plan)
    with reopen_protocol(
        snapshot,
        location.folder,
        free,
        space=endpoints.space,
        seeds=seeds,
    ) as protocol:
        _run_ablation(protocol, endpoints)
        result = _print_table(_read_snapshot(location, is_named), protocol)
        if config.report:
            write_final_report(protocol, endpoints.defaults, endpoints.tuned)
    print_message(f"written to {location.shown_folder}/ablation.json")
    return result


class ShortAblation(NamedTuple):
    """The size of the ablation of phase 1: parameters, each on the same seeds."""

    parameters: int
    seeds: int


def plan_short_ablation(config: Phase1Config, *, moved: int, steps: int) -> ShortAblation:
    """Plan the ablation of phase 1 within its budget.

    It has as many parameters as have moved, as far as the budget has three seeds for each. The rest
    of the budget buys more seeds.

    Args:
        config: settings of phase 1.
        moved: number of parameters that have moved.
        steps: training steps of a run.
    """
    runs = config.ablation_runs
    if runs is None:
        runs = TRYOUT_RUNS if steps < TRYOUT_STEPS else DEFAULT_RUNS
    if not config.ablation or moved == 0:
        return ShortAblation(0, 0)
    parameters = min(moved, max(1, runs // min(_WANTED_SEEDS, config.seeds)))
    return ShortAblation(parameters, min(runs // parameters, config.seeds))


def run_short_ablation(
    protocol: Protocol, config: Phase1Config, before: UnitPoint, after: UnitPoint
) -> list[AblationRow]:
    """Set each parameter of the validated best back to its start value, on paired seeds.

    Args:
        protocol: the protocol of phase 1, with its validation.
        config: settings of phase 1.
        before: the start.
        after: the best.

    Returns:
        The rows of the ablation; empty without one.
    """
    endpoints = Endpoints(protocol.space, before, after)
    moved, steps = len(plan_points(endpoints).reverted), int(protocol.base.training.steps)
    plan = plan_short_ablation(config, moved=moved, steps=steps)
    if plan.parameters == 0 or protocol.plan.maximize:
        return []
    note = protocol.study.read_note(SCREENING)
    effects = {entry.name: entry.effect for entry in from_note(note).effects} if note else {}
    points = choose_reverted(endpoints, plan.parameters, effects)
    print_message(
        f"ablation: {len(points)} of {moved} moved parameters, each set back to its start value,"
        f" on {plan.seeds} seeds of the validation"
    )
    seeds = protocol.seeds[: plan.seeds]
    _run_points(protocol, [(unit, seed) for seed in seeds for unit in points.values()])
    location = protocol.study.location
    return _write_rows(read_study(location.url, location.name), protocol, seeds)


def plan_runs(snapshot: StudySnapshot, endpoints: Endpoints, seeds: int) -> list[PlannedRuns]:
    """Return the training runs of an ablation; those of the validation are copied."""
    points = plan_points(endpoints)
    copied = 2 if snapshot.get_phase_trials(VALIDATION) else 0
    count = (len(points.as_list()) - copied) * seeds
    return [PlannedRuns("ablation", count, with_test=True)]


def _read_snapshot(location: StudyLocation, is_named: bool) -> StudySnapshot:
    """Read the study at a location: by its name if it is set, else the one of the folder."""
    if is_named:
        return read_study(location.url, location.name)
    return read_study(location.url, prefer=location.folder.resolve().name)


def require_endpoints(snapshot: StudySnapshot) -> Endpoints:
    """Return the two points between which an ablation changes parameters.

    Raises:
        UserError: the study has no optimum, or its optimum is its start.
    """
    protocol = snapshot.configuration.get("search.protocol")
    if protocol not in _LAST_PHASES or snapshot.maximize:
        raise user_error(
            got=f"study {snapshot.name}, which no protocol made"
            + (" and which maximises" if snapshot.maximize else ""),
            expected=f"a study of {' or '.join(_LAST_PHASES)}",
            do="name one with study.name=STUDY; an ablation needs its validation and its start",
        )
    phase = _LAST_PHASES[protocol]
    ended = sum(trial.state != "running" for trial in snapshot.get_phase_trials(phase))
    endpoints = find_endpoints(snapshot)
    is_complete = snapshot.get_phase_trials(VALIDATION) or (
        snapshot.engine is not None and ended >= (snapshot.engine.budget or 0) > 0
    )
    if endpoints is None or not is_complete:
        raise user_error(
            got=f"study {snapshot.name} with {ended} evaluations of its last search "
            "and no validation",
            expected="a search that has ended",
            do=f"let it end first: the command that began it (make sweep-{protocol}) continues it",
        )
    if not plan_points(endpoints).reverted:
        raise user_error(
            got=f"study {snapshot.name}, whose best point is its start",
            expected="an optimum that differs from the start",
            do="search longer: there is no difference to measure",
        )
    return endpoints


def choose_seeds(snapshot: StudySnapshot, endpoints: Endpoints, count: int | None) -> list[int]:
    """Return the seeds of an ablation: those of the validation, or those it would have.

    Args:
        snapshot: the study.
        endpoints: its start and its optimum.
        count: number of seeds, the first of the validation; None means all.

    Raises:
        UserError: count is below 2 or above the number of seeds.
    """
    tuned = endpoints.space.to_values(endpoints.tuned)
    seeds = sorted(
        {
            trial.facts["seed"]
            for trial in snapshot.get_phase_trials(VALIDATION)
            if trial.values == tuned
        }
    )
    if not seeds:
        offset = SEED_OFFSETS[snapshot.configuration["search.protocol"]]
        seeds = [
            int(snapshot.configuration["seed"]) + offset + number
            for number in range(_VALIDATION_SEEDS)
        ]
    if count is not None and not 2 <= count <= len(seeds):
        raise user_error(
            got=f"protocol.seeds={count}",
            expected=f"2 to {len(seeds)}, the validation's seeds",
            do="correct it",
        )
    return seeds[:count]


def _run_ablation(protocol: Protocol, endpoints: Endpoints) -> None:
    points = plan_points(endpoints)
    units, name = points.as_list(), protocol.study.location.name
    print_message(
        f"ablation of study {name}: {len(points.reverted)} parameters both ways on "
        f"{len(protocol.seeds)} seeds, test split"
    )
    _run_points(protocol, [(unit, seed) for seed in protocol.seeds for unit in units])


def _run_points(protocol: Protocol, points: Sequence[tuple[UnitPoint, int]]) -> None:
    """Run points as the validation ran its own, so that they form pairs."""
    ledger = protocol.make_ledger(ABLATION, **protocol.final_length)
    for trial in run_points(protocol, ledger, points, label="ablation run", test=True):
        if trial.state != "complete":
            print_message(
                f"the run with seed {trial.facts['seed']} failed and is left out of its "
                f"comparisons ({trial.reason})"
            )


def _print_table(snapshot: StudySnapshot, protocol: Protocol) -> dict[str, Any]:
    """Print and write the table; return the content of ablation.json."""
    rows = _write_rows(snapshot, protocol, protocol.seeds)
    print_rows(rows)
    return _make_content(snapshot, protocol.seeds, rows)


def print_rows(rows: Sequence[AblationRow]) -> None:
    """Print the table of an ablation with the lines below it."""
    from synaptune.core.console import make_console
    from synaptune.report.console import print_lines, print_table
    from synaptune.report.tables import tabulate_ablation

    console = make_console()
    print_table(tabulate_ablation(rows), console)
    print_lines(describe_rows(rows), console)


def _write_rows(
    snapshot: StudySnapshot, protocol: Protocol, seeds: Sequence[int]
) -> list[AblationRow]:
    """Compute the rows and write ablation.json; return them."""
    from synaptune.study.artifacts import write_json

    rows = compute_ablation(snapshot)
    content = _make_content(snapshot, seeds, rows)
    write_json(protocol.study.location.folder / "ablation.json", content)
    return rows


def _make_content(
    snapshot: StudySnapshot, seeds: Sequence[int], rows: Sequence[AblationRow]
) -> dict[str, Any]:
    return {"study": snapshot.name, "seeds": list(seeds), "rows": to_plain(rows)}


def to_plain(rows: Sequence[AblationRow]) -> list[dict[str, Any]]:
    """Return the rows of an ablation as plain values."""
    return [
        row._asdict()
        | {
            way: None if gain is None else gain._asdict()
            for way, gain in (("reverted", row.reverted), ("alone", row.alone))
        }
        for row in rows
    ]


def describe_rows(rows: Sequence[AblationRow]) -> list[str]:
    """Return the lines below the table.

    They name the parameters whose effect does not differ significantly from zero, at the
    optimum and alone.
    """
    from synaptune.report.findings import format_count

    lines, limit = [], 1.0 - CONFIDENCE
    ways = {
        "at the optimum": [(row.name, row.adjusted_reverted) for row in rows if row.reverted],
        "alone": [(row.name, row.adjusted_alone) for row in rows if row.alone],
    }
    for way, values in ways.items():
        if not values:
            continue
        undecided = [name.removeprefix("synapse.") for name, p in values if p is None or p >= limit]
        lines.append(
            f"{way}, not significantly different from zero: {', '.join(undecided)}"
            if undecided
            else f"{way}, all are significantly different from zero"
        )
    comparisons = sum(map(len, ways.values()))
    return [
        *lines,
        f"intervals of {CONFIDENCE:.0%}; p corrected for "
        f"{format_count(comparisons, 'comparison')} (Holm), "
        f"significant below {limit:.2g}",
    ]
