"""`synaptune wandb`: upload the offline runs of a study to Weights & Biases; build its report."""

from __future__ import annotations

import argparse
from typing import Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    STUDY_ARGUMENTS,
    ArgumentTable,
    add_subcommand,
    print_json,
)
from synaptune.core.errors import user_error

_MAX_NAMED = 12  # runs named in a message
_COMMON_ARGUMENTS: ArgumentTable = {
    **STUDY_ARGUMENTS,
    "--project": dict(help="W&B project (default: that of the study's runs)"),
    "--entity": dict(help="W&B entity (default: that of the study's runs, or your own)"),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}
_SYNC_ARGUMENTS: ArgumentTable = {
    "--best": dict(
        type=int,
        metavar="K",
        help="upload the best K trials of the search, baseline and validation (default: every "
        "trial; the importance of parameters from winners only is misleading)",
    ),
    **_COMMON_ARGUMENTS,
}
_REPORT_ARGUMENTS: ArgumentTable = {
    "--offline": dict(action="store_true", help="write the specification of the report only"),
    **_COMMON_ARGUMENTS,
}


def add_command(commands: Any) -> None:
    """Add the subcommands."""
    summary = "upload the offline runs of a study to Weights & Biases, or build its report"
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = commands.add_parser("wandb", help=summary, description=description)
    subcommands = parser.add_subparsers(metavar="WHAT", required=True)
    summary = "upload the offline runs of a study: the run of the search, and its trials"
    add_subcommand(subcommands, "sync", summary, _SYNC_ARGUMENTS, _run_sync)
    summary = "build the W&B report of a study; publish it if there is an API key"
    add_subcommand(subcommands, "report", summary, _REPORT_ARGUMENTS, _run_report)


def _run_sync(options: argparse.Namespace) -> None:
    from synaptune.study.callbacks.wandb_search import read_run_config
    from synaptune.study.callbacks.wandb_sync import find_local_runs, mark_best_run, sync_runs
    from synaptune.study.reader import find_study, get_study_folder
    from synaptune.training.config import LoggerConfig
    from synaptune.training.loggers.wandb_run import explain_unreachable

    if options.best is not None and options.best < 0:
        raise user_error(got=f"--best {options.best}", expected="at least 0", do="correct it")
    snapshot, folder = find_study(options.study, options.storage), get_study_folder(options.study)
    runs, left_out = find_local_runs(snapshot, folder, best=options.best)
    if not runs:
        raise user_error(
            got=f"no offline runs of {snapshot.name} in {folder}",
            expected="a study that logged to W&B offline (logger.wandb=auto or offline)",
            do="check the study; runs that were online have been uploaded already",
        )
    pending = [run for run in runs if not run.is_sent]
    if pending:
        if (reason := explain_unreachable()) is not None:
            raise user_error(
                got=reason,
                expected="wandb installed, an API key, and a W&B server that answers",
                do="pip install 'synaptune[wandb]', `wandb login`, or check WANDB_BASE_URL",
            )
        logged = read_run_config(folder) or LoggerConfig()
        project, entity = options.project or logged.project, options.entity or logged.entity
        sync_runs(pending, project=options.project, entity=options.entity, show=not options.quiet)
        mark_best_run(snapshot, folder, project=project, entity=entity)
    sent = [run.name for run in pending if run.is_sent]
    failed = [run.name for run in pending if not run.is_sent]
    waiting = [run.name for run in left_out if not run.is_sent]
    rest = f"; not sent: {len(waiting)} beyond the best {options.best}" if waiting else ""
    print(f"sent: {_count_names(sent)}; sent before: {len(runs) - len(pending)}{rest}", flush=True)
    if options.json:
        content = {"sent": sent, "sent_before": len(runs) - len(pending), "failed": failed}
        print_json(options, {"study": snapshot.name, **content, "left_out": waiting})
    if failed:
        raise user_error(
            got=f"runs that W&B did not accept: {_count_names(failed)}",
            expected="every run uploaded",
            do="see the messages above; the same command continues with the rest",
        )


def _count_names(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _MAX_NAMED} more" if len(unique) > _MAX_NAMED else ""
    return f"{len(names)} ({', '.join(unique[:_MAX_NAMED])}{more})" if names else "0"


def _run_report(options: argparse.Namespace) -> None:
    from synaptune.report.wandb_report import SPECIFICATION_FILE, write_wandb_report
    from synaptune.study.reader import find_study, get_study_folder

    folder = get_study_folder(options.study)
    url = write_wandb_report(
        find_study(options.study, options.storage),
        folder,
        project=options.project,
        entity=options.entity,
        publish=not options.offline,
    )
    if options.json:
        print_json(options, {"specification": folder / SPECIFICATION_FILE, "url": url})
