"""Whether a search on a small scale carries over to a larger one (`synaptune transfer`).

candidates   the best points of a finished search, and the defaults; a parameter that is a fraction
             of the run keeps its fraction
runs         each of them on the new scale, on the same fresh seeds, test split included
report       Spearman's rank correlation between the objective that the search ranked by and the new
             validation loss, and each candidate's paired improvement of test perplexity over the
             defaults

conf/protocol/transfer.yaml explains the settings.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from synaptune.analysis.compare import compute_improvement
from synaptune.analysis.cost import PlannedRuns
from synaptune.analysis.ranking import rescore_study
from synaptune.config.compose import compose_config
from synaptune.core.errors import user_error
from synaptune.protocols.config import SEED_OFFSETS, TransferConfig, read_protocol_config
from synaptune.protocols.estimate import estimate_protocol
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import run_points
from synaptune.search.objective.learning_curve import rank_correlation
from synaptune.search.space.space import Space, make_space
from synaptune.search.space.values import Value
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot, find_study


def run_transfer(overrides: Sequence[str]) -> dict[str, Any]:
    """Run the best points of a study with another configuration, and print how far its ranks hold.

    Args:
        overrides: of conf/train.yaml, and `protocol.*` of conf/protocol/transfer.yaml.

    Returns:
        The content of transfer.json; of a dry run the estimate.

    Raises:
        UserError: a mistake in the input, or points that the new configuration cannot run.
    """
    from synaptune.config.search_space import check_search, read_dimensions

    settings = compose_config(overrides, protocol="transfer", study="transfer").protocol
    assert settings is not None
    config = read_protocol_config(TransferConfig, settings)
    snapshot = find_study(config.start)
    best = find_best_points(snapshot)[: config.top]
    if len(best) < config.top:
        raise user_error(
            got=f"{len(best)} complete points in {config.start}",
            expected=f"at least protocol.top={config.top}",
            do="lower protocol.top, or search more",
        )
    parameters = f"search_space.parameters=[{','.join(best[0].values)}]"
    composed = compose_config(
        [parameters, "search_space.name=transfer", *overrides],
        protocol="transfer",
        study="transfer",
    )
    base = composed.base
    space = make_space(read_dimensions(base))
    check_search(base, space.names)
    values = transfer_values(
        best,
        space,
        there=snapshot.configuration.get("training.steps"),
        here=int(base.training.steps),
    )
    if config.dry_run:
        plan = [PlannedRuns("transfer", (len(best) + 1) * config.seeds, with_test=True)]
        return estimate_protocol(base, composed.location, lambda workers: plan)
    first_seed = int(base.seed) + SEED_OFFSETS["transfer"]
    with open_protocol(
        base,
        composed.location,
        space,
        optimizer="cma",
        budget=config.top,
        seeds=range(first_seed, first_seed + config.seeds),
        settings={"protocol": "transfer", "from": config.start, "top": config.top},
    ) as protocol:
        return _run_transfer(protocol, best, values)


def find_best_points(snapshot: StudySnapshot) -> list[Trial]:
    """Return the different complete points of a study's search, best first.

    All objectives are of the kind that the search ended with.

    Raises:
        UserError: the study maximises; the transferred runs are compared by a loss.
    """
    if snapshot.maximize:
        raise user_error(
            got=f"study {snapshot.name}, which maximises",
            expected="a study that minimises",
            do="choose another with protocol.start=STUDY",
        )
    complete = [
        trial for trial in rescore_study(snapshot).whole_runs if trial.objective is not None
    ]
    different = {tuple(trial.values.items()): trial for trial in reversed(complete)}.values()
    return sorted(different, key=lambda trial: trial.objective or 0.0)


def transfer_values(
    trials: Sequence[Trial], space: Space, *, there: int | None, here: int
) -> list[dict[str, Value]]:
    """Return the values of points for runs of another length.

    A parameter that is searched as a fraction of the run keeps its fraction.

    Args:
        trials: the points.
        space: their space for the new runs.
        there: optimizer steps of the runs of the trials; None means unknown.
        here: optimizer steps of the new runs.

    Raises:
        UserError: a value is outside of the space, or `there` is needed and unknown.
    """
    from synaptune.synapse.circuit import SPECS

    fractions = {spec.name for spec in SPECS if spec.of_run}.intersection(space.names)
    if fractions and there is None:
        raise user_error(
            got="a study that does not say its training.steps, with "
            f"{', '.join(sorted(fractions))}, a fraction of them",
            expected="a study of training runs",
            do="choose another with protocol.start=STUDY",
        )
    points, faults = [], []
    for trial in trials:
        values = dict(trial.values)
        for dimension in space.dimensions:
            value = values.get(dimension.name)
            if value is None:
                faults.append(f"{dimension.name}, which trial {trial.number} does not have")
            elif dimension.name in fractions and there:
                # The ends of both ranges are rounded to steps: a scaled end may exceed the range.
                values[dimension.name] = int(
                    min(max(round(float(value) * here / there), dimension.low), dimension.high)
                )
            elif not dimension.contains(value):
                faults.append(
                    f"{dimension.name}={value} of trial {trial.number}, "
                    f"expected {dimension.describe()}"
                )
        points.append(values)
    if faults:
        raise user_error(
            got=f"points that the space here does not hold: {'; '.join(faults)}",
            expected="points within the ranges of the parameters",
            do="give the range of their search: 'search_space.ranges={NAME: {low: 0, high: 1}}'",
        )
    return points


def _run_transfer(
    protocol: Protocol, best: Sequence[Trial], values: Sequence[dict[str, Value]]
) -> dict[str, Any]:
    """Run the points and print the table; return the content of transfer.json."""
    from synaptune.core.console import make_console
    from synaptune.report.console import print_table
    from synaptune.report.table_model import Column, Table
    from synaptune.study.artifacts import write_json

    units = [protocol.space.get_start(), *map(protocol.space.to_unit, values)]
    print_message(
        f"transfer: the defaults and {len(best)} points on {len(protocol.seeds)} fresh seeds"
    )
    points = [(unit, seed) for seed in protocol.seeds for unit in units]
    runs = run_points(
        protocol, protocol.make_ledger("transfer"), points, label="transfer run", test=True
    )
    if failed := [run for run in runs if run.state != "complete"]:
        raise user_error(
            got=f"{len(failed)} failed runs: {failed[0].reason}",
            expected="points that train",
            do="lower training.learning_rate",
        )
    results = [runs[index :: len(units)] for index in range(len(units))]
    defaults = [run.facts["test_perplexity"] for run in results[0]]
    rows: list[dict[str, Any]] = []
    cells: list[tuple[Any, ...]] = []
    for trial, point, column in zip(best, values, results[1:], strict=True):
        perplexities = [run.facts["test_perplexity"] for run in column]
        gain = compute_improvement(defaults, perplexities)
        loss = statistics.fmean(run.facts["val_loss"] for run in column)
        rows.append(
            {
                "trial": trial.number,
                "objective": trial.objective,
                "val_loss": loss,
                "gain": gain._asdict(),
                "values": point,
            }
        )
        interval = f"{gain.mean:+.2f} %  ({gain.low:+.2f} to {gain.high:+.2f})"
        objective = f"{trial.objective:.4f}"
        perplexity = statistics.fmean(perplexities)
        cells.append((trial.number, objective, f"{loss:.4f}", perplexity, interval))
    correlation = rank_correlation(
        [row["objective"] for row in rows], [row["val_loss"] for row in rows]
    )
    content = {"rank_correlation": correlation, "defaults": defaults, "points": rows}
    write_json(protocol.study.location.folder / "transfer.json", content)
    columns = (
        Column("trial there", "count"),
        Column("objective there", "value"),
        Column("validation loss here", "value"),
        Column("test perplexity here", "value"),
        Column("gain over defaults, 95 % interval", "value"),
    )
    note = (
        f"rank correlation {correlation:+.2f} over {len(rows)} points; "
        "below about 0.9 five points are little evidence"
    )
    title = f"Transfer to {protocol.study.location.name}"
    print_table(Table("transfer", title, columns, cells, note), make_console())
    print_message(f"written to {protocol.study.location.shown_folder}/transfer.json")
    return content
