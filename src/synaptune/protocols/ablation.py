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

from synaptune.analysis.ablation import Ends, ablated, ends, points
from synaptune.analysis.compare import LEVEL
from synaptune.analysis.results import Ablated, Comparison
from synaptune.core.errors import mistake
from synaptune.protocols import phase1, phase2
from synaptune.protocols.final_report import closed
from synaptune.protocols.options import add_report_option, guarded
from synaptune.protocols.protocol import Protocol, say
from synaptune.protocols.session import VALIDATION_SEEDS, reopened
from synaptune.protocols.stages import measured
from synaptune.study.reader import ABLATION, JOINT, SEARCH, VALIDATION, Record, find_study, study_folder

# Of each protocol: the phase of its last search, and the distance of its validation's seeds from the search's.
_PROTOCOLS = {"phase1": (SEARCH, phase1.FRESH), "phase2": (JOINT, phase2.FRESH)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.protocols.ablation", description="Say what each parameter of a study's optimum is worth."
    )
    parser.add_argument("--study", default="phase1", help="the study: a name below outputs/studies, or its folder")
    parser.add_argument("--storage", default=None, help="its storage URL (default: the database in its folder)")
    parser.add_argument("--seeds", type=int, default=None, help="the first so many of the validation's seeds (default: all)")
    add_report_option(parser)
    parser.add_argument("overrides", nargs="*", help="overrides of workers, trial, logger and notify, e.g. workers.count=4")
    return guarded(_run, parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments))


def _run(options: argparse.Namespace) -> None:
    record = find_study(options.study, options.storage)
    between = checked(record)
    seeds = validation_seeds(record, between, options.seeds)
    folder = study_folder(options.study)
    with reopened(record, folder, options.overrides, space=between.space, seeds=seeds) as protocol:
        _measure(protocol, between)
        _show(find_study(options.study, options.storage), protocol)
        if options.report:
            closed(protocol, between.defaults, between.tuned)
    print(f"written to {folder}/ablation.json", flush=True)


def checked(record: Record) -> Ends:
    """What an ablation of a study goes between; raises UserError for a study that has no optimum to take apart."""
    protocol = record.configuration.get("search.protocol")
    if protocol not in _PROTOCOLS or record.maximize:
        raise mistake(
            got=f"study {record.name}, which no protocol made" + (" and which maximises" if record.maximize else ""),
            expected=f"a study of {' or '.join(_PROTOCOLS)}",
            do="name one with --study; its validation and its start are what an ablation needs",
        )
    phase, _ = _PROTOCOLS[protocol]
    ended = sum(trial.state != "running" for trial in record.phase(phase))
    between = ends(record)
    whole = record.phase(VALIDATION) or (record.engine is not None and ended >= (record.engine.budget or 0) > 0)
    if between is None or not whole:
        raise mistake(
            got=f"study {record.name} with {ended} evaluations of its last search and no validation",
            expected="a search that has ended",
            do=f"let it end first: the command that began it (make sweep-{protocol}) goes on",
        )
    if not points(between).reverted:
        raise mistake(
            got=f"study {record.name}, whose best point is its start",
            expected="an optimum that differs from the start",
            do="search longer: there is nothing to take apart",
        )
    return between


def validation_seeds(record: Record, between: Ends, count: int | None) -> list[int]:
    """The first `count` seeds of a study's validation (null: all), or those it would have; raises UserError for fewer than 2."""
    tuned = between.space.values(between.tuned)
    seeds = sorted({trial.facts["seed"] for trial in record.phase(VALIDATION) if trial.values == tuned})
    if not seeds:
        _, distance = _PROTOCOLS[record.configuration["search.protocol"]]
        seeds = [int(record.configuration["seed"]) + distance + number for number in range(VALIDATION_SEEDS)]
    if count is not None and not 2 <= count <= len(seeds):
        raise mistake(got=f"--seeds {count}", expected=f"2 to {len(seeds)}, the validation's seeds", do="correct it")
    return seeds[:count]


def _measure(protocol: Protocol, between: Ends) -> None:
    wanted = points(between)
    units, name = wanted.all(), protocol.study.place.name
    say(f"ablation of study {name}: {len(wanted.reverted)} parameters both ways on {len(protocol.seeds)} seeds, test split")
    runs = [(unit, seed) for seed in protocol.seeds for unit in units]
    trials = measured(protocol, protocol.ledger(ABLATION), runs, label="ablation run", test=True)
    for trial in trials:
        if trial.state != "complete":
            say(f"the run with seed {trial.facts['seed']} failed and is left out of its comparisons ({trial.reason})")


def _show(record: Record, protocol: Protocol) -> None:
    from rich.console import Console
    from rich.table import Table

    from synaptune.study.artifacts import write_json

    rows = ablated(record)
    write_json(protocol.study.place.folder / "ablation.json", {"study": record.name, "seeds": list(protocol.seeds), "rows": _plain(rows)})
    table = Table(title=f"Ablation of study {record.name}: gain in test perplexity [%]", title_justify="left")
    table.add_column("parameter", no_wrap=True)
    for heading in ("start", "tuned", "worth at the optimum", "alone"):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in (row.default, row.tuned)]
        table.add_row(
            row.name.removeprefix("synapse.").replace(".", ".\n", 1),
            *shown,
            _cell(row.reverted, row.adjusted_reverted),
            _cell(row.alone, row.adjusted_alone),
        )
    console = Console()
    console.print(table)
    for line in words(rows):
        console.print(line, highlight=False)


def _plain(rows: Sequence[Ablated]) -> list[dict[str, Any]]:
    return [
        row._asdict()
        | {way: None if found is None else found._asdict() for way, found in (("reverted", row.reverted), ("alone", row.alone))}
        for row in rows
    ]


def _cell(comparison: Comparison | None, adjusted: float | None) -> str:
    if comparison is None or adjusted is None:
        return "too few runs"
    return f"{comparison.mean:+.2f}\n({comparison.low:.2f} to {comparison.high:.2f})\np {adjusted:.2g}"


def words(rows: Sequence[Ablated]) -> list[str]:
    """What the table says, in sentences: which parameters are not told from zero at the optimum, and alone."""
    lines, limit = [], 1.0 - LEVEL
    ways = {
        "at the optimum": [(row.name, row.adjusted_reverted) for row in rows],
        "alone": [(row.name, row.adjusted_alone) for row in rows],
    }
    for way, values in ways.items():
        open_ = [name.removeprefix("synapse.") for name, p in values if p is None or p >= limit]
        lines.append(f"{way}, not told from zero: {', '.join(open_)}" if open_ else f"{way}, all are told from zero")
    made = sum(p is not None for values in ways.values() for _, p in values)
    return [*lines, f"intervals of {LEVEL:.0%}; p corrected for {made} comparisons (Holm), told from zero below {limit:.2g}"]


if __name__ == "__main__":
    sys.exit(main())
