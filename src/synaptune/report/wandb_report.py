"""The W&B Report of a study: the verdict as text, and live panels over its runs, phase by phase.

The specification is built and written without a network. The id of a published report is stored in
the study's folder, so that the next call updates the same report.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.results import Evidence
from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line
from synaptune.report import advice, findings, next_commands, tables
from synaptune.report.figures.axis import map_dimensions
from synaptune.report.markdown import format_block
from synaptune.report.outline import Block
from synaptune.report.wandb_results import FIGURE_PREFIX, FIGURES, attach_results
from synaptune.study.artifacts import write_json, write_text
from synaptune.study.callbacks.wandb_search import JOB_TYPE, make_key, read_run_config
from synaptune.study.callbacks.wandb_sync import count_uploaded
from synaptune.study.reader import ABLATION, BASELINE, VALIDATION, StudySnapshot
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import (
    SEARCHED_PREFIX,
    explain_unreachable,
    get_base_url,
    read_wandb_mode,
)

SPECIFICATION_FILE = "wandb-report.json"
PUBLISHED_FILE = "wandb-report-published.json"
_LONGEST_TITLE = 128  # [characters]
# The loss is logged at every validation, the objective in the summary of a complete run.
_METRIC, _OBJECTIVE = "val_loss", "objective"
_HALF_WIDTH, _FULL_WIDTH, _HEIGHT = 12, 24, 8  # [units of a report's grid]


def write_wandb_report(
    snapshot: StudySnapshot,
    folder: Path,
    *,
    project: str | None = None,
    entity: str | None = None,
    publish: bool = True,
    on_message: Callable[[str], None] = print,
) -> str | None:
    """Build the report of a study, write its specification to the study's folder, and publish it.

    Args:
        snapshot: the study.
        folder: folder of the study.
        project: W&B project; None means the one that the study logged to.
        entity: W&B entity; None means the one that the study logged to.
        publish: False only writes the specification.
        on_message: receives the messages.

    Returns:
        The URL of the report; None when it was not published.

    Raises:
        UserError: the client is not installed, or the server refuses the report.
    """
    for package, name in (("wandb", "wandb"), ("wandb_workspaces", "wandb-workspaces")):
        if find_spec(package) is None:
            raise user_error(
                got=f"no {name}", expected="it installed", do="pip install 'synaptune[wandb]'"
            )
    evidence, logged = gather_evidence(snapshot), read_run_config(folder) or LoggerConfig()
    project = project or logged.project
    entity = entity or logged.entity or os.environ.get("WANDB_ENTITY")
    path = folder / SPECIFICATION_FILE
    uploaded = count_uploaded(snapshot, folder)
    report = build_report(evidence, project=project, entity=entity or "", uploaded=uploaded)
    write_text(path, dump_specification(report) + "\n")
    on_message(f"specification: {path}")
    is_offline = not publish or read_wandb_mode() in ("offline", "disabled")
    reason = "offline mode was requested" if is_offline else explain_unreachable()
    if reason is not None:
        on_message(f"not published: {reason}")
        return None
    if evidence.ended_at is not None:  # else the search holds its run
        place = {"wandb": "online", "project": project, "entity": entity}
        attach_results(snapshot, folder, changes=place)
        uploaded = count_uploaded(snapshot, folder)

    def build(entity: str) -> Any:
        return build_report(evidence, project=project, entity=entity, uploaded=uploaded)

    url = _publish(build, folder / PUBLISHED_FILE, project=project, entity=entity)
    on_message(f"published: {url}")
    return url


def _publish(
    build: Callable[[str], Any], id_file: Path, *, project: str, entity: str | None
) -> str:
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        entity = entity or wandb.Api().default_entity
        location = {"server": get_base_url(), "entity": entity, "project": project}
        report = build(str(entity))
        published = json.loads(id_file.read_text()) if id_file.exists() else {}
        if all(published.get(name) == value for name, value in location.items()):
            report.id = published["id"]
        report.save()
    except Exception as error:  # the client raises many types without a remedy
        raise user_error(
            got=(
                f"a report that {get_base_url()} refused ({type(error).__name__}:"
                f" {get_first_line(error)})"
            ),
            expected="an API key with write access to the project",
            do=(
                f"check --entity and --project; if the report was deleted there, remove {id_file}; "
                "the specification is written"
            ),
        ) from error
    write_json(id_file, location | {"id": report.id, "url": report.url})
    return report.url


def dump_specification(report: Any) -> str:
    """Dump the specification of a report as JSON."""
    return report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=1)


def build_report(
    evidence: Evidence,
    *,
    project: str,
    entity: str = "",
    uploaded: tuple[int, int] | None = None,
) -> Any:
    """Build the report as an object of wandb-workspaces, without a network.

    Args:
        evidence: the study.
        project: W&B project.
        entity: W&B entity; empty for that of the account.
        uploaded: number of trials of the search with an uploaded run, and with any run; None if
            they are unknown.
    """
    import wandb_workspaces.reports.v2 as client

    wr: Any = client  # the client exports its classes without types
    verdict, steps = findings.make_verdict(evidence), advice.advise(evidence)
    tables_by_key = {table.key: table for table in tables.make_all_tables(evidence)}
    blocks = _make_text(wr, "Verdict", verdict)
    images = [f"{FIGURE_PREFIX}{key}" for key in FIGURES]
    pictures = wr.MediaBrowser(title="Gain and course of the search", media_keys=images)
    blocks.append(_make_grid(wr, evidence, JOB_TYPE, [pictures]))
    blocks += _make_text(wr, "What to do next", steps)
    blocks += _make_text(wr, "What this report stands on", _list_limits(evidence, uploaded))
    blocks += _make_text(wr, "Hypotheses", tables_by_key.get("hypotheses"))
    if evidence.phase is not None:
        blocks += [
            *_make_text(wr, "Search", _describe_search(evidence)),
            _make_grid(wr, evidence, evidence.phase, _make_search_panels(evidence, wr)),
            wr.H2("Progress and distribution"),
            _make_grid(wr, evidence, JOB_TYPE, _make_generation_panels(evidence, wr)),
        ]
    for phase, title, metric in (
        (BASELINE, "Sanity and baseline", "val_perplexity"),
        (VALIDATION, "Validation", "test_perplexity"),
        (ABLATION, "Ablation", "test_perplexity"),
    ):
        if any(evidence.runs_by_phase.get(name) for name in _list_job_types(phase)):
            text = _make_text(wr, title, tables_by_key.get(phase))
            blocks += [*(text or [wr.H1(title)])]
            blocks.append(_make_grid(wr, evidence, phase, _make_run_panels(metric, wr)))
    return wr.Report(
        project=project,
        entity=entity,
        title=f"{evidence.name}: report"[:_LONGEST_TITLE],
        description=verdict.headline,
        blocks=blocks,
        width="fluid",
    )


def _make_text(wr: Any, title: str, block: Block | None) -> list[Any]:
    """Make a heading with a text below it, as Markdown; empty without a text."""
    return [wr.H1(title), wr.MarkdownBlock(format_block(block))] if block else []


def _list_limits(evidence: Evidence, uploaded: tuple[int, int] | None) -> list[findings.Finding]:
    """List the data behind the panels and the texts, and what they cannot show."""
    command = next_commands.format_command(evidence, "wandb sync")
    limits = []
    if uploaded is not None and evidence.trials:
        sent, known = uploaded
        total = len(evidence.trials)
        text = f"The panels show the runs of {sent} of the {total} trials of the search"
        if sent < known:
            text += (
                ". The importance and the parallel coordinates describe these runs only, which can "
                f"be the best ones; {command} sends the other {known - sent}"
            )
        limits.append(findings.Finding("Runs", f"{text}."))
    limits.append(
        findings.Finding(
            "Importance",
            "The panel of W&B shows how well a parameter predicts the objective among the uploaded "
            "runs. It is no test, and an optimizer that concentrates on good values hides effects.",
        )
    )
    seeds = tables.count_search_seeds(evidence)
    if evidence.validation is None and seeds is not None:
        own = "one seed" if seeds == 1 else f"the same {seeds} seeds"
        text = f"Every trial ran on {own}. Nothing was validated on fresh seeds."
        limits.append(findings.Finding("Seeds", text))
    elif evidence.validation is not None:
        count = evidence.validation.gain.count
        text = f"The gain stands on {count} pairs of runs on fresh seeds, of one model and text."
        limits.append(findings.Finding("Validation", text))
    return limits


def _describe_search(evidence: Evidence) -> str:
    best = "" if evidence.best is None else f"; recommended: trial {evidence.best.number}"
    return (
        f"{len(evidence.trials)} trials over {len(evidence.names)} parameters{best}. "
        f"Objective: {evidence.label}, {evidence.direction}."
    )


def _quote(text: str) -> str:
    """Quote a string for a filter.

    The client searches the whole expression for operators, so other characters are escaped.
    """
    return (
        "'"
        + "".join(letter if letter.isalnum() else f"\\U{ord(letter):08x}" for letter in text)
        + "'"
    )


def _list_job_types(phase: str) -> list[str]:
    """List the job types of a phase.

    The baseline may be a run of the sanity phase, which is not repeated.
    """
    return [phase, "sanity"] if phase == BASELINE else [phase]


def _make_grid(wr: Any, evidence: Evidence, phase: str, panels: Sequence[Any]) -> Any:
    """Arrange panels over the runs of a phase in rows of two.

    A panel of full width gets its own row. Without an entity and a project the run set uses those
    of the report and asks no server.
    """
    kinds = ", ".join(map(_quote, _list_job_types(phase)))
    filters = f"Metric('Group') == {_quote(evidence.name)} and Metric('JobType') in [{kinds}]"
    column, row = 0, 0
    for panel in panels:
        is_wide = isinstance(panel, wr.ParallelCoordinatesPlot | wr.MediaBrowser)
        width = _FULL_WIDTH if is_wide else _HALF_WIDTH
        if column + width > _FULL_WIDTH:
            column, row = 0, row + _HEIGHT
        panel.layout = wr.Layout(x=column, y=row, w=width, h=_HEIGHT)
        column += width
    return wr.PanelGrid(runsets=[wr.Runset(name=phase, filters=filters)], panels=list(panels))


def _make_search_panels(evidence: Evidence, wr: Any) -> list[Any]:
    ranges, label = map_dimensions(evidence), evidence.label
    logarithmic = {name for name, dimension in ranges.items() if dimension.scale == "log"}
    columns = [_make_flat_column(wr, name, log=name in logarithmic) for name in evidence.names]
    objective = wr.SummaryMetric(_OBJECTIVE)
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=objective, display_name=label))
    return [
        wr.ScatterPlot(
            title=f"{label} over generations, {evidence.direction}",
            x=wr.Config("generation"),
            y=objective,
            running_ymin=not evidence.maximize,
            running_ymax=evidence.maximize,
            running_ymean=True,
        ),
        wr.ParameterImportancePlot(with_respect_to=_OBJECTIVE),
        wr.ParallelCoordinatesPlot(title=f"Parameters and {label}", columns=columns),
        wr.LinePlot(
            title="val_loss of the trials while they ran",
            x="Step",
            y=[_METRIC],
            title_x="step",
            title_y="nats/token",
            max_runs_to_show=100,
        ),
        wr.LinePlot(
            title="val_loss by generation",
            x="Step",
            y=[_METRIC],
            title_x="step",
            title_y="nats/token",
            groupby=wr.Config("generation"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        ),
    ]


def _make_flat_column(wr: Any, name: str, *, log: bool) -> Any:
    """Make an axis for a parameter.

    The configurations of the runs are flat: the dots are part of the key. The client would read
    them as a nested key.
    """

    class FlatColumn(wr.ParallelCoordinatesPlotColumn):
        def _to_model(self) -> Any:
            model = super()._to_model()
            model.accessor = f"config:{SEARCHED_PREFIX}{name}.value"
            return model

    return FlatColumn(metric=wr.Config(name), display_name=name, log=log)


def _make_generation_panels(evidence: Evidence, wr: Any) -> list[Any]:
    key = make_key(str(evidence.phase))
    number = f"{key}/generation/number"
    return [
        wr.LinePlot(
            title=f"Best so far: {evidence.label}, {evidence.direction}",
            x=f"{key}/evaluation",
            y=[f"{key}/best", f"{key}/objective"],
            title_x="evaluation",
        ),
        wr.LinePlot(
            title="Step size",
            x=number,
            y=[f"{key}/generation/step"],
            log_y=True,
            title_x="generation",
        ),
        wr.LinePlot(
            title="Spread of each parameter",
            x=number,
            metric_regex=f"{re.escape(key)}/generation/sigma/.*",
            title_x="generation",
        ),
        wr.LinePlot(
            title="Condition number",
            x=number,
            y=[f"{key}/generation/condition"],
            log_y=True,
            title_x="generation",
        ),
        wr.MediaBrowser(
            title="Distribution",
            media_keys=[f"{key}/generation/distribution", f"{key}/distribution", f"{key}/parallel"],
        ),
    ]


def _make_run_panels(metric: str, wr: Any) -> list[Any]:
    return [
        wr.LinePlot(title=_METRIC, x="Step", y=[_METRIC], title_x="step", title_y="nats/token"),
        wr.BarPlot(title=metric.replace("_", " "), metrics=[wr.SummaryMetric(metric)]),
    ]
