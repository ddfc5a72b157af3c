"""Choose the local W&B runs of a study that have not been uploaded, and give them to `wandb sync`.

W&B's own command uploads. It writes a marker beside each file that it has uploaded, so a repeated
call continues where an interrupted one stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from synaptune.search.trial import Trial, find_best
from synaptune.study.callbacks.wandb_search import FOLDER, REPEATED
from synaptune.study.reader import BASELINE, VALIDATION, StudySnapshot
from synaptune.study.state import parse_holder
from synaptune.training.loggers.wandb_run import (
    OPEN_MARKER,
    find_run_ids,
    list_run_files,
    update_summary,
)

_EMPTY_BYTES = 7  # size of a file that a killed run left with nothing but its header

_STDERR = 2  # file descriptor


class LocalRun(NamedTuple):
    """A W&B run on this disk.

    Attributes:
        name: `controller`, or `trial` and the number of the trial.
        path: file of the W&B client.
    """

    name: str
    path: Path

    @property
    def is_sent(self) -> bool:
        """Whether `wandb sync` has uploaded it."""
        return self.path.with_name(self.path.name + ".synced").exists()


class LocalRuns(NamedTuple):
    """The W&B runs of a study on this disk that were not uploaded while they ran.

    Attributes:
        chosen: runs to upload, the controller's first.
        left_out: runs of trials that are not among the best.
    """

    chosen: list[LocalRun]
    left_out: list[LocalRun]


def find_local_runs(snapshot: StudySnapshot, folder: Path, *, best: int | None = None) -> LocalRuns:
    """Find the local runs of a study.

    Args:
        snapshot: the study.
        folder: folder of the study.
        best: number of best trials of the search whose runs are chosen, in addition to baseline and
            validation; None means every trial.
    """
    holder = parse_holder(snapshot.notes)
    running = holder is not None and holder.is_running()
    chosen = {trial.number for trial in snapshot.trials}
    if best is not None:
        chosen = _choose_trials(snapshot, best)
    runs = LocalRuns([], [])
    runs.chosen.extend(
        LocalRun("controller", path) for path in _find_files(folder / FOLDER, running)
    )
    for trial in snapshot.trials:
        # Of several attempts at one run only the last one is complete.
        attempts = {
            path.parents[2]: LocalRun(f"trial {trial.number}", path)
            for path in _find_files(folder / "trials" / str(trial.number), running)
        }
        (runs.chosen if trial.number in chosen else runs.left_out).extend(attempts.values())
    return runs


def _choose_trials(snapshot: StudySnapshot, best: int) -> set[int]:
    """Return the numbers of the best trials, of baseline and validation, and of their sources."""
    complete = [trial for trial in snapshot.search_trials if trial.objective is not None]
    complete.sort(key=lambda trial: snapshot.get_loss(trial) or 0.0)
    others = [snapshot.get_phase_trials(phase) for phase in (BASELINE, VALIDATION)]
    chosen = {trial.number for trials in (*others, complete[:best]) for trial in trials}
    return chosen | {
        trial.facts["copied_from"]
        for trial in snapshot.trials
        if trial.number in chosen and "copied_from" in trial.facts
    }


def _find_files(folder: Path, running: bool) -> Iterator[Path]:
    """Yield the files of the W&B client below a folder that are not uploaded, sorted by name.

    These are the files of offline runs, and of online runs whose upload did not end. While the
    study is running, a run that has not ended is left out.
    """
    for path in list_run_files(folder):
        is_open = (path.parent / OPEN_MARKER).exists()
        is_partial = is_open or path.parent.name.startswith("offline-run-")
        if (
            is_partial
            and not (running and is_open)
            and not (path.parent / REPEATED).exists()
            and path.stat().st_size > _EMPTY_BYTES
        ):
            yield path


def count_uploaded(snapshot: StudySnapshot, folder: Path) -> tuple[int, int]:
    """Return how many trials of the search have an uploaded run, and how many have any run.

    Args:
        snapshot: the study.
        folder: folder of the study.
    """
    uploaded = known = 0
    for trial in snapshot.search_trials:
        files = list_run_files(folder / "trials" / str(trial.number))
        pending = set(_find_files(folder / "trials" / str(trial.number), running=False))
        known += bool(files)
        uploaded += any(path not in pending or LocalRun("", path).is_sent for path in files)
    return uploaded, known


def mark_best_run(
    snapshot: StudySnapshot, folder: Path, *, project: str, entity: str | None
) -> None:
    """Set `is_best` in the summary of the uploaded runs of the best trial, and clear earlier marks.

    Args:
        snapshot: the study.
        folder: folder of the study.
        project: W&B project.
        entity: W&B entity; None means that of the account.
    """
    records: list[Trial] = []  # each was the best of the trials up to it
    for trial in snapshot.search_trials:
        if (
            trial.objective is not None
            and find_best([*records[-1:], trial], snapshot.maximize) is trial
        ):
            records.append(trial)
    for trial in records:
        for run_id in find_run_ids(folder / "trials" / str(trial.number)):
            path = "/".join(filter(None, (entity, project, run_id)))
            update_summary(path, {"is_best": trial is records[-1]})


def sync_runs(
    runs: Sequence[LocalRun],
    *,
    project: str | None = None,
    entity: str | None = None,
    show: bool = True,
) -> None:
    """Run `wandb sync` on the files of runs.

    What the client prints goes to standard error.

    Args:
        runs: the runs.
        project: W&B project; None means the project of each run.
        entity: W&B entity; None means the entity of each run.
        show: whether to show the messages of the client also if every run is accepted.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online"]
    command += ["--project", project] if project else []
    command += ["--entity", entity] if entity else []
    # Variables of a search, which must not change the mode or the ids of the uploads.
    removed = ("WANDB_MODE", "WANDB_SILENT", "WANDB_RUN_ID")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    # The client would write its logs to ./wandb.
    with tempfile.TemporaryDirectory() as logs, tempfile.TemporaryFile("w+") as messages:
        # Each file is named, since `wandb sync` finds no runs marked online in a folder.
        subprocess.run(
            [*command, *(str(run.path) for run in runs)],
            env=environment | {"WANDB_DIR": logs},
            stdin=subprocess.DEVNULL,
            stdout=_STDERR if show else messages,
            stderr=_STDERR if show else messages,
            check=False,
        )
        messages.seek(0)
        if not all(run.is_sent for run in runs):
            sys.stderr.write(messages.read())
