"""A run reports its validations and ends early when the report raises RunPruned."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from synaptune.config.run import Outcome
from synaptune.config.run import run as run_training
from synaptune.config.schema import register
from synaptune.core.errors import UserError
from synaptune.search.objective.learning_curve import extrapolate
from synaptune.training.checkpoint import load_model
from synaptune.training.errors import RunPruned
from synaptune.training.loggers.base import RunLogger

EVALUATED = [
    "training.evaluations=12",
    "training.checkpoint_every=4",
]  # of 24 steps: a validation every second


@pytest.fixture
def run_reported(small, root):
    """Return a function that runs a configuration with a report and further overrides."""

    def run_once(folder: Path, report=None, *more: str) -> Outcome:
        register()
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            return run_training(
                compose("train", overrides=[*small, *EVALUATED, *more]),
                folder,
                overrides=[],
                report=report,
            )

    return run_once


def prune_at(last: int, reports: list | None = None):
    def report(step: int, loss: float) -> None:
        if reports is not None:
            reports.append([step, loss])
        if step >= last:
            raise RunPruned(step)

    return report


def read_result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_every_validation_is_reported_once_and_reporting_changes_nothing(run_reported, tmp_path):
    reports = []
    outcome = run_reported(tmp_path / "reported", lambda step, loss: reports.append([step, loss]))
    assert reports == read_result(tmp_path / "reported")["curve"]
    assert [step for step, _ in reports] == list(range(2, 25, 2))
    assert (outcome.pruned_at, outcome.objective) == (
        None,
        run_reported(tmp_path / "silent").objective,
    )


def test_a_pruned_run_ends_without_an_error_and_has_an_extrapolated_objective(
    run_reported, tmp_path, monkeypatch
):
    codes, reports, close = [], [], RunLogger.close

    def recorded(self, exit_code: int = 0) -> None:
        codes.append(exit_code)
        close(self, exit_code)

    monkeypatch.setattr(RunLogger, "close", recorded)
    outcome = run_reported(
        tmp_path, prune_at(10, reports), "training.test=true", "logger.tensorboard=true"
    )
    result = read_result(tmp_path)
    expected = extrapolate([(step, loss) for step, loss in reports], 24)
    assert expected is not None
    assert codes == [0]
    assert result["pruned_at"] == outcome.pruned_at == 10
    assert result["objective"] == outcome.objective == outcome.metrics["val_loss"] == expected.mean
    assert result["metrics"]["pruned_val_loss"] == reports[-1][1] == result["curve"][-1][1]
    assert result["metrics"]["steps"] == 10
    assert "test_loss" not in result["metrics"]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[-1]["step"], float(rows[-1]["val_loss"])) == ("10", reports[-1][1])


def test_a_run_pruned_too_early_to_extrapolate_has_no_objective(run_reported, tmp_path):
    outcome = run_reported(tmp_path, prune_at(4))
    assert (outcome.objective, outcome.pruned_at) == (None, 4)
    assert read_result(tmp_path)["objective"] is None
    assert "val_loss" not in outcome.metrics


def test_the_checkpoint_of_a_pruned_run_continues_to_the_same_result(run_reported, tmp_path):
    whole = run_reported(tmp_path / "whole")
    run_reported(tmp_path / "pruned", prune_at(10))
    load_model(tmp_path / "pruned" / "checkpoint.pt")
    assert (
        torch.load(tmp_path / "pruned" / "checkpoint.pt", weights_only=True)["state"]["step"] == 8
    )
    assert not list((tmp_path / "pruned").glob("*.tmp"))
    reports = []
    resumed = run_reported(
        tmp_path / "pruned", lambda step, loss: reports.append(step), "training.resume=true"
    )
    assert (resumed.objective, resumed.pruned_at) == (whole.objective, None)
    assert reports == list(range(10, 25, 2))
    assert read_result(tmp_path / "pruned")["curve"] == read_result(tmp_path / "whole")["curve"]


def test_pruning_at_the_last_step_changes_nothing(run_reported, tmp_path):
    outcome = run_reported(tmp_path, prune_at(24))
    assert outcome.pruned_at is None
    assert outcome.objective == read_result(tmp_path)["curve"][-1][1]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 24


def test_any_other_error_of_a_report_is_raised_by_the_run(run_reported, tmp_path):
    def broken(step: int, loss: float) -> None:
        raise ConnectionError("the study is gone")

    with pytest.raises(ConnectionError, match="the study is gone"):
        run_reported(tmp_path, broken)
    assert not (tmp_path / "result.json").exists()


def test_a_process_can_train_another_run_after_a_pruned_one(run_reported, tmp_path):
    before = run_reported(tmp_path / "before").objective
    run_reported(tmp_path / "pruned", prune_at(6))
    assert run_reported(tmp_path / "after").objective == before


def test_a_pruning_exception_can_be_pickled():
    copy = pickle.loads(pickle.dumps(RunPruned(12)))
    assert (type(copy), copy.step, str(copy)) == (RunPruned, 12, "pruned at step 12")


def test_a_proxy_follows_the_curve_of_the_full_run_and_extrapolates_it(run_reported, tmp_path):
    proxy = run_reported(
        tmp_path / "proxy", None, "objective=proxy", "objective.fraction=0.5", *EVALUATED
    )
    whole = run_reported(tmp_path / "whole")
    prefix = read_result(tmp_path / "whole")["curve"][:6]
    expected = extrapolate([(step, loss) for step, loss in prefix], 24)
    assert expected is not None
    assert read_result(tmp_path / "proxy")["curve"] == prefix
    assert (proxy.objective, proxy.pruned_at, proxy.metrics["steps"]) == (expected.mean, None, 12)
    resumed = run_reported(
        tmp_path / "proxy", None, "training.resume=true"
    )  # a proxy that won can be trained on
    assert resumed.objective == whole.objective


def test_a_proxy_can_be_pruned(run_reported, tmp_path):
    reports = []
    assert (
        run_reported(
            tmp_path, prune_at(8, reports), "objective=proxy", "objective.fraction=0.5", *EVALUATED
        ).pruned_at
        == 8
    )
    assert [step for step, _ in reports] == [2, 4, 6, 8]


def test_a_proxy_with_too_few_validations_to_extrapolate_is_refused(run_reported, tmp_path):
    with pytest.raises(
        UserError, match=r"objective\.fraction=0\.25: 3 of training\.evaluations=12"
    ):
        run_reported(tmp_path, None, "objective=proxy", *EVALUATED)


def test_an_objective_that_cannot_be_scored_is_refused_before_training(run_reported, tmp_path):
    with pytest.raises(UserError, match="without a baseline"):
        run_reported(tmp_path, None, "objective=composite")
    dense = [
        "model=gpt",
        "objective=composite",
        "objective.baseline={val_perplexity: 9.0, val_calibration_error: 0.1, expert_gini: 0.2}",
    ]
    with pytest.raises(UserError, match="expert_gini in the baseline and not in the run"):
        run_reported(tmp_path, None, *dense)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_run_is_scored_against_its_own_metrics_as_the_baseline(run_reported, tmp_path):
    first = run_reported(tmp_path / "first").metrics
    names = (
        "val_perplexity",
        "val_calibration_error",
        "expert_gini",
        "expert_dead_fraction",
        "tokens_per_second",
    )
    baseline = ", ".join(f"{name}: {first[name]!r}" for name in names)
    composite = run_reported(
        tmp_path / "composite", None, "objective=composite", f"objective.baseline={{{baseline}}}"
    )
    dead = first["expert_dead_fraction"] / max(first["expert_dead_fraction"], 0.5)
    gini = first["expert_gini"] / max(first["expert_gini"], 0.25)
    calibration = first["val_calibration_error"] / max(first["val_calibration_error"], 0.1)
    assert composite.objective == pytest.approx(1.0 - 0.2 * gini + 0.5 * dead + 0.2 * calibration)
    pareto = run_reported(
        tmp_path / "pareto", None, "objective=pareto", f"objective.baseline={{{baseline}}}"
    )
    assert abs(pareto.objective) < 1.0  # only the speed differs between the two runs


def test_loggers_record_state_and_objective_of_complete_pruned_and_failed_runs(
    run_reported, tmp_path, monkeypatch
):
    recorded = []
    monkeypatch.setattr(RunLogger, "log_summary", lambda self, values: recorded.append(values))

    def fail(step: int, loss: float) -> None:
        raise ValueError(step)

    complete, pruned = (
        run_reported(tmp_path / name, report)
        for name, report in (("complete", None), ("pruned", prune_at(14)))
    )
    with pytest.raises(ValueError, match="2"):
        run_reported(tmp_path / "failed", fail)
    keys = ("state", "objective", "estimate", "is_best")
    assert [tuple(values.get(key) for key in keys) for values in recorded] == [
        ("complete", complete.objective, None, False),
        ("pruned", None, pruned.objective, False),
        ("failed", None, None, None),
    ]
    assert recorded[0]["val_loss"] == complete.metrics["val_loss"]
