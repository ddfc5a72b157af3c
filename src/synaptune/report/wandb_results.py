"""Upload of the results of a study to its run in W&B: report, best.yaml, checkpoint and figures.

Report, best.yaml and checkpoint are artifacts. W&B stores a new version of an artifact when its
content has changed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.results import Evidence
from synaptune.core.network import run_with_timeout
from synaptune.core.text import get_first_line
from synaptune.report.figures import draw_png
from synaptune.study.callbacks.wandb_search import (
    FOLDER,
    HISTORY_FILE,
    HistoryFile,
    define_metrics,
    read_run_config,
)
from synaptune.study.reader import StudySnapshot
from synaptune.study.retention import list_checkpoints
from synaptune.training.config import CHECKPOINT_FILE, LoggerConfig
from synaptune.training.loggers.wandb_run import UPLOAD_SECONDS, open_run

REPORT_FILE, BEST_FILE = "report.html", "best.yaml"
FIGURE_PREFIX = "figure/"  # of the images in the history of the run
FIGURES = ("seeds", "convergence")  # the validated gain, and the course of the search


def attach_results(
    snapshot: StudySnapshot,
    folder: Path,
    report: Path | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
) -> bool:
    """Add the results of a study to its run in W&B, the controller's run.

    The call opens the run again, so no search of the study may be running. An error of W&B is
    printed.

    Args:
        snapshot: the study.
        folder: folder of the study.
        report: folder of the report; None adds no report.
        changes: changes of the labels of the run, by the names of LoggerConfig.

    Returns:
        Whether the results were added; False for a study without a run in W&B.
    """
    config = read_run_config(folder)
    if config is None:
        return False

    config = replace(config, **changes or {})

    def attach() -> bool:
        try:
            _attach(config, gather_evidence(snapshot, deep=False), folder, report)
        except Exception as error:  # the results are on this disk
            reason = f"{type(error).__name__}: {get_first_line(error)}"
            print(
                f"wandb: the results of study {snapshot.name} are not added ({reason})",
                file=sys.stderr,
            )
            return False
        return True

    return run_with_timeout(UPLOAD_SECONDS, attach) == (True, True)


def _attach(config: LoggerConfig, evidence: Evidence, folder: Path, report: Path | None) -> None:
    import wandb

    writer = open_run(config, folder / FOLDER, name=evidence.name, flat_config={})
    if writer is None:
        return
    history = HistoryFile(folder / FOLDER / HISTORY_FILE, str(config.run_id))
    history.log_again(writer)
    for phase in dict.fromkeys(row["phase"] for row in history.rows if "phase" in row):
        define_metrics(writer.run, phase, evidence.maximize)
    values: dict[str, Any] = {
        f"{FIGURE_PREFIX}{key}": wandb.Image(image) for key, image in _draw_images(evidence)
    }
    if report is not None and (page := report / REPORT_FILE).exists():
        values["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    if values:
        history.log(writer, values, {"kind": "results"})
    for artifact in _make_artifacts(evidence, folder, report):
        writer.run.log_artifact(artifact)
    writer.close(0)


def _draw_images(evidence: Evidence) -> Iterator[tuple[str, Any]]:
    import io

    import numpy as np
    from matplotlib.image import imread

    from synaptune.core.errors import UserError

    for key in FIGURES:
        try:
            image = imread(io.BytesIO(draw_png(key, evidence)))
        except UserError:
            continue  # the study has no data for it
        yield key, (255.0 * image).astype(np.uint8)


def _make_artifacts(evidence: Evidence, folder: Path, report: Path | None) -> Iterator[Any]:
    """Make the artifacts of the files that exist."""
    import wandb

    best = evidence.best
    facts = {"study": evidence.name}
    facts |= {} if best is None else {"trial": best.number, "objective": best.objective}

    def make(kind: str, name: str) -> Any:
        text = re.sub(r"[^\w.-]", "_", f"{evidence.name[:64]}-{name}")
        return wandb.Artifact(text, type=kind, metadata=facts)

    if (folder / BEST_FILE).exists():
        artifact = make("parameters", "best")
        artifact.add_file(str(folder / BEST_FILE), name=BEST_FILE)
        yield artifact
    if best is not None:
        trial = best.facts.get("copied_from", best.number)
        # A trial of several seeds has a checkpoint for each; the first one is taken.
        for path in sorted(list_checkpoints(folder / "trials", trial))[:1]:
            artifact = make("model", "checkpoint")
            artifact.add_file(str(path), name=CHECKPOINT_FILE)
            yield artifact
    if report is not None:
        artifact = make("report", "report")
        for file in sorted(report.rglob("*")):  # add_dir would print
            if file.is_file():
                artifact.add_file(str(file), name=file.relative_to(report).as_posix())
        yield artifact
