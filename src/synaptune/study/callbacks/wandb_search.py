"""The search itself as a run of Weights & Biases: its generations, its distribution as images, its
trials, the final report.

One thread of its own speaks to W&B, so that no search waits for it or fails by it. Each row of the
run's history is a line of
`controller/logged.jsonl` too, and the number of the line is its step: what a killed search logged
is not logged again.
"""

from __future__ import annotations

import json
import queue
import re
import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from synaptune.core.network import run_with_timeout
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
    get_study_identity,
    make_run_id,
    open_run,
)

FOLDER = "controller"
JOB_TYPE = "controller"
REPEATED = (  # a file in the folder of a run whose rows a later run of the same id has sent
    "repeated"
)
_RUN_FILE = "run.json"
_HISTORY_FILE = "logged.jsonl"
_NO_TRIALS: Mapping[str, Sequence[Trial]] = {}
_IMAGE_EVERY = 10  # generations between images, once a search is older than that


def open_search_run(
    config: LoggerConfig,
    study: Study,
    *,
    names: Mapping[str, Sequence[str]],
    flat_config: Mapping[str, Any],
    maximize: bool = False,
    earlier: Mapping[str, Sequence[Trial]] = _NO_TRIALS,
) -> list[WandbCallback]:
    """Open the controller's run of a study, new or resumed, as a callback for each phase.

    There are none when W&B is off or not installed.

    Args:
        names: by phase, the searched parameters in the order of a unit point.
        flat_config: flat configuration.
        earlier: by phase, trials that ended before; a kill may have left some of them unlogged.

    Raises:
        as open_run does.
    """
    if config.wandb == "off":
        return []
    place, unique = (
        study.location,
        make_run_id(study.location.name, get_study_identity(study), JOB_TYPE),
    )
    tags = (*config.tags, place.name, JOB_TYPE)
    called = replace(
        config, group=place.name, job_type=JOB_TYPE, run_id=unique, tags=tags, generation=None
    )
    folder = place.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    writer = open_run(called, folder, name=place.name, flat_config=flat_config)
    if writer is None:
        return []
    write_json(folder / _RUN_FILE, asdict(called))
    spokesman = WandbThread(writer, HistoryFile(folder / _HISTORY_FILE, unique), len(names))
    return [
        WandbCallback(
            spokesman,
            phase=phase,
            names=searched,
            maximize=maximize,
            earlier=earlier.get(phase, ()),
        )
        for phase, searched in names.items()
    ]


def read_run_config(folder: Path) -> LoggerConfig | None:
    """What the controller's run of a study's folder is called in W&B; null where there is none."""
    try:
        content = json.loads((folder / FOLDER / _RUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    return LoggerConfig(**content | {"tags": tuple(content["tags"])})


def attach_report(folder: Path, path: Path) -> bool:
    """Add a report (a page, or a folder of files) to the controller's run of a study's folder;
    whether there is such a run.

    It opens the run again: call it when no search of the study runs. What keeps W&B from taking it
    is said, never raised.
    """
    config = read_run_config(folder)
    if config is None:
        return False
    done, attached = run_with_timeout(
        UPLOAD_SECONDS, lambda: _try_wandb(lambda: _attach(config, folder, path))
    )
    return bool(done and attached)


def _attach(config: LoggerConfig, folder: Path, path: Path) -> None:
    import wandb

    writer = open_run(config, folder / FOLDER, name=str(config.group), flat_config={})
    if writer is None:
        return
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", f"report-{config.group}"), type="report")
    if path.is_dir():
        for file in sorted(
            entry for entry in path.rglob("*") if entry.is_file()
        ):  # add_dir would print
            artifact.add_file(str(file), name=file.relative_to(path).as_posix())
    else:
        artifact.add_file(str(path))
    page, logged = (
        path / "report.html" if path.is_dir() else path,
        HistoryFile(folder / FOLDER / _HISTORY_FILE, str(config.run_id)),
    )
    logged.log_again(writer)
    if page.suffix == ".html" and page.exists():
        shown = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
        logged.log(writer, {"report": shown}, {"kind": "report", "name": page.name})
    writer.run.log_artifact(artifact)
    writer.close(0)


class HistoryFile:
    """The rows a run's history has, a line of JSON for each.

    A file of another run is begun anew.
    """

    def __init__(self, path: Path, unique: str) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        entries = [entry for entry in map(_parse_entry, lines) if entry is not None]
        head = {"run": unique}
        self.rows = entries[1:] if entries[:1] == [head] else []
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in [head, *self.rows]))

    def log(self, writer: WandbWriter, values: Mapping[str, Any], row: dict[str, Any]) -> None:
        """Log values as the next row of the history, kept as `row`."""
        # In this order: a kill between the two logs the same row at the same step again, and W&B
        # takes each step once.
        writer.log(len(self.rows), values)
        row = row | {
            "logged": {
                name: value
                for name, value in values.items()
                if isinstance(value, int | float | str)
            }
        }
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def log_again(self, writer: WandbWriter) -> None:
        """Log again, without its pictures, what the run may lack: the end of an online one that was
        killed, or all that was logged
        offline; and offline, where a kill loses what the client had not written, everything."""
        earlier = [
            folder
            for folder in writer.folder.parent.glob("*run-*-*")
            if folder.resolve() != writer.folder.resolve()
        ]
        killed = any(
            (folder / OPEN_MARKER).exists() and not (folder / REPEATED).exists()
            for folder in earlier
        )
        writer.run.summary.update(
            {name: value for row in self.rows for name, value in row["logged"].items()}
        )
        if not writer.online and not killed:
            return
        for step in range(writer.run.starting_step if writer.online else 0, len(self.rows)):
            writer.log(step, self.rows[step]["logged"])
        for folder in earlier:
            (folder / REPEATED).touch()


