"""The W&B run of a search, called the controller's run: generations, trials, images and report.

A separate thread calls W&B, so a search never waits for W&B and never fails because of it. Each row
of the history of the run is also a line of `controller/logged.jsonl`, and its step is the number of
the line. A search that continues after a kill therefore logs no row twice.
"""

from __future__ import annotations

import json
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from synaptune.core.moments import compute_mean
from synaptune.core.text import get_first_line
from synaptune.search.callback import Callback
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.trial import Trial, get_loss
from synaptune.study.artifacts import write_json, write_text
from synaptune.study.callbacks.images import draw_distribution_image, draw_parallel_image
from synaptune.study.study import Study
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import (
    MARGIN_SECONDS,
    OPEN_MARKER,
    UPLOAD_SECONDS,
    WandbWriter,
    find_run_ids,
    get_study_identity,
    make_run_id,
    open_run,
    update_summary,
)

FOLDER = "controller"
JOB_TYPE = "controller"
# A file in the folder of a run whose rows a later run with the same id has sent.
REPEATED = "repeated"
_RUN_FILE = "run.json"
HISTORY_FILE = "logged.jsonl"
_IMAGE_EVERY = 10  # generations between two images after the first ten


def open_search_run(
    config: LoggerConfig,
    study: Study,
    *,
    names: Mapping[str, Sequence[str]],
    flat_config: Mapping[str, Any],
    maximize: bool = False,
    earlier: Mapping[str, Sequence[Trial]] | None = None,
) -> list[WandbCallback]:
    """Open the controller's run of a study, new or resumed.

    Args:
        config: configuration of logging.
        study: the study.
        names: parameters of the search space, in its order, by phase.
        flat_config: flat configuration of the study.
        maximize: whether larger objectives are better.
        earlier: trials that ended before this process started, by phase. Those that a killed
            process did not log are logged now.

    Returns:
        A callback for each phase; no callbacks if W&B is off or not installed.

    Raises:
        UserError: see open_run.
    """
    if config.wandb == "off":
        return []
    name, folder = study.location.name, study.location.folder / FOLDER
    run_id = make_run_id(name, get_study_identity(study), JOB_TYPE)
    tags = (*config.tags, name, JOB_TYPE)
    config = replace(
        config,
        group=name,
        job_type=JOB_TYPE,
        run_id=run_id,
        run_name=f"{name}-{JOB_TYPE}",
        tags=tags,
        searched=tuple(dict.fromkeys(chain.from_iterable(names.values()))),
        generation=None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    writer = open_run(config, folder, name=name, flat_config=flat_config)
    if writer is None:
        return []
    write_json(folder / _RUN_FILE, asdict(config))
    thread = WandbThread(writer, HistoryFile(folder / HISTORY_FILE, run_id), len(names))
    return [
        WandbCallback(
            thread,
            phase=phase,
            names=phase_names,
            maximize=maximize,
            earlier=(earlier or {}).get(phase, ()),
            trials_folder=study.location.trials_folder,
        )
        for phase, phase_names in names.items()
    ]


def read_run_config(folder: Path) -> LoggerConfig | None:
    """Return the W&B labels of the controller's run of a study; None if there is no such run.

    Args:
        folder: folder of the study.
    """
    try:
        content = json.loads((folder / FOLDER / _RUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    return LoggerConfig(**content | lists)


def make_key(phase: str) -> str:
    """Return the prefix of the metrics of a phase."""
    return re.sub(r"\s+", "-", phase)


def define_metrics(run: Any, phase: str, maximize: bool) -> None:
    """Define axes and direction of the metrics of a phase, which a run loses when it is resumed."""
    key, summary = make_key(phase), "max" if maximize else "min"
    run.config.update({"direction": f"{summary}imize"}, allow_val_change=True)
    axis = f"{key}/evaluation"
    run.define_metric(axis, hidden=True)
    for name in ("objective", "best"):
        run.define_metric(f"{key}/{name}", step_metric=axis, summary=f"{summary},last")
    run.define_metric(f"{key}/failed", step_metric=axis)
    run.define_metric(f"{key}/generation/*", step_metric=f"{key}/generation/number")


class HistoryFile:
    """A file with the rows in the history of a run, one line of JSON each.

    Attributes:
        rows: the rows by step.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        """Read the file; a file of another run is replaced by an empty one."""
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # The last line has no newline if a kill cut it.
        entries = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        header = {"run": run_id}
        self.rows = entries[1:] if entries[:1] == [header] else []
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in [header, *self.rows]))

    def log(self, writer: WandbWriter, values: Mapping[str, Any], row: dict[str, Any]) -> None:
        """Log the next row of the history.

        Args:
            writer: writer of the run.
            values: values to log.
            row: content of the line, to which the numbers and texts of `values` are added.
        """
        # The file is written last. After a kill between the two writes the row is logged again at
        # the same step, and W&B accepts each step once.
        writer.log(len(self.rows), values)
        plain = {name: x for name, x in values.items() if isinstance(x, int | float | str)}
        self.rows.append(row | {"logged": plain})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")

    def log_again(self, writer: WandbWriter) -> None:
        """Log the rows again that the run can lack, without their images.

        These are the rows after the last uploaded step of an online run. An offline run gets all
        rows if an earlier process was killed, since the W&B client then loses rows.
        """
        earlier = [
            folder
            for folder in writer.folder.parent.glob("*run-*-*")
            if folder.resolve() != writer.folder.resolve()
        ]
        writer.run.summary.update(
            {name: value for row in self.rows for name, value in row["logged"].items()}
        )
        if writer.online or any(
            (folder / OPEN_MARKER).exists() and not (folder / REPEATED).exists()
            for folder in earlier
        ):
            for step in range(writer.run.starting_step if writer.online else 0, len(self.rows)):
                writer.log(step, self.rows[step]["logged"])
            for folder in earlier:
                (folder / REPEATED).touch()


class WandbThread:
    """The thread that calls W&B for all concurrent phases, and ends the run after the last one."""

    def __init__(self, writer: WandbWriter, history: HistoryFile, phases: int) -> None:
        """Start the thread.

        Args:
            writer: writer of the run.
            history: history of the run.
            phases: number of phases.
        """
        self.writer, self.history = writer, history
        self._open_phases, self._has_failed = phases, False
        self._queue: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="wandb-controller")
        self._thread.start()
        self.submit(lambda: history.log_again(writer))

    def submit(self, call: Callable[[], Any]) -> None:
        """Queue a call. After a call that failed, no further call is made."""
        self._queue.put(call)

    def end_phase(self, exit_code: int) -> None:
        """End a phase; after the last one, end the run within a time limit."""
        self._open_phases -= 1
        if self._open_phases:
            return
        self.submit(lambda: self._finish_run(exit_code))
        self._queue.put(None)
        self._thread.join(UPLOAD_SECONDS + MARGIN_SECONDS)
        if self.writer.online and (self._has_failed or self._thread.is_alive()):
            self.writer.abandon_upload()

    def _finish_run(self, exit_code: int) -> None:
        self._has_failed = not self.writer.finish(exit_code)

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            self._has_failed = self._has_failed or not _try_wandb(call)


class WandbCallback(Callback):
    """A callback that logs the search of one phase to the controller's run."""

    def __init__(
        self,
        thread: WandbThread,
        *,
        phase: str,
        names: Sequence[str],
        trials_folder: Path,
        maximize: bool,
        earlier: Sequence[Trial] = (),
    ) -> None:
        self._thread, self._names, self._maximize = thread, list(names), maximize
        self._trials_folder = trials_folder
        self.phase, self._key = phase, make_key(phase)
        rows = [row for row in thread.history.rows if row.get("phase") == phase]
        self._trials = {row["trial"]: row for row in rows if row["kind"] == "trial"}
        self._generations = {row["number"]: row for row in rows if row["kind"] == "generation"}
        self._distribution: Diagnostics | None = None
        ended = [trial for trial in earlier if trial.state != "running"]
        thread.submit(lambda: self._open(phase, ended))

    def on_end(self, trial: Trial, finished: int) -> None:
        """Log an ended trial and the best objective."""
        self._thread.submit(lambda: self._log_trial(trial, finished))

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Log the search distribution and the results of a generation, unless they are logged."""
        trials = list(members)
        self._thread.submit(lambda: self._log_generation(diagnostics, trials))

    def close(self, exit_code: int) -> None:
        """Log the tables; the last phase that is closed ends the run within a time limit."""
        self._thread.submit(self._log_tables)
        self._thread.end_phase(exit_code)

    def _log(self, values: Mapping[str, Any], row: dict[str, Any]) -> None:
        named = {f"{self._key}/{name}": value for name, value in values.items()}
        self._thread.history.log(self._thread.writer, named, {"phase": self.phase} | row)

    def _get_complete_rows(self) -> list[dict[str, Any]]:
        """Return the rows of complete trials; the loss of a pruned trial is an estimate."""
        return [row for row in self._trials.values() if row["objective"] is not None]

    def _get_best_row(self) -> dict[str, Any] | None:
        return min(self._get_complete_rows(), key=lambda row: row["loss"], default=None)

    def _open(self, phase: str, earlier: Sequence[Trial]) -> None:
        """Define the metrics, and log the earlier trials that are not logged."""
        define_metrics(self._thread.writer.run, phase, self._maximize)
        for trial in earlier:
            self._log_trial(trial, len(self._trials) + 1)

    def _log_trial(self, trial: Trial, finished: int) -> None:
        if trial.number in self._trials:
            return
        previous = self._get_best_row()
        row = self._trials[trial.number] = {
            "kind": "trial",
            "trial": trial.number,
            "evaluation": finished,
            "generation": trial.facts.get("generation", 0),
            "state": trial.state,
            "objective": trial.objective,
            "loss": get_loss(trial, self._maximize),
            "unit": list(trial.unit),
            "values": list(trial.values.values()),
        }
        best = self._get_best_row()
        values = {
            "evaluation": finished,
            "failed": sum(entry["state"] == "failed" for entry in self._trials.values()),
            "objective": trial.objective,
            "best": None if best is None else best["objective"],
        }
        self._log({name: value for name, value in values.items() if value is not None}, row)
        if best is row:
            self._mark_runs(previous, is_best=False)
            self._mark_runs(row, is_best=True)

    def _mark_runs(self, row: dict[str, Any] | None, *, is_best: bool) -> None:
        """Set `is_best` in the summary of the uploaded runs of a trial."""
        writer = self._thread.writer
        if row is None or not writer.online:
            return
        folder = self._trials_folder / str(row["trial"])
        for run_id in find_run_ids(folder, online=True):
            path = f"{writer.run.entity}/{writer.run.project}/{run_id}"
            update_summary(path, {"is_best": is_best})

    def _log_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        import wandb

        number = diagnostics.generation
        if number in self._generations:
            return
        self._distribution = diagnostics
        objectives = [trial.objective for trial in members if trial.objective is not None]
        scalars = {
            "trials": len(members),
            "failed": sum(trial.state == "failed" for trial in members),
        }
        if objectives:
            scalars |= {
                "best": (max if self._maximize else min)(objectives),
                "mean_objective": compute_mean(objectives),
            }
        scalars |= {
            name: value for name, value in diagnostics.to_scalars().items() if name != "generation"
        }
        values: dict[str, Any] = {"number": number} | scalars
        if number < _IMAGE_EVERY or number % _IMAGE_EVERY == 0:
            values["distribution"] = wandb.Image(
                draw_distribution_image(diagnostics, self._names), caption=f"generation {number}"
            )
        row = {"kind": "generation", "number": number, "scalars": scalars}
        self._generations[number] = row
        self._log({f"generation/{name}": value for name, value in values.items()}, row)

    def _log_tables(self) -> None:
        """Log tables of generations and trials, parallel coordinates, the last search distribution
        and the best trial."""
        import wandb

        values: dict[str, Any] = {}
        generations, trials = self._generations.values(), self._trials.values()
        if generations:
            columns = list(dict.fromkeys(name for row in generations for name in row["scalars"]))
            data: Any = [
                [row["number"], *(row["scalars"].get(column) for column in columns)]
                for row in generations
            ]
            values["generations"] = wandb.Table(columns=["generation", *columns], data=data)
        if trials:
            keys = ["trial", "evaluation", "generation", "state", "objective"]
            data = [[*(row[key] for key in keys), *row["values"]] for row in trials]
            values["trials"] = wandb.Table(
                columns=[*keys, *self._names], data=data, allow_mixed_types=True
            )
        points = [(row["unit"], row["loss"]) for row in self._get_complete_rows()]
        if points and self._names:
            values["parallel"] = wandb.Image(
                draw_parallel_image(points, self._names),
                caption=f"complete trials: {len(points)}",
            )
        if self._distribution is not None:
            image = draw_distribution_image(self._distribution, self._names)
            values["distribution"] = wandb.Image(image)
        if (best := self._get_best_row()) is not None:
            names = ("best_trial", *(f"best_{name}" for name in self._names))
            values |= dict(zip(names, (best["trial"], *best["values"]), strict=True))
        if values:
            self._log(values, {"kind": "tables"})


def _try_wandb(call: Callable[[], Any]) -> bool:
    """Make a call to W&B; return whether it succeeded, and print the reason if it did not."""
    try:
        call()
    except Exception as error:  # the search continues after any error of W&B
        reason = f"{type(error).__name__}: {get_first_line(error)}"
        print(
            f"wandb: nothing more is logged to the run of the search ({reason}); "
            "the study stores every trial",
            file=sys.stderr,
        )
        return False
    return True
