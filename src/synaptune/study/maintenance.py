"""Removing, renaming and archiving a study, and freeing the disk space that it does not need.

What changes files or names holds the locks of the study, so that a running study is refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.core.errors import user_error
from synaptune.core.files import as_disk_errors, measure_folder
from synaptune.study.callbacks.wandb_sync import find_local_runs
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import (
    add_driver,
    close_storage,
    get_sqlite_path,
    make_sqlite_url,
    open_storage,
)
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.lease import StudyLease, read_holder
from synaptune.study.database.rows import rename_study_row
from synaptune.study.location import StudyConfig, StudyLocation, resolve_location
from synaptune.study.reader import STUDIES_ROOT, StudySnapshot
from synaptune.study.retention import choose_kept_trials, list_checkpoints
from synaptune.training.config import CHECKPOINT_FILE

# What the commands write into the folder of a study.
_KNOWN_FILES = re.compile(
    r"study\.db.*|\..*\.lock(\.\w+)?|\.lock(\.\w+)?|best\.yaml|optimization_results\.yaml|.*-refined\.(yaml|md)"
    r"|(summary|gates|ablation|transfer|wandb-report.*)\.json|multirun\.yaml|optimizer.*\.pkl"
    r"|generations.*\.jsonl|trials|portraits|controller|report|submitit|\d+"
)


class Removal(NamedTuple):
    """A file or a folder that can be removed.

    Attributes:
        path: the file or folder.
        size: its size [byte].
        reason: why nothing needs it.
    """

    path: Path
    size: int
    reason: str


@contextmanager
def hold_study(location: StudyLocation) -> Iterator[None]:
    """Hold the locks of a study inside the block.

    Raises:
        UserError: another process runs the study.
    """
    holder = read_holder(location.url, location.name)
    if holder is not None and holder.is_remote and holder.is_running():
        raise user_error(
            got=f"study {location.name}, which another machine is running ({holder.describe()})",
            expected="a study that is not running",
            do="stop it, and wait some minutes if its process was killed",
        )
    is_new = not location.folder.exists()
    lease = StudyLease(location.folder, add_driver(location.url), location.name)
    with as_disk_errors(location.folder):
        location.folder.mkdir(parents=True, exist_ok=True)
        try:
            lease.acquire()
            yield
        finally:
            lease.close()
            if is_new:
                shutil.rmtree(location.folder, ignore_errors=True)


@contextmanager
def _open_database(url: str) -> Iterator[Any]:
    with as_user_errors(add_driver(url)):
        storage = open_storage(url, "join")
        try:
            yield storage
        finally:
            close_storage(storage)


def check_removable(location: StudyLocation) -> None:
    """Refuse to remove a folder that holds files of other programs, except the usual folder.

    Raises:
        UserError: names these files.
    """
    folder = location.folder
    if not folder.is_dir() or folder.parent.parts[-2:] == STUDIES_ROOT.parts:
        return
    foreign = sorted(
        path.name for path in folder.iterdir() if not _KNOWN_FILES.fullmatch(path.name)
    )
    if foreign:
        raise user_error(
            got=f"{folder}, which also holds {', '.join(foreign[:5])}"
            + (", ..." if len(foreign) > 5 else ""),
            expected="a folder that holds a study alone",
            do="move these files, or remove the study by hand",
        )


def remove_study(location: StudyLocation) -> int:
    """Remove a study from its database, and its folder; return the freed bytes.

    Raises:
        UserError: the study is running, its folder holds other files, or cannot be written.
    """
    check_removable(location)
    with hold_study(location):
        with _open_database(location.url) as storage:
            storage.delete_study(storage.get_study_id_from_name(location.name))
            is_last = not storage.get_all_studies()
        path = get_sqlite_path(location.url)
        size = measure_folder(location.folder)
        if path is None or is_last or path.parent.resolve() != location.folder.resolve():
            shutil.rmtree(location.folder)
    return size


def rename_study(location: StudyLocation, name: str) -> StudyLocation:
    """Rename a study, and its folder if that has the name of the study; return the new location.

    Raises:
        UserError: the study is running, the name is not valid, or there is such a study or folder.
    """
    resolve_location(StudyConfig(name=name), name)  # refuses a name that no folder can have
    folder = location.folder
    new = folder.with_name(name) if folder.name == location.name else folder
    path, url = get_sqlite_path(location.url), location.url
    if path is not None and path.parent.resolve() == folder.resolve():
        url = make_sqlite_url(new / path.name)
    if new != folder and new.exists():
        raise user_error(
            got=f"{name}: the folder {new} exists", expected="a new name", do="choose another"
        )
    with hold_study(location), as_disk_errors(new):
        with _open_database(location.url) as storage:
            known = {study.study_name for study in storage.get_all_studies()}
            if name in known:
                raise user_error(
                    got=f"{name}, a study of the same database",
                    expected="a new name",
                    do="choose another",
                )
            rename_study_row(storage, storage.get_study_id_from_name(location.name), name)
        if new != folder:
            folder.rename(new)
    return replace(location, name=name, folder=new, url=url)


def archive_study(location: StudyLocation, *, archived: bool) -> None:
    """Mark a study as archived, or take the mark away; a running study can be archived as well."""
    with _open_database(location.url) as storage:
        key = storage.get_study_id_from_name(location.name)
        storage.set_study_user_attr(key, schema.ARCHIVED, archived)


def find_garbage(
    snapshot: StudySnapshot, location: StudyLocation, *, keep: int, runs: bool = False
) -> list[Removal]:
    """Return what no report, no continued search and no best point needs.

    These are the checkpoints of ended trials except those of the best `keep` of each phase, the
    checkpoints of the inspection runs, and run folders without a trial. Reports read the database.
    The files of another application are left alone.

    Args:
        snapshot: the study.
        location: location of the study.
        keep: number of best trials of each phase whose run folders stay whole.
        runs: whether to include the run folders of all other ended trials, unless they have W&B
            runs that are not uploaded.
    """
    if "data.source" not in snapshot.configuration:
        return []
    folder = location.trials_folder
    kept = choose_kept_trials(snapshot.trials, keep, maximize=snapshot.maximize)
    ended = {trial.number for trial in snapshot.trials if trial.state != "running"} - kept
    garbage = [
        Removal(path, measure_folder(path), "a run folder without a trial")
        for path in sorted(folder.glob("[0-9]*"))
        if path.is_dir() and path.name.isdigit() and int(path.name) >= len(snapshot.trials)
    ]
    unsent: set[Path] = set()
    if runs:
        local = find_local_runs(snapshot, location.folder).chosen
        unsent = {run.path for run in local if not run.is_sent}
    for number in sorted(ended):
        run = folder / str(number)
        if runs and run.is_dir() and not any(path.is_relative_to(run) for path in unsent):
            garbage.append(Removal(run, measure_folder(run), "a run folder of an ended trial"))
            continue
        garbage += [
            Removal(path, path.stat().st_size, "a checkpoint of an ended trial")
            for path in list_checkpoints(folder, number)
        ]
    garbage += [
        Removal(path, path.stat().st_size, "a checkpoint of an inspection")
        for path in location.folder.glob(f"portraits/*/{CHECKPOINT_FILE}")
    ]
    return garbage


def remove_garbage(garbage: list[Removal]) -> None:
    """Remove what `find_garbage` returned."""
    for path, _, _ in garbage:
        with as_disk_errors(path, "check the rights of the folder"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