def _parse_entry(line: str) -> dict[str, Any] | None:
    """A line's content; null for one that a kill cut."""
    try:
        return json.loads(line)
    except ValueError:
        return None


class WandbThread:
    """The thread that speaks to W&B for all phases that are searched at a time.

    It ends the run when the last of them is over.
    """

    def __init__(self, writer: WandbWriter, logged: HistoryFile, phases: int) -> None:
        self.writer, self.logged = writer, logged
        self._open, self._broken = phases, False
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="wandb-controller")
        self._thread.start()
        self.submit(lambda: logged.log_again(writer))

    def submit(self, work: Callable[[], Any]) -> None:
        """Have something done, after all that was put before.

        Nothing more is once something failed.
        """
        self._work.put(work)

    def end_phase(self, exit_code: int) -> None:
        """A phase is over; the last one ends the run, in a bounded time."""
        self._open -= 1
        if self._open:
            return
        self.submit(lambda: self._finish_run(exit_code))
        self._work.put(None)
        self._thread.join(UPLOAD_SECONDS + MARGIN_SECONDS)
        if self.writer.online and (self._broken or self._thread.is_alive()):
            self.writer.abandon_upload()

    def _finish_run(self, exit_code: int) -> None:
        self._broken = not self.writer.finish(exit_code)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._broken = self._broken or not _try_wandb(work)


