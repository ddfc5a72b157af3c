"""`synaptune refine` on a table and on a study: files and errors."""

import argparse

import pytest
import yaml

from helpers.plan_runs import METRIC, make_plan_runs, write_runs
from synaptune import TrialManager
from synaptune.cli import refine
from synaptune.core.errors import UserError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command, in a folder with the plan's runs.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_runs(tmp_path / "runs.csv", make_plan_runs(), exported=True)
    parser = argparse.ArgumentParser()
    refine.add_command(parser.add_subparsers())

    def command(*arguments: str) -> None:
        options = parser.parse_args(["refine", *arguments])
        options.command(options)

    return command


PLAN = ("runs.csv", "--metric", METRIC, "--maximize", "--threshold", "-0.06")


def test_a_table_gives_a_space_and_its_reasons(run, tmp_path, capsys):
    run(*PLAN)
    output = capsys.readouterr().out
    assert "16 high performers of 48 runs of runs.csv" in output
    assert "fixed at 8" in output
    assert "written to runs-refined.yaml and runs-refined.md" in output
    space = yaml.safe_load((tmp_path / "runs-refined.yaml").read_text())
    assert space["name"] == "runs-refined"
    assert space["fixed"] == {"batch_size": 8}
    assert space["ranges"]["learning_rate"] == {"low": 1e-7, "high": 2e-6, "log": True}
    assert "all 16 high performers agree" in (tmp_path / "runs-refined.md").read_text()
    run(*PLAN)  # a second call replaces the files of the first


def test_the_plan_rule_and_new_names_come_out_in_the_file(run, tmp_path):
    run(
        *PLAN,
        "--rule",
        "plan",
        "--rename",
        "learning_rate=training.learning_rate",
        "--out",
        "out/next.yml",
        "--name",
        "focused",
    )
    space = yaml.safe_load((tmp_path / "out/next.yml").read_text())
    assert space["name"] == "focused"
    assert space["ranges"]["training.learning_rate"] == {"low": 8e-8, "high": 4e-7, "log": True}
    assert space["ranges"]["schedule"] == {"choices": ["cosine", "linear"], "weights": [65, 35]}
    assert (tmp_path / "out/next.md").exists()


def test_a_study_gives_a_space_in_its_folder(run, tmp_path, capsys):
    manager = TrialManager("bowl", n_trials=40, sampler="random", progress=False)
    manager.optimize(
        lambda p: (p["x"] - 3.0) ** 2, {"x": ("uniform", 0.0, 10.0), "y": ("int", 1, 20)}
    )
    run("bowl", "--quantile", "0.25")
    output = capsys.readouterr().out
    assert "10 high performers of 40 runs of study bowl, search" in output
    assert "adaptive" not in output
    space = yaml.safe_load((tmp_path / "outputs/studies/bowl/bowl-refined.yaml").read_text())
    assert space["ranges"]["y"] == {"low": 1, "high": 20, "log": False, "integer": True}
    assert 0.0 <= space["ranges"]["x"]["low"] < 3.0 < space["ranges"]["x"]["high"] < 9.0


def test_a_study_with_dots_in_its_name_keeps_them(run, tmp_path):
    manager = TrialManager("lr.v2", n_trials=20, sampler="random", progress=False)
    manager.optimize(lambda p: (p["x"] - 3.0) ** 2, {"x": ("uniform", 0.0, 10.0)})
    run("lr.v2", "--quantile", "0.25")
    folder = tmp_path / "outputs/studies/lr.v2"
    assert yaml.safe_load((folder / "lr.v2-refined.yaml").read_text())["name"] == "lr.v2-refined"
    assert (folder / "lr.v2-refined.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch",), "no study database"),
        (("nosuch.csv",), "nosuch.csv: No such file"),
        (("runs.csv", "--metric", "train_reward"), "measured in training"),
        (("runs.csv", "--threshold", "99"), "48 of 48 runs with eval_change at most 99"),
        (("runs.csv", "--rename", "learning_rate"), "--rename learning_rate"),
        ((*PLAN, "--out", "next.json"), "--out next.json"),
        ((*PLAN, "--out", "README.yaml"), "would overwrite README.md"),
    ],
)
def test_a_user_error_has_a_message_and_writes_nothing(run, tmp_path, arguments, message):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "runs.csv"]
