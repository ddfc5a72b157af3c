"""What each parameter of a study's optimum is worth (`make ablation`).

    python -m synaptune.protocols.ablation --study NAME [--seeds N] [--storage URL] [workers.* trial.* logger.* notify.*]

runs       the optimum with one parameter back at its start value, and the start with one parameter tuned, for each parameter, on the
           seeds and with the test split of the study's validation; its own runs are not made again
table      improvement of test perplexity by each, both ways, with intervals and p-values corrected for all comparisons

The runs are trials of the study (phase `ablation`), each there at once: the same command goes on after Ctrl-C or a kill, and shows the
table again when all is done. With more --seeds it adds those missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from synaptune.analysis.ablation import Endpoints, compute_ablation, find_endpoints, plan_points
from synaptune.analysis.compare import CONFIDENCE
from synaptune.analysis.results import AblationRow
from synaptune.core.errors import user_error
from synaptune.protocols import phase1, phase2
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.options import add_report_option, run_command
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.session import VALIDATION_SEEDS, reopen_protocol
from synaptune.protocols.stages import run_points
from synaptune.study.reader import (
    ABLATION,
    JOINT,
    SEARCH,
    VALIDATION,
    StudySnapshot,
    find_study,
    get_study_folder,
)

# Of each protocol: the phase of its last search, and the distance of its validation's seeds from the search's.
_PROTOCOLS = {"phase1": (SEARCH, phase1.SEED_OFFSET), "phase2": (JOINT, phase2.SEED_OFFSET)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.protocols.ablation",
        description="Say what each parameter of a study's optimum is worth.",
    )
    parser.add_argument(
        "--study", default="phase1", help="the study: a name below outputs/studies, or its folder"
    )
    parser.add_argument(
        "--storage", default=None, help="its storage URL (default: the database in its folder)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=None,
        help="the first so many of the validation's seeds (default: all)",
    )
    add_report_option(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        help="overrides of workers, trial, logger and notify, e.g. workers.count=4",
    )
    return run_command(
        _run, parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    )


def _run(options: argparse.Namespace) -> None:
    record = find_study(options.study, options.storage)
    between = require_endpoints(record)
    seeds = choose_seeds(record, between, options.seeds)
    folder = get_study_folder(options.study)
    with reopen_protocol(
        record, folder, options.overrides, space=between.space, seeds=seeds
    ) as protocol:
        _run_ablation(protocol, between)
        _print_table(find_study(options.study, options.storage), protocol)
        if options.report:
            write_final_report(protocol, between.defaults, between.tuned)
    print(f"written to {folder}/ablation.json", flush=True)


def require_endpoints(snapshot: StudySnapshot) -> Endpoints:
    """What an ablation of a study goes between; raises UserError for a study that has no optimum to take apart."""
    protocol = snapshot.configuration.get("search.protocol")
    if protocol not in _PROTOCOLS or snapshot.maximize:
        raise user_error(
            got=f"study {snapshot.name}, which no protocol made"
            + (" and which maximises" if snapshot.maximize else ""),
            expected=f"a study of {' or '.join(_PROTOCOLS)}",
            do="name one with --study; its validation and its start are what an ablation needs",
        )
    phase, _ = _PROTOCOLS[protocol]
    ended = sum(trial.state != "running" for trial in snapshot.get_phase_trials(phase))
    between = find_endpoints(snapshot)
    whole = snapshot.get_phase_trials(VALIDATION) or (
        snapshot.engine is not None and ended >= (snapshot.engine.budget or 0) > 0
    )
    if between is None or not whole:
        raise user_error(
            got=f"study {snapshot.name} with {ended} evaluations of its last search and no validation",
            expected="a search that has ended",
            do=f"let it end first: the command that began it (make sweep-{protocol}) goes on",
        )
    if not plan_points(between).reverted:
        raise user_error(
            got=f"study {snapshot.name}, whose best point is its start",
            expected="an optimum that differs from the start",
            do="search longer: there is nothing to take apart",
        )
    return between


def choose_seeds(snapshot: StudySnapshot, endpoints: Endpoints, count: int | None) -> list[int]:
    """The first `count` seeds of a study's validation (null: all), or those it would have; raises UserError for fewer than 2."""
    tuned = endpoints.space.to_values(endpoints.tuned)
    seeds = sorted(
        {
            trial.facts["seed"]
            for trial in snapshot.get_phase_trials(VALIDATION)
            if trial.values == tuned
        }
    )
    if not seeds:
        _, distance = _PROTOCOLS[snapshot.configuration["search.protocol"]]
        seeds = [
            int(snapshot.configuration["seed"]) + distance + number
            for number in range(VALIDATION_SEEDS)
        ]
    if count is not None and not 2 <= count <= len(seeds):
        raise user_error(
            got=f"--seeds {count}",
            expected=f"2 to {len(seeds)}, the validation's seeds",
            do="correct it",
        )
    return seeds[:count]


def _run_ablation(protocol: Protocol, endpoints: Endpoints) -> None:
    wanted = plan_points(endpoints)
    units, name = wanted.as_list(), protocol.study.location.name
    print_message(
        f"ablation of study {name}: {len(wanted.reverted)} parameters both ways on {len(protocol.seeds)} seeds, test split"
    )
    runs = [(unit, seed) for seed in protocol.seeds for unit in units]
    trials = run_points(
        protocol, protocol.make_ledger(ABLATION), runs, label="ablation run", test=True
    )
    for trial in trials:
        if trial.state != "complete":
            print_message(
                f"the run with seed {trial.facts['seed']} failed and is left out of its comparisons ({trial.reason})"
            )


def _print_table(snapshot: StudySnapshot, protocol: Protocol) -> None:
    from rich.console import Console

    from synaptune.report.console import print_lines, print_table
    from synaptune.report.tables import tabulate_ablation
    from synaptune.study.artifacts import write_json

    rows = compute_ablation(snapshot)
    write_json(
        protocol.study.location.folder / "ablation.json",
        {"study": snapshot.name, "seeds": list(protocol.seeds), "rows": _to_plain(rows)},
    )
    console = Console()
    print_table(tabulate_ablation(rows), console)
    print_lines(describe_rows(rows), console)


def _to_plain(rows: Sequence[AblationRow]) -> list[dict[str, Any]]:
    return [
        row._asdict()
        | {
            way: None if found is None else found._asdict()
            for way, found in (("reverted", row.reverted), ("alone", row.alone))
        }
        for row in rows
    ]


def describe_rows(rows: Sequence[AblationRow]) -> list[str]:
    """What the table says, in sentences: which parameters are not told from zero at the optimum, and alone."""
    lines, limit = [], 1.0 - CONFIDENCE
    ways = {
        "at the optimum": [(row.name, row.adjusted_reverted) for row in rows],
        "alone": [(row.name, row.adjusted_alone) for row in rows],
    }
    for way, values in ways.items():
        open_ = [name.removeprefix("synapse.") for name, p in values if p is None or p >= limit]
        lines.append(
            f"{way}, not told from zero: {', '.join(open_)}"
            if open_
            else f"{way}, all are told from zero"
        )
    made = sum(p is not None for values in ways.values() for _, p in values)
    return [
        *lines,
        f"intervals of {CONFIDENCE:.0%}; p corrected for {made} comparisons (Holm), told from zero below {limit:.2g}",
    ]


if __name__ == "__main__":
    sys.exit(main())
