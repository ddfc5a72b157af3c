"""`synaptune wandb`: upload the offline runs of a study to Weights & Biases; build its report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error


def add_command(commands: Any) -> None:
    """Add the subcommands."""
    parser = commands.add_parser(
        "wandb", help="a study at Weights & Biases: send its offline runs, build its report"
    )
    below = parser.add_subparsers(metavar="WHAT", required=True)
    sync = below.add_parser(
        "sync", help="send the offline runs of a study: the controller's, and the best trials'"
    )
    sync.add_argument(
        "--best",
        type=int,
        default=10,
        metavar="K",
        help="trials of the search that are sent (default %(default)s)",
    )
    sync.add_argument("--all", action="store_true", help="send every trial")
    sync.set_defaults(command=_run_sync)
    report = below.add_parser(
        "report", help="build the W&B Report of a study; publish it when there is a key"
    )
    report.add_argument("--offline", action="store_true", help="write its specification only")
    report.set_defaults(command=_run_report)
    for part in (sync, report):
        part.add_argument(
            "study",
            metavar="STUDY",
            help=(
                "a name below outputs/studies, or a study's folder; with --storage, its name there"
            ),
        )
        part.add_argument(
            "--storage", metavar="URL", help="the database of the study, as in study.storage"
        )
        part.add_argument("--project", help="of W&B (default: the one the study logged to)")
        part.add_argument(
            "--entity", help="of W&B (default: the one the study logged to, or your own)"
        )


def _run_sync(options: argparse.Namespace) -> None:
    from synaptune.study.callbacks.wandb_sync import find_local_runs, sync_runs
    from synaptune.study.reader import find_study, get_study_folder
    from synaptune.training.loggers.wandb_run import explain_unreachable

    if options.best < 0:
        raise user_error(got=f"--best {options.best}", expected="at least 0", do="correct it")
    record, folder = find_study(options.study, options.storage), get_study_folder(options.study)
    runs = find_local_runs(record, folder, best=options.best, everything=options.all)
    if not runs:
        raise user_error(
            got=f"no offline runs of {record.name} in {folder}",
            expected="a study that logged to W&B offline (logger.wandb=auto or offline)",
            do="check the study; runs that were online are there already",
        )
    waiting = [run for run in runs if not run.is_sent]
    if waiting:
        if (reason := explain_unreachable()) is not None:
            raise user_error(
                got=reason,
                expected="wandb installed, an API key, and a W&B server that answers",
                do="pip install 'synaptune[wandb]', `wandb login`, or check WANDB_BASE_URL",
            )
        sync_runs(waiting, project=options.project, entity=options.entity)
    sent = [run.name for run in waiting if run.is_sent]
    failed = [run.name for run in waiting if not run.is_sent]
    print(f"sent: {_count_names(sent)}; sent before: {len(runs) - len(waiting)}", flush=True)
    if failed:
        raise user_error(
            got=f"runs that W&B did not take: {_count_names(failed)}",
            expected="every run uploaded",
            do="see the messages above; the same command continues with the rest",
        )


def _count_names(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(dict.fromkeys(names))})" if names else "0"


def _run_report(options: argparse.Namespace) -> None:
    from synaptune.analysis.evidence import gather_evidence
    from synaptune.report.wandb_report import write_wandb_report
    from synaptune.study.reader import find_study, get_study_folder

    record = find_study(options.study, options.storage)
    folder: Path = get_study_folder(options.study)
    write_wandb_report(
        gather_evidence(record),
        folder,
        project=options.project,
        entity=options.entity,
        publish=not options.offline,
    )
