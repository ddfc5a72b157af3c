"""The dashboard on studies of a real PostgreSQL server."""

import json

import pytest

from helpers.webclient import SPACE, bowl, request

pytest.importorskip(
    "optuna_dashboard",
    reason="optuna-dashboard is not installed (pip install 'synaptune[dashboard]')",
)

from synaptune import TrialManager
from synaptune.report.dashboard.app import DashboardApp
from synaptune.report.dashboard.study_index import StudyIndex


@pytest.mark.slow
def test_studies_on_a_server_are_listed_shown_and_exported(postgres_url, tmp_path):
    for name, trials in (("one", 12), ("two", 3)):
        options = {
            "storage": postgres_url,
            "directory": tmp_path / name,
            "progress": False,
            "max_failure_rate": 1.0,
        }
        manager = TrialManager(name, trials, sampler="random", **options)
        manager.optimize(bowl, SPACE)
        best = manager.best_value
        index = StudyIndex(tmp_path / "none", [postgres_url])
        pages = DashboardApp(index)
        (entry,) = [entry for entry, _ in index.list_studies()[0] if entry.name == name]
        path = f"/synaptune/study/{entry.key}"
        assert f">{name}</a>" in request(pages, "/").text
        assert request(pages, path).status == 200
        assert json.loads(request(pages, f"{path}/best.json").body)["objective"] == best
        assert request(pages, f"{path}/trials.csv").text.count("\n") == 1 + trials
        summaries = json.loads(request(pages, "/api/studies").body)["study_summaries"]
        assert name in {study["study_name"] for study in summaries}
        (number,) = [study["study_id"] for study in summaries if study["study_name"] == name]
        assert len(json.loads(request(pages, f"/api/studies/{number}").body)["trials"]) == trials
