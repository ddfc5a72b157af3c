"""`synaptune list|show|rm|rename|archive|gc`: the studies on this disk or in a database."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    STORAGE_ARGUMENT,
    STUDY_ARGUMENTS,
    YES_ARGUMENT,
    ArgumentTable,
    add_subcommand,
    check_values,
    print_json,
)
from synaptune.core.errors import UserError, user_error

if TYPE_CHECKING:
    from synaptune.report.dashboard.study_status import StudyStatus
    from synaptune.search.trial import Trial
    from synaptune.study.location import StudyLocation
    from synaptune.study.reader import StudySnapshot

_STUDIES: ArgumentTable = {
    "studies": dict(STUDY_ARGUMENTS["study"], nargs="+"),
    **STORAGE_ARGUMENT,
}
_LIST_ARGUMENTS: ArgumentTable = {
    "folder": dict(
        nargs="?", metavar="FOLDER", help="folder of studies (default: outputs/studies)"
    ),
    "--storage": dict(metavar="URL", help="database of studies, instead of a folder"),
    "--all": dict(action="store_true", help="list archived studies as well"),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}
_RENAME_ARGUMENTS: ArgumentTable = {
    "study": STUDY_ARGUMENTS["study"],
    "name": dict(metavar="NAME", help="new name of the study and of its folder"),
    **STORAGE_ARGUMENT,
    **QUIET_ARGUMENT,
}
_ARCHIVE_ARGUMENTS: ArgumentTable = {
    **_STUDIES,
    "--undo": dict(action="store_true", help="list the studies again"),
    **QUIET_ARGUMENT,
}
_GC_ARGUMENTS: ArgumentTable = {
    "studies": dict(
        STUDY_ARGUMENTS["study"],
        nargs="*",
        help="study, as of `synaptune show` (default: all below outputs/studies)",
    ),
    **STORAGE_ARGUMENT,
    "--keep": dict(
        type=int,
        default=3,
        metavar="N",
        help="best trials of each phase that are left whole (default %(default)s)",
    ),
    "--runs": dict(
        action="store_true",
        help="remove the whole run folders of the other ended trials: logs, metrics.csv and"
        " result.json; not those with W&B runs that are not uploaded",
    ),
    "--dry-run": dict(action="store_true", help="print what would be removed, and its size"),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}


def add_commands(commands: Any) -> None:
    """Add the subcommands."""
    summary = "list the studies with state, trials, best objective, size and age"
    add_subcommand(commands, "list", summary, _LIST_ARGUMENTS, _run_list)
    summary = "show a study: state, trials by phase, best point, and what it takes on the disk"
    arguments = {**STUDY_ARGUMENTS, **JSON_ARGUMENT, **QUIET_ARGUMENT}
    add_subcommand(commands, "show", summary, arguments, _run_show)
    summary = "remove studies with their folders; asks first, and refuses a running study"
    arguments = {**_STUDIES, **YES_ARGUMENT, **QUIET_ARGUMENT}
    add_subcommand(commands, "rm", summary, arguments, _run_rm)
    summary = "rename a study and its folder; study.name=NAME then continues it"
    add_subcommand(commands, "rename", summary, _RENAME_ARGUMENTS, _run_rename)
    summary = "hide studies from `synaptune list`; nothing else changes"
    add_subcommand(commands, "archive", summary, _ARCHIVE_ARGUMENTS, _run_archive)
    summary = "remove checkpoints and run folders that no report, search or best point needs"
    add_subcommand(commands, "gc", summary, _GC_ARGUMENTS, _run_gc)


def find_location(study: str, storage: str | None) -> tuple[StudyLocation, StudyStatus]:
    """Return the location of a study, and its status.

    Args:
        study: name below outputs/studies or folder; with `storage` the name in that database.
        storage: URL of the database; None means the SQLite file in the folder.

    Raises:
        UserError: there is no such study, or its database cannot be read.
    """
    from synaptune.core.files import make_absolute
    from synaptune.report.dashboard.study_status import read_statuses
    from synaptune.study.database.connection import make_sqlite_url, make_url_absolute
    from synaptune.study.location import StudyLocation
    from synaptune.study.reader import STUDIES_ROOT, get_study_folder

    if storage is None:
        folder = make_absolute(get_study_folder(study))
        url, name = make_sqlite_url(folder / "study.db"), folder.resolve().name
        statuses = read_statuses(url)
        matches = [status for status in statuses if status.name == name] or statuses
    else:
        folder, url, name = make_absolute(STUDIES_ROOT / study), make_url_absolute(storage), study
        matches = read_statuses(url, study)
    if len(matches) != 1:
        raise user_error(
            got=f"{study}, where the database has {len(matches) or 'no'} such studies",
            expected="the name or the folder of one study",
            do="`synaptune list` shows them; --storage URL with a name chooses among several",
        )
    runs = None if (folder / "trials").is_dir() else folder
    return StudyLocation(matches[0].name, folder, url, "must", runs), matches[0]


def _run_list(options: argparse.Namespace) -> None:
    from synaptune.core.console import make_console
    from synaptune.core.files import measure_folder
    from synaptune.core.secrets import mask_passwords
    from synaptune.core.text import format_bytes
    from synaptune.report.console import print_table
    from synaptune.report.dashboard.pages import describe_state, format_age
    from synaptune.report.dashboard.study_index import StudyIndex
    from synaptune.report.table_model import Column, Table
    from synaptune.study.reader import STUDIES_ROOT

    root = Path(options.folder) if options.folder else STUDIES_ROOT
    if options.folder and not root.is_dir():
        raise user_error(got=f"no folder {root}", expected="a folder of studies", do="correct it")
    index = (
        StudyIndex(root) if options.storage is None else StudyIndex(None, urls=[options.storage])
    )
    listed, faults = index.list_studies()
    if faults and options.storage is not None:
        raise UserError(faults[0].reason)
    for fault in faults:
        print(f"cannot be read: {fault.url}\n{fault.reason}", file=sys.stderr)
    shown = [pair for pair in listed if options.all or not pair[1].is_archived]
    # Studies without an event come last, the others by their age.
    shown.sort(key=lambda pair: -(pair[1].latest_event.timestamp() if pair[1].latest_event else 0))
    records = [
        {
            "study": status.name,
            "state": "archived" if status.is_archived else describe_state(status),
            "trials": status.ended_count,
            "best": status.search_phase.best if status.search_phase else None,
            "size_bytes": None if entry.folder is None else measure_folder(entry.folder),
            "latest_event": status.latest_event,
            "folder": entry.folder,
        }
        for entry, status in shown
    ]
    if options.json:
        print_json(options, records)
        return
    columns = (
        *(Column("study"), Column("state")),
        *(Column("trials", "count"), Column("best", "loss"), Column("size", "value")),
        Column("last event", "value"),
    )
    rows = [
        (
            *(record[key] for key in ("study", "state", "trials", "best")),
            None if record["size_bytes"] is None else format_bytes(record["size_bytes"]),
            format_age(record["latest_event"]) or None,
        )
        for record in records
    ]
    hidden = len(listed) - len(shown)
    note = f"{hidden} archived (--all lists them)" if hidden else ""
    place = root if options.storage is None else index.list_databases()[0][0]
    if not rows:
        print(f"no studies in {mask_passwords(str(place))}" + (f"; {note}" if note else ""))
        return
    print_table(Table("studies", "", columns, rows, note), make_console())


def _run_show(options: argparse.Namespace) -> None:
    from synaptune.core.console import make_console
    from synaptune.core.files import measure_folder
    from synaptune.core.text import format_bytes, format_duration
    from synaptune.report.console import print_table
    from synaptune.report.dashboard.pages import describe_state, format_age
    from synaptune.report.table_model import Column, Table, show_value
    from synaptune.search.trial import find_best
    from synaptune.study.database import keys as schema
    from synaptune.study.database.connection import redact_url
    from synaptune.study.reader import read_study
    from synaptune.training.config import CHECKPOINT_FILE

    location, status = find_location(options.study, options.storage)
    snapshot = read_study(location.url, location.name)
    checkpoints = sum(path.stat().st_size for path in location.folder.rglob(CHECKPOINT_FILE))
    best = find_best(snapshot.search_trials, snapshot.maximize)
    recommended = _find_recommended(snapshot) or best
    seconds = sum(float(trial.facts.get(schema.SECONDS, 0.0)) for trial in snapshot.trials)
    content = {
        "study": location.name,
        "state": describe_state(status) + (", archived" if status.is_archived else ""),
        "folder": location.shown_folder,
        "database": redact_url(location.url),
        "optimizer": status.optimizer,
        "budget": status.budget,
        "maximize": snapshot.maximize,
        "started": status.started_at,
        "last_event": status.latest_event,
        "seconds": seconds,
        "size_bytes": measure_folder(location.folder),
        "checkpoint_bytes": checkpoints,
        "version": snapshot.notes.get(schema.WRITER),
        "phases": [
            {"phase": phase.name, "trials": phase.trial_count, "ended": phase.ended_count}
            | {"best": phase.best}
            for phase in status.phases
        ],
    }
    for key, trial in (("best", best), ("recommended", recommended)):
        content[key] = trial and {
            "trial": trial.number,
            "objective": trial.objective,
            "values": trial.values,
        }
    if options.json:
        print_json(options, content)
        return
    sizes = format_bytes(content["size_bytes"]), format_bytes(checkpoints)
    facts = [
        *((key, content[key]) for key in ("state", "folder", "database", "optimizer", "budget")),
        ("last event", format_age(status.latest_event) or None),
        ("time of the runs", format_duration(seconds)),
        ("size", f"{sizes[0]}, {sizes[1]} of it checkpoints"),
        ("begun by version", content["version"]),
    ]
    facts = [fact for fact in facts if fact[1] is not None]
    console = make_console()
    print_table(Table("facts", "", (Column("study"), Column(location.name)), facts), console)
    columns = (Column("phase"), Column("trials", "count"), Column("ended", "count"))
    rows = [tuple(phase.values()) for phase in content["phases"]]
    print_table(Table("phases", "", (*columns, Column("best", "loss")), rows), console)
    if best is not None and recommended is not None:
        title = f"Best of the search: {best.objective:.6g} in trial {best.number}"
        if recommended is not best:
            title += (
                f"; recommended, as in best.yaml: trial {recommended.number} "
                f"({recommended.objective:.6g})"
            )
        values = [(name, show_value(value)) for name, value in recommended.values.items()]
        columns = (Column("parameter", "name"), Column("value", "value"))
        print_table(Table("best", title, columns, values), console)


def _find_recommended(snapshot: StudySnapshot) -> Trial | None:
    """Find the trial that a protocol recommends (search.recommend=posterior); None without one."""
    from synaptune.study.reader import RECOMMENDED, get_recommendation

    trials = [trial for trial in snapshot.whole_runs if trial.objective is not None]
    choice = get_recommendation(snapshot.notes.get(RECOMMENDED), trials) if trials else None
    if choice is None:
        return None
    return next(trial for trial in trials if trial.number == choice["trial"])


def _run_rm(options: argparse.Namespace) -> None:
    from synaptune.core.files import measure_folder
    from synaptune.core.text import format_bytes
    from synaptune.study.maintenance import check_removable, hold_study, remove_study

    chosen = [find_location(study, options.storage) for study in options.studies]
    for location, _ in chosen:  # every refusal comes before the question
        check_removable(location)
        with hold_study(location):
            pass
    for location, status in chosen:
        size = format_bytes(measure_folder(location.folder))
        text = f"study {location.name}: {status.trial_count} trials, {size} in"
        if not options.yes and not _confirm(f"remove {text} {location.shown_folder}?"):
            print(f"kept {location.name}")
            continue
        remove_study(location)
        print(f"removed {text} {location.shown_folder}")


def _confirm(question: str) -> bool:
    """Ask a question on the terminal.

    Raises:
        UserError: nobody can answer.
    """
    from synaptune.core.terminal import is_terminal

    if not is_terminal(sys.stdin):
        raise user_error(
            got=f"no terminal to answer the question: {question}",
            expected="yes or no",
            do="add --yes",
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _run_rename(options: argparse.Namespace) -> None:
    from synaptune.study.maintenance import rename_study

    location, _ = find_location(options.study, options.storage)
    new = rename_study(location, options.name)
    print(f"renamed study {location.name} to {new.name} ({new.shown_folder})")


def _run_archive(options: argparse.Namespace) -> None:
    from synaptune.study.maintenance import archive_study

    for study in options.studies:
        location, _ = find_location(study, options.storage)
        archive_study(location, archived=not options.undo)
        print(f"{'listed again' if options.undo else 'archived'}: {location.name}")


def _run_gc(options: argparse.Namespace) -> None:
    from synaptune.core.text import format_bytes, show_path
    from synaptune.report.dashboard.study_index import StudyIndex
    from synaptune.study.maintenance import find_garbage, hold_study, remove_garbage
    from synaptune.study.reader import STUDIES_ROOT, read_study

    check_values("--keep", [(options.keep >= 0, f"--keep {options.keep}: expected at least 0")])
    studies = options.studies
    if not studies:
        is_folder = options.storage is None
        index = StudyIndex(STUDIES_ROOT) if is_folder else StudyIndex(None, urls=[options.storage])
        entries = [entry for entry, _ in index.list_studies()[0]]
        studies = [str(entry.folder) if is_folder else entry.name for entry in entries]
    records: list[dict[str, Any]] = []
    for study in studies:
        location, _ = find_location(study, options.storage)
        try:
            with hold_study(location):
                snapshot = read_study(location.url, location.name)
                garbage = find_garbage(snapshot, location, keep=options.keep, runs=options.runs)
                if not options.dry_run:
                    remove_garbage(garbage)
        except UserError as error:
            if options.studies:
                raise
            print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        for path, size, reason in garbage:
            print(f"{show_path(path)}: {format_bytes(size)}, {reason}")
            records.append({"study": location.name, "path": path, "bytes": size, "reason": reason})
    total = sum(record["bytes"] for record in records)
    done = "would free" if options.dry_run else "freed"
    print(f"{done} {format_bytes(total)} in {len(records)} files and folders")
    if options.json:
        print_json(options, {"dry_run": options.dry_run, "bytes": total, "removed": records})
