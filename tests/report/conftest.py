"""A full study and its figures, which are drawn once."""

from __future__ import annotations

import pytest

from helpers.evidence_maker import make_full_evidence
from synaptune.analysis.results import Evidence
from synaptune.report.figures import Figure, draw_figures


@pytest.fixture(scope="session")
def evidence() -> Evidence:
    return make_full_evidence(count=100)


@pytest.fixture(scope="session")
def figures(evidence) -> dict[str, Figure]:
    return {figure.key: figure for figure in draw_figures(evidence)}
