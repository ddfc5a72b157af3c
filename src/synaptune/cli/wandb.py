"""`synaptune wandb`: a study at Weights & Biases: its offline runs sent, its report built and published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError, mistake


def add(commands: Any) -> None:
    """Add the subcommands."""
    parser = commands.add_parser("wandb", help="a study at Weights & Biases: send its offline runs, build its report")
    below = parser.add_subparsers(metavar="WHAT", required=True)
    sync = below.add_parser("sync", help="send the offline runs of a study: the controller's, and the best trials'")
    sync.add_argument("--best", type=int, default=10, metavar="K", help="trials of the search that are sent (default %(default)s)")
    sync.add_argument("--all", action="store_true", help="send every trial")
    sync.set_defaults(command=_sync)
    report = below.add_parser("report", help="build the W&B Report of a study; publish it when there is a key")
    report.add_argument("--offline", action="store_true", help="write its specification only")
    report.set_defaults(command=_report)
    for part in (sync, report):
        part.add_argument(
            "study", metavar="STUDY", help="a name below outputs/studies, or a study's folder; with --storage, its name there"
        )
        part.add_argument("--storage", metavar="URL", help="the database of the study, as in study.storage")
        part.add_argument("--project", help="of W&B (default: the one the study logged to)")
        part.add_argument("--entity", help="of W&B (default: the one the study logged to, or your own)")


def _sync(options: argparse.Namespace) -> None:
    from synaptune.study.callbacks.wandb_sync import local_runs, sync
    from synaptune.study.reader import find_study, study_folder

    if options.best < 0:
        raise mistake(got=f"--best {options.best}", expected="at least 0", do="correct it")
    record, folder = find_study(options.study, options.storage), study_folder(options.study)
    runs = local_runs(record, folder, best=options.best, everything=options.all)
    if not runs:
        raise mistake(
            got=f"no offline runs of {record.name} in {folder}",
            expected="a study that logged to W&B offline (logger.wandb=auto or offline)",
            do="check the study; runs that were online are there already",
        )
    done = sync(runs, project=options.project, entity=options.entity)
    for name, words in done.failed.items():
        print(f"not sent: {name} ({words})")
    print(f"sent: {_some(done.now)}; sent before: {len(done.before)}", flush=True)
    if done.failed:
        raise UserError("got runs that W&B did not take\n  to do: see above; the same command goes on with the rest")


def _some(names: Any) -> str:
    return f"{len(names)} ({', '.join(dict.fromkeys(names))})" if names else "0"


def _report(options: argparse.Namespace) -> None:
    from synaptune.analysis.evidence import evidence
    from synaptune.report.wandb_report import wandb_report
    from synaptune.study.reader import find_study, study_folder

    record = find_study(options.study, options.storage)
    folder: Path = study_folder(options.study)
    wandb_report(evidence(record), folder, project=options.project, entity=options.entity, publish=not options.offline)
