"""The interactive view of the trials of a page: pairs of parameters, and the trials by worker.

The page holds the data as JSON, and explorer.js draws them. Without JavaScript the view is hidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from synaptune.analysis.results import Evidence
from synaptune.core.text import make_labels
from synaptune.report.figures.axis import map_dimensions
from synaptune.search.trial import Trial


def render_explorer(evidence: Evidence, trials: Sequence[Trial]) -> str:
    """Render the view of some trials; empty with fewer than two complete ones."""
    if sum(trial.objective is not None for trial in trials) < 2:
        return ""
    # "<" could end the element that holds the data.
    data = json.dumps(_collect_data(evidence, trials), allow_nan=False).replace("<", "\\u003c")
    return (
        '<div class="explorer" data-explorer hidden>'
        '<p><label>horizontal <select data-axis="x"></select></label> '
        '<label>vertical <select data-axis="y"></select></label></p>'
        '<svg data-view="pairs" role="img" aria-label="Trials over two chosen columns"></svg>'
        "<h3>Trials by worker</h3>"
        '<svg data-view="times" role="img" aria-label="Trials over time, a row for each worker">'
        '</svg><p class="note">Points and bars are trials: the better, the greener; a failed trial '
        "is red. Of two parameters, bands and lines show the mean rank of the trials nearby, in "
        "fifths. Point at a trial to see its values, and click it to go to its row. The time is "
        "that since the study began.</p>"
        '<p class="tip" role="status" hidden></p></div>'
        f'<script type="application/json" id="trial-data">{data}</script>'
    )


def assign_lanes(spans: Mapping[int, tuple[float, float]]) -> dict[int, int]:
    """Assign trials to as few rows as needed, so that those of a row do not overlap."""
    lanes: dict[int, int] = {}
    ends: list[float] = []
    for number, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        lane = next((row for row, free in enumerate(ends) if free <= begin), len(ends))
        ends[lane:] = [end, *ends[lane + 1 :]]
        lanes[number] = lane
    return lanes


def _collect_data(evidence: Evidence, trials: Sequence[Trial]) -> dict[str, Any]:
    dimensions = [
        dimension
        for dimension in map_dimensions(evidence).values()
        if dimension.scale != "categorical"
    ]
    labels, losses = make_labels(evidence.names), dict(_list_losses(evidence))
    spans = {
        trial.number: evidence.spans[trial.number]
        for trial in trials
        if trial.number in evidence.spans
    }
    lanes = assign_lanes(spans)
    columns = [{"name": "evaluation", "log": False}, {"name": "objective", "log": False}]
    columns += [
        {"name": labels[dimension.name], "log": dimension.scale == "log"}
        for dimension in dimensions
    ]
    rows = [
        {
            "number": trial.number,
            "state": trial.state,
            "loss": losses.get(trial.number),
            "cells": [
                trial.index + 1,
                _keep_finite(trial.objective),
                *(_keep_finite(trial.values.get(dimension.name)) for dimension in dimensions),
            ],
            "span": [*spans[trial.number], lanes[trial.number]] if trial.number in spans else None,
        }
        for trial in trials
    ]
    return {"columns": columns, "trials": rows}


def _list_losses(evidence: Evidence) -> list[tuple[int, float | None]]:
    pairs = zip(evidence.trials, evidence.losses, strict=True)
    return [(trial.number, _keep_finite(loss)) for trial, loss in pairs]


def _keep_finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None
