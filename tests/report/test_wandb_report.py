"""The W&B Report: built without a network, published once and updated afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from helpers.paths import TESTS
from helpers.wandb_server import ENTITY, run_server

pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is an optional extra")

from helpers import evidence_maker
from synaptune.report import findings
from synaptune.report.wandb_report import (
    PUBLISHED_FILE,
    SPECIFICATION_FILE,
    build_report,
    dump_specification,
    write_wandb_report,
)


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Remove the account and the network: every connection is refused."""
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def blocks(text: str, kind: str) -> list[dict]:
    return [block for block in json.loads(text)["blocks"] if block["type"] == kind]


def texts(entry) -> list[str]:
    """List every text of a specification, in its order."""
    if isinstance(entry, dict):
        return ([entry["text"]] if isinstance(entry.get("text"), str) else []) + [
            text for value in entry.values() for text in texts(value)
        ]
    return [text for value in entry for text in texts(value)] if isinstance(entry, list) else []


def test_the_report_has_texts_and_panels_for_each_phase():
    evidence = evidence_maker.make_full_evidence()
    text = dump_specification(build_report(evidence, project="project", uploaded=(10, 12)))
    assert [texts(block)[0] for block in blocks(text, "heading") if block["level"] == 1][:5] == [
        "Verdict",
        "What to do next",
        "What this report stands on",
        "Hypotheses",
        "Search",
    ]
    shown = [block["content"] for block in blocks(text, "markdown-block")]
    headline = findings.make_verdict(evidence).headline
    assert shown[0].startswith(f"**{headline}**\n\n- **Decision")
    assert f"runs of 10 of the {len(evidence.trials)} trials of the search" in shown[2]
    assert f"`synaptune wandb sync {evidence.name}` sends the other 2" in shown[2]
    assert shown[3].startswith("| claim | result | verdict |")
    assert any("worth at the optimum" in content for content in shown)
    (gain,) = blocks(text, "panel-grid")[0]["metadata"]["panelBankSectionConfig"]["panels"]
    assert gain["config"]["mediaKeys"] == ["figure/seeds", "figure/convergence"]
    grids = {
        block["metadata"]["runSets"][0]["name"]: block["metadata"]
        for block in blocks(text, "panel-grid")
    }
    assert {"search", "controller", "baseline", "validation", "ablation"} <= set(grids)
    for phase, grid in grids.items():
        group, kind = grid["runSets"][0]["filters"]["filters"]
        assert (group["key"]["name"], group["value"]) == ("group", evidence.name)
        assert kind["key"]["name"] == "jobType"
        assert phase in kind["value"]


def search_panels(evidence) -> dict[str, dict]:
    """Return the configurations of the panels of the search by kind."""
    grid = blocks(dump_specification(build_report(evidence, project="project")), "panel-grid")[1]
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    return {panel["viewType"]: panel["config"] for panel in panels[::-1]}


@pytest.mark.parametrize("label", ["val_loss [nats/token]", "composite score [1]"])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_panels_of_the_search_follow_the_objective_and_its_direction(label, maximize):
    evidence = replace(
        evidence_maker.make_full_evidence(count=20),
        label=label,
        maximize=maximize,
    )
    scatter = search_panels(evidence)["Scatter Plot"]
    better = "higher is better" if maximize else "lower is better"
    assert scatter["chartTitle"] == f"{label} over generations, {better}"
    assert scatter["yAxis"] == "summary:objective"
    assert (scatter["showMaxYAxisLine"], scatter["showMinYAxisLine"]) == (maximize, not maximize)
    text = dump_specification(build_report(evidence, project="project"))
    assert f"Best so far: {label}, {better}" in text
    assert f"Parameters and {label}" in text


def test_the_panels_of_the_search_use_the_config_keys_of_the_runs():
    evidence = evidence_maker.make_full_evidence()
    panels = search_panels(evidence)
    assert panels["Scatter Plot"]["xAxis"] == "config:generation.value"
    assert panels["Parameter Importance"]["targetKey"] == "objective"
    columns = panels["Parallel Coordinates Plot"]["columns"]
    assert [column["accessor"] for column in columns] == [
        *(f"config:searched.{name}.value" for name in evidence.names),
        "summary:objective",
    ]
    dimensions = evidence.space.dimensions
    logarithmic = {dimension.name for dimension in dimensions if dimension.scale == "log"}
    assert {column["displayName"] for column in columns if column.get("log")} == logarithmic


@pytest.mark.parametrize(
    "make", ["make_empty_evidence", "make_single_evidence", "make_unfinished_evidence"]
)
def test_a_study_without_results_has_a_report(make):
    evidence = getattr(evidence_maker, make)()
    assert (
        texts(json.loads(dump_specification(build_report(evidence, project="project"))))[1]
        == "Verdict"
    )


def test_names_that_need_escaping_are_kept():
    evidence = replace(
        evidence_maker.make_full_evidence(count=20, awkward=True), name='it\'s <b>"a" \\ b</b>'
    )
    text = dump_specification(build_report(evidence, project="project"))
    group, _ = blocks(text, "panel-grid")[0]["metadata"]["runSets"][0]["filters"]["filters"]
    assert group["value"] == evidence.name


def test_without_a_key_the_specification_is_written_and_the_reason_printed(tmp_path):
    messages = []
    assert (
        write_wandb_report(evidence_maker.make_snapshot(1), tmp_path, on_message=messages.append)
        is None
    )
    assert json.loads((tmp_path / SPECIFICATION_FILE).read_text())["blocks"]
    assert "no API key" in messages[-1]
    assert not (tmp_path / PUBLISHED_FILE).exists()


PUBLISH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers import evidence_maker
from synaptune.report.wandb_report import write_wandb_report
for count in (1, 2):
    snapshot = evidence_maker.make_snapshot(count)
    folder = Path(sys.argv[2])
    print(write_wandb_report(snapshot, folder, project="project", on_message=lambda line: None))
"""


def test_a_report_published_again_is_the_same_report_with_new_content(tmp_path):
    with run_server() as server:
        command = [sys.executable, "-c", PUBLISH, str(TESTS), str(tmp_path)]
        process = subprocess.run(
            command,
            env=os.environ | server.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        first, second = process.stdout.splitlines()
        assert first.startswith(f"{server.url}/{ENTITY}/project/reports/")
        assert first.rsplit("--", 1)[1] == second.rsplit("--", 1)[1]
        assert server.operations.count("upsertView") == 2
        (view,) = server.views.values()
        assert (view["entityName"], view["projectName"]) == (ENTITY, "project")
        assert texts(json.loads(view["spec"])["blocks"]) == texts(
            json.loads((tmp_path / SPECIFICATION_FILE).read_text())["blocks"]
        )
        assert json.loads((tmp_path / PUBLISHED_FILE).read_text())["url"] == second
