"""Sends the offline runs of a study to the W&B server: the controller's and the best trials', or every trial's.

The client's own `wandb sync` sends; it marks each file it has sent, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from synaptune.core.errors import user_error
from synaptune.search.trial import find_best
from synaptune.study.callbacks.wandb_search import FOLDER, REPEATED
from synaptune.study.database import keys as schema
from synaptune.study.database.locks import Holder
from synaptune.study.reader import BASELINE, VALIDATION, StudySnapshot
from synaptune.training.loggers.wandb_run import (
    OPEN_MARKER,
    get_base_url,
    has_api_key,
    is_server_reachable,
)

BEST_COUNT = 10
_BATCH_SIZE = 8  # files in one call of the client
_EMPTY_BYTES = 7  # bytes of a file that a kill left with nothing but its head
_CALL_TIMEOUT = 120.0  # for a call, and as much again for each file


@dataclass(frozen=True)
class LocalRun:
    """A run on this disk: its name for people (`controller`, or the trial), and the client's file."""

    name: str
    path: Path

    @property
    def is_sent(self) -> bool:
        """Whether the client has sent it."""
        return self.path.with_name(self.path.name + ".synced").exists()


@dataclass(frozen=True)
class SyncResult:
    """What a call did: names of runs sent by it, of those sent before, and of those that failed with the client's last words."""

    sent: Sequence[str]
    sent_before: Sequence[str]
    failed: Mapping[str, str]


def find_local_runs(
    snapshot: StudySnapshot, folder: Path, *, best: int = BEST_COUNT, everything: bool = False
) -> list[LocalRun]:
    """The runs of a study that were not sent while they ran, those of the controller first.

    best: so many of the search's best trials, beside baseline and validation; everything: all trials.
    """
    running = _is_running(snapshot)
    runs = [
        LocalRun("controller", path)
        for path in sorted(_find_files(folder / FOLDER, running=running))
    ]
    chosen, rest = (
        {
            trial.number
            for phase in (BASELINE, VALIDATION)
            for trial in snapshot.get_phase_trials(phase)
        },
        list(snapshot.search_trials),
    )
    for _ in range(best):
        found = find_best(rest, snapshot.maximize)
        if found is not None:
            chosen.add(found.number)
            rest.remove(found)
    chosen |= {
        trial.facts["copied_from"]
        for trial in snapshot.trials
        if trial.number in chosen and "copied_from" in trial.facts
    }
    for trial in snapshot.trials:
        if everything or trial.number in chosen:
            # Of several attempts at one run the last one is the whole one.
            attempts = {
                path.parents[2]: LocalRun(f"trial {trial.number}", path)
                for path in sorted(
                    _find_files(folder / "trials" / str(trial.number), running=running)
                )
            }
            runs += attempts.values()
    return runs


def _find_files(folder: Path, *, running: bool) -> Iterator[Path]:
    """The client's files below a folder that no server has whole: of offline runs, and of online ones whose upload did not end.

    running: the study is, and so are the runs that have not ended.
    """
    for path in folder.glob("**/wandb/*run-*-*/*.wandb"):
        beside, still_open = path.parent, (path.parent / OPEN_MARKER).exists()
        wanted = still_open if not beside.name.startswith("offline-run-") else True
        if (
            wanted
            and not (running and still_open)
            and not (beside / REPEATED).exists()
            and path.stat().st_size > _EMPTY_BYTES
        ):
            yield path


def _is_running(snapshot: StudySnapshot) -> bool:
    note = snapshot.notes.get(schema.HOLDER)
    return note is not None and not Holder.from_note(note).has_ended()


def sync_runs(
    runs: Sequence[LocalRun],
    *,
    project: str | None = None,
    entity: str | None = None,
    on_message: Callable[[str], None] = print,
) -> SyncResult:
    """Send what is not sent yet; project, entity: where to, null as it was logged.

    Raises UserError without wandb, a key, or a server that answers.
    """
    waiting = [run for run in runs if not run.is_sent]
    before = [run.name for run in runs if run.is_sent]
    if not waiting:
        return SyncResult([], before, {})
    check_online()
    target = [
        *(["--project", project] if project else []),
        *(["--entity", entity] if entity else []),
    ]
    now: list[str] = []
    failed: dict[str, str] = {}
    for first in range(0, len(waiting), _BATCH_SIZE):
        batch = waiting[first : first + _BATCH_SIZE]
        words = _send(batch, target)
        for run in batch:
            if run.is_sent:
                now.append(run.name)
            else:
                failed[run.name] = words
        on_message(
            f"wandb: {len(now)} of {len(waiting)} runs sent"
            + (f", {len(failed)} failed" if failed else "")
        )
        if all(run.name in failed for run in batch):  # the server's fault, then, not one file's
            break
    return SyncResult(now, before, failed)


def check_online() -> None:
    """Raise UserError where nothing can be sent: no wandb, no key, no server."""
    if find_spec("wandb") is None:
        raise user_error(
            got="no wandb", expected="it installed", do="pip install 'synaptune[wandb]'"
        )
    if not has_api_key():
        raise user_error(
            got=f"no API key for {get_base_url()}",
            expected="an account of W&B",
            do="wandb login, or set WANDB_API_KEY",
        )
    if not is_server_reachable():
        raise user_error(
            got=f"no answer from {get_base_url()}",
            expected="a W&B server",
            do="check the network, or WANDB_BASE_URL",
        )


def _send(batch: Sequence[LocalRun], target: Sequence[str]) -> str:
    """Have the client send files; its last words where it said any."""
    # A folder would hide the runs marked online; each file is named.
    command = [
        sys.executable,
        "-m",
        "wandb",
        "sync",
        "--yes",
        "--include-online",
        *target,
        *(str(run.path) for run in batch),
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("WANDB_MODE", "WANDB_SILENT", "WANDB_RUN_ID")
    }
    limit = _CALL_TIMEOUT * (1 + len(batch))
    with (
        tempfile.TemporaryDirectory() as logs
    ):  # the client's own, which it would leave in the folder one stands in
        try:
            done = subprocess.run(
                command,
                env=environment | {"WANDB_DIR": logs},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no end within {limit:.0f} s"
    return (done.stderr.strip().splitlines() or [f"the client ended with {done.returncode}"])[-1]
