"""The regimes: every variant composes, and tuning and equal time are what they say."""

from __future__ import annotations

import importlib
import json
import shutil
import sys

import pytest

from helpers.paths import ROOT
from helpers.real_studies import make_study
from synaptune.core.errors import UserError
from synaptune.report.write import write_report
from synaptune.study.reader import find_study


@pytest.fixture(scope="module")
def regimes():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("regimes")
    finally:
        sys.path.pop(0)


TASKS = ["few_data", "reading", "generation", "experts", "drift", "lesion", "continual"]


@pytest.mark.parametrize("name", ["locality", "chains", "code", "kinetics", *TASKS])
def test_the_last_variant_composes_and_has_the_space_of_its_ranges(regimes, name):
    regime = regimes.REGIMES[name]
    variant = list(regime.variants.values())[-1]
    words, _ = regimes.split_options((*regime.common, *variant.overrides))
    regimes.read_settings(regimes.compose_config(words))
    space = regimes.make_variant_space(regime.common, variant)
    assert {"training.learning_rate", *variant.ranges} == set(space.names)


def test_a_searched_option_starts_at_its_preset_and_replaces_it(regimes):
    regime = regimes.REGIMES["continual"]
    variant = regime.variants["Fisher information (EWC)"]
    space = regimes.make_variant_space(regime.common, variant)
    assert {d.name: d.start for d in space.dimensions}["task.fisher"] == 1e-3
    _, options = regimes.split_options((*variant.overrides, "task.fisher=0.00316"))
    assert options == {"fisher": 0.00316}


def test_tuned_values_are_part_of_the_configuration_of_a_run(regimes, tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text("parameters: {synapse.calcium.tau_c: 0.7, synapse.calcium.alpha_ca: 0.3}\n")
    cfg = regimes.compose_config([f"tuned={path}", "synapse.calcium.alpha_ca=0.9"])
    assert (cfg.synapse.calcium.tau_c, cfg.synapse.calcium.alpha_ca, cfg.tuned) == (0.7, 0.9, None)


def test_a_gain_in_accuracy_is_positive_and_in_loss_negative(regimes):
    def results(metric, values):
        return [{metric: value, "steps": 5.0, "train_seconds": 1.0} for value in values]

    recall, chains = regimes.REGIMES["recall"], regimes.REGIMES["chains"]
    for regime, sign in ((recall, 1.0), (chains, -1.0)):
        metric = f"test_{regime.metric}"
        summary = regimes.summarise_regime(
            regime, {"off": results(metric, [0.5, 0.5]), "on": results(metric, [0.75, 0.8])}
        )
        assert summary["off"]["gain"] is None
        mean, low, high = summary["on"]["gain"]
        assert mean * sign == pytest.approx(55.0)
        assert low < mean < high


def test_stored_runs_that_lack_a_column_are_named(regimes):
    with pytest.raises(UserError, match="`no noise` without test_calibration_error"):
        regimes.summarise_regime(
            regimes.REGIMES["few_data"], {"no noise": [{"test_perplexity": 17.0}] * 2}
        )


@pytest.mark.slow
def test_a_regime_is_tuned_timed_and_continued(regimes, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # for the processes that train
    words = ["regimes", "regime=kinetics", "--budget", "2", "--equal-time", "--seeds", "2"]
    words += ["--folder", str(tmp_path), "--workers", "1", "--rounds", "1", "scale=smoke"]
    monkeypatch.setattr(sys, "argv", [*words, "training.steps=3", "data.max_bytes=60_000"])
    assert regimes.main() == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "kinetics-equal-time.json").read_text())
    assert list(record["variants"]) == ["fixed", "learned", "fixed, tuned", "learned, tuned"]
    assert max(entry["steps"] for entry in record["variants"].values()) > 3 or all(
        entry["steps"] == 3 for entry in record["variants"].values()
    )
    runs = (tmp_path / "runs.json").read_bytes()
    assert regimes.main() == 0
    assert (tmp_path / "runs.json").read_bytes() == runs


@pytest.mark.slow
def test_the_tasks_fill_every_column_and_their_options_are_tuned(
    regimes, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    words = ["regimes", *(f"regime={name}" for name in TASKS), "--seeds", "2", "--workers", "1"]
    words += ["--folder", str(tmp_path), "--budget", "2", "scale=smoke", "training.steps=4"]
    monkeypatch.setattr(sys, "argv", [*words, "model.context=64"])
    assert regimes.main() == 0, capsys.readouterr().err
    assert "continual" in (tmp_path / "regimes.svg").read_text()
    for name in TASKS:
        record = json.loads((tmp_path / f"{name}-equal-steps.json").read_text())
        assert len(record["variants"]) == 2 * len(regimes.REGIMES[name].variants)
        for entry in record["variants"].values():
            assert list(entry["also"]) == list(regimes.REGIMES[name].also)
    values = json.loads((tmp_path / "generation-equal-steps.json").read_text())["values"]
    assert 0.0 <= values["fatigue of the output"]["task.fatigue"] <= 3.0


def test_the_report_of_a_study_shows_the_regimes(regimes, tmp_path, monkeypatch, capsys):
    make_study(tmp_path / "mine", lambda params: params["x"], ["x"], trials=3)
    tables = tmp_path / "tables"
    shutil.copytree(ROOT / "docs" / "reports" / "regimes", tables)
    monkeypatch.setattr(regimes, "run_regime", lambda *_: None)  # the tables are there
    words = ["regimes", "regime=reading", "--folder", str(tables), "--study"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "mine")])
    assert regimes.main() == 0, capsys.readouterr().err
    write_report(find_study(str(tmp_path / "mine")), tmp_path / "report", formats="md")
    text = (tmp_path / "report" / "report.md").read_text()
    record = json.loads((tables / "reading-equal-steps.json").read_text())
    mean, low, high = record["variants"]["whole synapse"]["gain"]
    assert f"| {mean:.1f} ({low:.1f} to {high:.1f}) |" in text
    assert (tmp_path / "report" / "figures" / "regimes.svg").exists()
    monkeypatch.setattr(sys, "argv", [*words, "none-such"])
    assert regimes.main() == 2
    assert "none-such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "word"), [("generation", "task.fatige=1"), ("recall", "task.fatigue=1")]
)
def test_an_option_that_a_regime_does_not_have_is_refused(regimes, monkeypatch, capsys, name, word):
    monkeypatch.setattr(sys, "argv", ["regimes", f"regime={name}", word])
    assert regimes.main() == 2
    assert f"got {word.split('=')[0]} for regime={name}" in capsys.readouterr().err


def test_the_figure_shows_every_variant_with_a_gain(regimes, tmp_path):
    assert regimes.write_figure(tmp_path, {}) is None
    gains = {"off": None, "better": [3.0, 1.0, 5.0], "worse": [-3.0, -5.0, -1.0]}
    variants = {name: {"values": [1.0, 2.0], "gain": gain} for name, gain in gains.items()}
    record = {"metric": "recall_accuracy", "variants": variants}
    path = regimes.write_figure(tmp_path, {"recall-equal-steps": record})
    svg = path.read_text()
    assert all(f">{text}<" in svg for text in ("recall", "gain over off, %", "better", "worse"))
    assert svg.count("#0a5fb4") > 0 < svg.count("#c02942")  # better, worse