class WandbCallback(Callback):
    """A callback that logs the search of one phase to the controller's run."""

    def __init__(
        self,
        thread: WandbThread,
        *,
        phase: str,
        names: Sequence[str],
        maximize: bool,
        earlier: Sequence[Trial] = (),
    ) -> None:
        self._thread, self._names, self._maximize = thread, list(names), maximize
        self.phase, self._key = phase, re.sub(r"\s+", "-", phase)
        self._trials, self._generations = (
            self._logged_rows("trial"),
            self._logged_rows("generation"),
        )
        self._known = {row["trial"] for row in self._trials}
        self._failed = sum(row["state"] == "failed" for row in self._trials)
        self._best = min(self._complete_rows(), key=lambda row: row["loss"], default=None)
        self._last: Diagnostics | None = None
        unheard = [trial for trial in earlier if trial.state != "running"]
        thread.submit(lambda: self._define_metrics(unheard))

    def on_end(self, trial: Trial, finished: int) -> None:
        """Log an ended trial and the best so far."""
        self._thread.submit(lambda: self._log_trial(trial, finished))

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Log a generation's distribution and how its trials did.

        Once, however often it is told.
        """
        told = list(members)
        self._thread.submit(lambda: self._log_generation(diagnostics, told))

    def close(self, exit_code: int) -> None:
        """Log the tables; the last phase to close ends the run, in a bounded time."""
        self._thread.submit(self._log_tables)
        self._thread.end_phase(exit_code)

    def _logged_rows(self, kind: str) -> list[dict[str, Any]]:
        """What is logged of this phase: `trial` or `generation`."""
        return [
            row
            for row in self._thread.logged.rows
            if row["kind"] == kind and row["phase"] == self.phase
        ]

    def _log(self, values: Mapping[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        whole = {"phase": self.phase} | row
        self._thread.logged.log(
            self._thread.writer,
            {f"{self._key}/{name}": value for name, value in values.items()},
            whole,
        )
        return whole

    def _complete_rows(self) -> list[dict[str, Any]]:
        """The logged trials with an objective; a pruned one has an estimate as its loss."""
        return [row for row in self._trials if row["objective"] is not None]

    def _define_metrics(self, earlier: Sequence[Trial]) -> None:
        """Say what the axes of the panels are, and log what ended unheard."""
        run, key = self._thread.writer.run, self._key
        run.define_metric(f"{key}/evaluation", hidden=True)
        for name in ("objective", "best", "failed"):
            run.define_metric(f"{key}/{name}", step_metric=f"{key}/evaluation")
        run.define_metric(f"{key}/generation/*", step_metric=f"{key}/generation/number")
        for trial in earlier:
            self._log_trial(trial, len(self._trials) + 1)

    def _log_trial(self, trial: Trial, finished: int) -> None:
        if trial.number in self._known:
            return
        loss = get_loss(trial, self._maximize)
        row: dict[str, Any] = {
            "kind": "trial",
            "trial": trial.number,
            "evaluation": finished,
            "generation": trial.facts.get("generation", 0),
        }
        row |= {"state": trial.state, "objective": trial.objective, "loss": loss}
        row |= {"unit": list(trial.unit), "values": list(trial.values.values())}
        self._failed += trial.state == "failed"
        values = {"evaluation": finished, "failed": self._failed}
        if loss is not None and trial.objective is not None:
            self._best = row if self._best is None or loss < self._best["loss"] else self._best
            values |= {"objective": trial.objective}
        values |= {} if self._best is None else {"best": self._best["objective"]}
        self._trials.append(self._log(values, row))
        self._known.add(trial.number)

    def _log_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        import wandb

        number = diagnostics.generation
        if any(row["number"] == number for row in self._generations):
            return
        self._last = diagnostics
        objectives = [trial.objective for trial in members if trial.objective is not None]
        scalars = {
            "trials": len(members),
            "failed": sum(trial.state == "failed" for trial in members),
        }
        if objectives:
            scalars |= {
                "best": (max if self._maximize else min)(objectives),
                "mean_objective": statistics.fmean(objectives),
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
        self._generations.append(
            self._log({f"generation/{name}": value for name, value in values.items()}, row)
        )

    def _log_tables(self) -> None:
        """The generations and the trials as tables, all trials in parallel coordinates, the last
        distribution, the best.
        """
        import wandb

        values: dict[str, Any] = {}
        if self._generations:
            columns = list(
                dict.fromkeys(name for row in self._generations for name in row["scalars"])
            )
            data: Any = [
                [row["number"], *(row["scalars"].get(column) for column in columns)]
                for row in self._generations
            ]
            values["generations"] = wandb.Table(columns=["generation", *columns], data=data)
        if self._trials:
            heads = ["trial", "evaluation", "generation", "state", "objective"]
            data = [[*(row[head] for head in heads), *row["values"]] for row in self._trials]
            values["trials"] = wandb.Table(
                columns=[*heads, *self._names], data=data, allow_mixed_types=True
            )
        complete = [(row["unit"], row["loss"]) for row in self._complete_rows()]
        if complete and self._names:
            values["parallel"] = wandb.Image(
                draw_parallel_image(complete, self._names),
                caption=f"complete trials: {len(complete)}",
            )
        if self._last is not None:
            values["distribution"] = wandb.Image(draw_distribution_image(self._last, self._names))
        if self._best is not None:
            values |= {"best_trial": self._best["trial"]}
            values |= {
                f"best_{name}": value
                for name, value in zip(self._names, self._best["values"], strict=True)
            }
        if values:
            self._log(values, {"kind": "tables"})


def _try_wandb(work: Callable[[], Any]) -> bool:
    """Do something with W&B; False when it failed, which is said."""
    try:
        work()
    except Exception as error:  # whatever W&B has against it, the search goes on
        reason = (str(error).splitlines() or [""])[0]
        print(
            f"wandb: the controller's run gets no more ({type(error).__name__}: {reason}); the"
            " study has everything",
            file=sys.stderr,
        )
        return False
    return True
