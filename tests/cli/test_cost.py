"""`synaptune cost` for the plans at the scale that a user has by default."""

import json

import pytest

from synaptune.cli.main import main

MEASURE = ["cost", "--steps", "2", "--warmup", "1", "--price", "2.5", "--json"]


@pytest.mark.parametrize("plan", ["phase1", "phase2"])
def test_longer_final_runs_cost_more(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*MEASURE, "--plan", plan, "protocol.final_steps=2000"]) == 0
    cost = json.loads(capsys.readouterr().out)
    seconds = {row["stage"]: row["seconds"]["median"] for row in cost["rows"]}
    search = "search" if plan == "phase1" else "joint"
    assert seconds["validation"] > 8.0 * seconds[search]
    assert cost["money"] == pytest.approx(2.5 * cost["device_hours"])
    if plan == "phase1":  # against a search of all parameters that is as dense
        assert cost["screening"]["money_saved"] > 0.0
    else:
        assert cost["screening"] is None
